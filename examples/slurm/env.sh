# What the jobs of this cluster need; every script here sources it, and `megarl submit --env-file` too.
# A job ends where its last command fails.
# module load cuda/13.0
source .venv/bin/activate

# NCCL over InfiniBand; other clusters, other names.
export NCCL_SOCKET_IFNAME=^lo,docker0
# export NCCL_IB_HCA=mlx5
export CUDA_DEVICE_MAX_CONNECTIONS=1

# The launcher takes node 0's name as the host of the rendezvous. Where names do not resolve:
# export MASTER_ADDR=$(getent hosts "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" |
#     awk '{print $1}')
