"""What one rank does from start to exit status: join, build, train, leave."""

from __future__ import annotations

import os

from megarl.config.plan import RunPlan
from megarl.config.schema import Config
from megarl.mesh.control import Control
from megarl.mesh.universe import Universe
from megarl.runtime.bringup import Launch, read_launch
from megarl.runtime.device import bind_device, on_cuda


def prepare_process(launch: Launch) -> None:
    """Bind the device; on a CPU give Megatron its stand-in for torch.cuda."""
    bind_device(launch.local_rank)
    if not on_cuda():
        from megarl.runtime import megatron_cpu

        megatron_cpu.install()


def run_training(config: Config, plan: RunPlan) -> int:
    """Train on this rank; returns the exit status."""
    launch = read_launch(os.environ)
    prepare_process(launch)
    from megarl.train.build import build_run, universe_pools
    from megarl.train.driver import train

    universe = Universe(launch, universe_pools(plan), config.run.timeout_s)
    control = Control(universe, lambda sequence, verb: None)
    run = build_run(config, plan, universe, control)
    train(run)
    return 0
