#!/bin/bash
# Fine-tune on a pod of TPUs:  NAME=my-pod ZONE=us-central2-b examples/distributed/tpu_pod.sh
# Each of its machines needs the package, the file of pairs, and a folder to write to that they share.
set -euo pipefail

gcloud compute tpus tpu-vm ssh "$NAME" --zone "$ZONE" --worker=all --command "
    cd blenderbot_jax &&
    python examples/distributed/train.py pairs.tsv tuned --model facebook/blenderbot-3B --fsdp 16 --batch-size 128
"
