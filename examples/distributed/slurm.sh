#!/bin/bash
# Fine-tune on two machines of eight GPUs each:  sbatch examples/distributed/slurm.sh
#SBATCH --job-name=blenderbot
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
# One process for each GPU. Every process must see all GPUs of its machine, of which it takes the one with its own
# number: leave --gpus-per-task and --gpu-bind out.
set -euo pipefail

# srun tells each process which one it is. A process that fails ends the others.
srun --kill-on-bad-exit=1 python examples/distributed/train.py pairs.tsv "$PWD/tuned" \
    --model facebook/blenderbot-3B --fsdp 16 --batch-size 128
