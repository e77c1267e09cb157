#!/bin/bash
# Fine-tune on machines that are reached over SSH, one process on each, which takes all devices there:
#   HOSTS="node1 node2" examples/distributed/ssh.sh
# The first opens the port that all others must reach. Each needs the package and the files at the same path.
set -euo pipefail

read -ra hosts <<<"$HOSTS"
folder=$(pwd) port=${PORT:-12355}
for process in "${!hosts[@]}"; do
    ssh -tt "${hosts[$process]}" "cd '$folder' && python examples/distributed/train.py pairs.tsv tuned \
        --model facebook/blenderbot-400M-distill --batch-size 64 \
        --coordinator '${hosts[0]}:$port' --processes ${#hosts[@]} --process $process" &
done
# The first that ends badly ends all: closing a connection ends what runs behind it.
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
for _ in "${hosts[@]}"; do wait -n; done
