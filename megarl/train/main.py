"""What one rank does from start to exit status: join, build, train, leave."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
import torch.distributed as dist

from megarl.checkpoint.folder import saves
from megarl.config.schema import Config, RunConfig
from megarl.mesh.control import Control
from megarl.mesh.run_plan import RunPlan
from megarl.mesh.universe import Pool, Universe
from megarl.observe.rank_log import RankLog
from megarl.reshard.assignment import assign_shards
from megarl.runtime.allocator import keep_freed_memory
from megarl.runtime.bringup import Launch
from megarl.runtime.device import bind_device, on_cuda
from megarl.runtime.environment import set_variables, slurm_step, this_launch
from megarl.runtime.requeue import requeue_status
from megarl.runtime.warnings_filter import silence_known_warnings
from megarl.runtime.watch import Watch, sweep_shared_memory

_LOG = logging.getLogger("megarl.train")


DETERMINISTIC = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "NCCL_ALGO": "Ring",
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",
}
"""What cuBLAS, NCCL and TransformerEngine must be told before they start."""


def prepare_process(launch: Launch, *, deterministic: bool = False) -> None:
    """Bind the device; on a CPU give Megatron its stand-in for torch.cuda.

    deterministic: on GPUs, only algorithms that give the same bits each time (Megatron-Core's
    `--deterministic-mode`); on a CPU all do.
    """
    if deterministic and on_cuda():
        set_variables(DETERMINISTIC, keep_given=True)
        torch.use_deterministic_algorithms(True)
    silence_known_warnings()
    # Megatron's overlap of communication with sequence parallelism counts on one queue.
    set_variables({"CUDA_DEVICE_MAX_CONNECTIONS": "1"}, keep_given=True)
    bind_device(launch.local_rank)
    if not on_cuda():
        keep_freed_memory()
        from megarl.runtime import megatron_cpu

        # Compiling one sampler helper would cost every process 5-18 s at its first call.
        set_variables({"TORCHDYNAMO_DISABLE": "1"}, keep_given=True)
        megatron_cpu.install()


class Session:
    """A rank's life in a run: joins the universe, watches the peers, leaves in order.

    Use as `with Session(...) as session`: an exception inside ends all ranks with its cause.
    """

    def __init__(self, plan: RunPlan, config: RunConfig, *, saves: bool = False) -> None:
        """saves: whether SIGTERM asks for a checkpoint before the run ends."""
        launch = this_launch()
        self._log = RankLog(config.dir, launch.rank)
        if step := slurm_step():
            _LOG.info("%s, node %d of %d", step.describe(), step.node, step.num_nodes)
        if launch.local_rank == 0:
            # What an attempt left that was killed whole; nothing of this one exists before all
            # ranks have met.
            sweep_shared_memory(launch.run_id, all_attempts=True)
        prepare_process(launch, deterministic=config.deterministic)
        pools = [Pool(f"pool{index}", ranks) for index, ranks in enumerate(plan.pools)]
        self.universe = Universe(launch, pools, config.timeout_s)
        facts = self.universe.all_gather((self.universe.hosts[launch.rank], os.getpid()))
        here = facts[launch.rank][0]
        store: Any = self.universe.root_store
        self.watch = Watch(
            # A connection of its own: the main thread may sit in a wait on the other.
            dist.PrefixStore(f"watch/{launch.attempt}", store.clone()),
            launch.rank,
            launch.world_size,
            {rank: pid for rank, (host, pid) in enumerate(facts) if host == here},
            launch.run_id,
            config.stall_timeout_s,
            saves=saves,
        )
        self.control = Control(
            self.universe, self.watch.announce, self.watch.waiting, self.watch.asked_to_leave
        )

    def __enter__(self) -> Session:
        self.watch.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.watch.fail(error)
        try:
            self.universe.barrier()
            self.watch.leave()
            self.universe.barrier()
        except RuntimeError as lost:  # a peer failed while this rank was done already
            self.watch.fail(lost)
        sweep_shared_memory(self.universe.launch.run_id)
        self.watch.stop()
        self.universe.close()
        self._log.close()


def run_training(config: Config, plan: RunPlan) -> int:
    """Train on this rank; returns the exit status."""
    with Session(plan, config.run, saves=saves(config)) as session:
        # Megatron and vLLM may be imported only after the process is prepared.
        from megarl.train.build import build_run
        from megarl.train.driver import train
        from megarl.train.finish import close_run, finish_run

        plan = assign_shards(plan, session.universe.node_of.__getitem__)
        run = build_run(config, plan, session.universe, session.control)
        train(run)
        if not run.leaving:
            finish_run(run)
        close_run(run)
        return requeue_status() if run.leaving else 0


def run_pretraining(config: Config, plan: RunPlan) -> int:
    """Pretrain on this rank; returns the exit status."""
    return _run_supervised("build_pretraining", config, plan)


def run_sft(config: Config, plan: RunPlan) -> int:
    """Fine-tune on this rank; returns the exit status."""
    return _run_supervised("build_sft", config, plan)


def run_reward_model(config: Config, plan: RunPlan) -> int:
    """Train a reward model on this rank; returns the exit status."""
    return _run_supervised("build_reward_model", config, plan)


def _run_supervised(builder: str, config: Config, plan: RunPlan) -> int:
    with Session(plan, config.run, saves=saves(config)) as session:
        from megarl.train import supervised, supervised_build

        build = getattr(supervised_build, builder)
        stage = build(config, plan, session.universe, session.control)
        supervised.learn(stage)
        if not stage.leaving:
            supervised.finish(stage)
        stage.close_books()
        return requeue_status() if stage.leaving else 0


def run_eval(config: Config, plan: RunPlan) -> int:
    """Answer the held-out prompts with the actor's model; returns the exit status."""
    with Session(plan, config.run) as session:
        from megarl.train.eval_run import evaluate_model

        plan = assign_shards(plan, session.universe.node_of.__getitem__)
        evaluate_model(config, plan, session.universe, session.control)
    return 0
