"""Policy losses: from log-probs and advantages to what is minimised, by name.

| name | a token's loss, r = new / old probability | |
| --- | --- | --- |
| ppo | max(-A r, -A clip(r)), dual clip | |
| clip_cov | as ppo, without gradient on the selected tokens | selection |
| kl_cov | -A r, plus coef * abs(log r) on the selected tokens | selection |
| gspo | as ppo, r the geometric mean over the response | whole responses |
| geo_mean | -A times the geometric mean of clipped r | whole responses |
| cispo | -A sg(clip(r)) log p | |
| sapo | -A times a sigmoid gate of r | |
| reinforce | -A log p | |

All are sums over tokens with the weights of `losses.token_weights`. A user's own: the decorator
`register`, or a config that names path/to/file.py:function or an entry point of group
megarl.policy_losses.
"""

from megarl.algorithms.policy.base import (
    PolicyLoss,
    compute_policy_loss,
    policy_loss,
    policy_loss_names,
    policy_stats,
    register,
    sequence_sums,
)
from megarl.algorithms.policy.clipped import clip_cov, kl_cov, ppo
from megarl.algorithms.policy.inputs import PolicyLossInputs, PolicyLossOptions
from megarl.algorithms.policy.sequence import geo_mean, gspo
from megarl.algorithms.policy.weighted import cispo, reinforce, sapo

__all__ = [
    "PolicyLoss",
    "PolicyLossInputs",
    "PolicyLossOptions",
    "cispo",
    "clip_cov",
    "compute_policy_loss",
    "geo_mean",
    "gspo",
    "kl_cov",
    "policy_loss",
    "policy_loss_names",
    "policy_stats",
    "ppo",
    "register",
    "reinforce",
    "sapo",
    "sequence_sums",
]
