"""Three PPO steps of a run on TP2 PP2 against plain PPO in torch on transformers models.

Proven: losses, KL, entropy, values and gradient norms of actor and critic agree to 1e-5 over three
steps of two epochs each, in which the policy leaves its reference and the critic its zeros. With
test_layout_invariance this holds for every layout. Not shown: mini-batches (their order is our own
choice), adaptive KL control, learning-rate schedules.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import Cluster
from fixed_rollouts import fixed_config, write_fixed_rollouts
from jobs_train import train_run
from parts import RoleSpec
from ppo_reference import plain_steps
from tiny_models import TinyModels

from megarl.mesh.layout import MeshLayout

pytestmark = pytest.mark.dist


def test_a_run_is_plain_ppo(cluster: Cluster, tiny: TinyModels, tmp_path: Path) -> None:
    write_fixed_rollouts(tmp_path)
    config = fixed_config(tmp_path, tmp_path / "run")
    config.algorithm.global_batch_size = 24
    ranks = RoleSpec((0, 1, 2, 3), MeshLayout(tp=2, pp=2))
    found = cluster.run(4, train_run, config, tiny("llama"), ranks, ranks, ranks, 2)[0]
    plain = cluster.run(1, plain_steps, tiny("llama"), tmp_path, config)[0]
    for step in range(3):
        for name, expected in plain[step].items():
            difference = abs(found[step + 1][name] - expected)
            assert difference <= 1e-5 * max(1.0, abs(expected)), f"step {step + 1} {name}"
