"""Advantage estimators: what each sampled token was worth, from rewards, by name.

| name | advantage of a token | reads |
| --- | --- | --- |
| gae | discounted sum of temporal differences | rewards, values |
| grpo | score over its group, in group deviations | scores |
| grpo_no_std | score over its group (Dr. GRPO) | scores |
| grpo_passk | best over second best, for the best | scores |
| grpo_process | sum of the normalised step rewards to come | rewards, steps |
| rloo | score over the others' mean | scores |
| opo | score over the length-weighted mean | scores |
| gpg | score over its group, by the share of samples with a signal | scores |
| reinforce_plus_plus | rewards to come, whitened over the step | rewards |
| reinforce_plus_plus_baseline | score over its group, whitened over the step | scores |
| remax | rewards to come over the greedy answer's score | rewards, baselines |

A user's own: the decorator `register`, or a config that names path/to/file.py:function or an entry
point of group megarl.adv_estimators.
"""

from megarl.algorithms.advantages.base import (
    AdvantageInputs,
    Advantages,
    Estimator,
    Normalization,
    compute_advantages,
    estimator,
    estimator_names,
    register,
    step_advantages,
)
from megarl.algorithms.advantages.critic import gae
from megarl.algorithms.advantages.group import gpg_scale, grpo, opo, passk, rloo
from megarl.algorithms.advantages.process import process
from megarl.algorithms.advantages.returns import rewards_to_go, whitening
from megarl.algorithms.advantages.rewards import (
    last_tokens,
    sequence_rewards,
    token_level_rewards,
)

__all__ = [
    "AdvantageInputs",
    "Advantages",
    "Estimator",
    "Normalization",
    "compute_advantages",
    "estimator",
    "estimator_names",
    "gae",
    "gpg_scale",
    "grpo",
    "last_tokens",
    "opo",
    "passk",
    "process",
    "register",
    "rewards_to_go",
    "rloo",
    "sequence_rewards",
    "step_advantages",
    "token_level_rewards",
    "whitening",
]
