#!/bin/bash
# Pretraining on 4 nodes of 8 GPUs, from new weights.
#     sbatch examples/slurm/pretrain.sh
#SBATCH --job-name=pretrain
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=pretrain-%j.out

set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-.}" || exit
set +u
source examples/slurm/env.sh || { echo "environment: status $?"; exit 1; }
set -u
echo "[$(date +%FT%T)] job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}, nodes $SLURM_JOB_NODELIST"

# One launcher per node, one rank per GPU. The launcher hands SIGUSR1 to the ranks, which save.
srun --wait=120 --cpu-bind=none \
    python -m megarl.slurm.node --nproc-per-node=8 \
    -m megarl.cli.main pretrain examples/slurm/pretrain.yaml
status=$?

# 75: the ranks have saved and want to be started again; 138: SIGUSR1 came before a rank.
if ((status == 75 || status == 138)); then
    echo "[$(date +%FT%T)] saved; requeued"
    scontrol requeue "$SLURM_JOB_ID" && sleep 600
fi
exit "$status"
