#!/bin/bash
# Two machines with eight GPUs each: sbatch examples/slurm.sh. Ten minutes before the limit SLURM sends SIGUSR1: the run saves
# its state and asks for its job to be queued again; the same command then goes on where it was, since --resume of a folder
# that is not there starts fresh.
#SBATCH --job-name=embarc
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=SIGUSR1@600
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail
source .venv/bin/activate

# One task a GPU: Lightning reads rank and addresses from SLURM's variables. The run folder has to be on a disk that all
# machines share; the model as well, or in the --cache of each.
srun python train.py --backbone qwen3-8b \
    --num-nodes 2 --devices 8 --accelerator gpu --precision bf16-mixed --gradient-checkpointing \
    --every-n-train-steps 50 --timeout 900 --output "runs/job-${SLURM_JOB_ID}" --resume
