#!/bin/bash
# One stage on two machines of eight GPUs each, with the repository on a file system that both see:
#   sbatch configs/slurm/two_nodes.sh stages/train_unet.py
# For a UNet that does not fit on one GPU:
#   CONFIG=configs/accelerate/multinode_fsdp.yaml sbatch configs/slurm/two_nodes.sh stages/train_unet.py
# Two minutes before the time is over the state is saved; submitted again, the stage goes on from there. When it is done,
# `dvc commit -f train_unet` tells DVC. Other numbers of machines and GPUs are options of sbatch: --nodes 4 --gpus-per-node 4.
#SBATCH --job-name=ldm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=slurm-%j.txt
set -euo pipefail

export CONFIG=${CONFIG:-configs/accelerate/multinode.yaml} PYTHON=${PYTHON:-.venv/bin/python}
HOSTS=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
FIRST=${HOSTS%%$'\n'*}
PORT=$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a machine do not meet
NUM_PROCESSES=$((SLURM_NNODES * SLURM_GPUS_ON_NODE))
# The launcher leaves its processes this long to save their state after a signal.
export FIRST PORT NUM_PROCESSES TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100

# One task per machine, a launcher, which starts a process per GPU. If one fails, all end.
# shellcheck disable=SC2016  # the variables are those of the task
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" bash -c '
    exec "$PYTHON" -m ldm.tools.launch --config_file "$CONFIG" \
        --num_machines "$SLURM_NNODES" --num_processes "$NUM_PROCESSES" --machine_rank "$SLURM_NODEID" \
        --main_process_ip "$FIRST" --main_process_port "$PORT" "$@"
' launcher "$@"
