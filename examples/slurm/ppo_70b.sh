#!/bin/bash
# PPO of a 70B model on 16 nodes of 8 GPUs; docs/70b.md explains the choices. The paths of models and
# data at its end are yours to change.
#     sbatch examples/slurm/ppo_70b.sh
#SBATCH --job-name=ppo-70b
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=48:00:00
#SBATCH --signal=USR1@1200
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=ppo-70b-%j.out

set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-.}" || exit
set +u
source examples/slurm/env.sh || { echo "environment: status $?"; exit 1; }
set -u
echo "[$(date +%FT%T)] job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}, nodes $SLURM_JOB_NODELIST"

# One launcher per node, one rank per GPU. The launcher hands SIGUSR1 to the ranks, which save.
srun --wait=120 --cpu-bind=none \
    python -m megarl.slurm.node --nproc-per-node=8 \
    -m megarl.cli.main train configs/recipes/ppo-llama3.1-70b-16n8g.yaml \
    actor.model.path=/models/llama-3.1-70b \
    critic.model.path=/models/reward-8b \
    reward.model.path=/models/reward-8b \
    data.train_path=prompts.jsonl \
    data.eval_path=heldout.jsonl
status=$?

# 75: the ranks have saved and want to be started again; 138: SIGUSR1 came before a rank.
if ((status == 75 || status == 138)); then
    echo "[$(date +%FT%T)] saved; requeued"
    scontrol requeue "$SLURM_JOB_ID" && sleep 600
fi
exit "$status"
