"""One rank of a run in which something goes wrong; started by test_failures.py.

    python failing_run.py SCENARIO FOLDER

Ranks 0 and 1 are one pool, 2 and 3 another. Every rank leaves a name in /dev/shm, as vLLM does.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from megarl.config.schema import RunConfig
from megarl.errors import ConfigError
from megarl.train.main import Session

NAMES = Path("/dev/shm")


def main(scenario: str, folder: Path) -> None:
    """Run one scenario."""
    # A shell that starts the tests in the background has them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    pools = ((0, 1, 2, 3),) if scenario == "vllm" else ((0, 1), (2, 3))
    plan: Any = SimpleNamespace(pools=pools)
    config = RunConfig(dir=str(folder), timeout_s=120.0, stall_timeout_s=2.0)
    with Session(plan, config) as session:
        rank, name = session.universe.rank, session.universe.launch.run_id
        (NAMES / f"test-megarl-{name}-{rank}").write_text("x")
        (folder / f"{rank}.ready").write_text(f"{os.getpid()} {name}")
        session.control.enter("first")
        session.universe.barrier()
        session.control.step = 4
        session.control.enter("second")
        SCENARIOS[scenario](session, rank, folder)


def mark(folder: Path) -> None:
    """The moment of the failure."""
    (folder / "failed_at").write_text(str(time.time()))


def wait_for_peers(session: Session, rank: int) -> None:
    """Sit in a collective that never completes: the universe's, or the pool's."""
    if rank == 0:
        session.universe.all_gather("waiting")
    else:
        dist.all_reduce(torch.zeros(1))


def raise_in_one(session: Session, rank: int, folder: Path) -> None:
    """A plain exception on rank 2, which shares no collective with the pool of ranks 0 and 1."""
    if rank == 2:
        time.sleep(1.0)
        mark(folder)
        raise ValueError("sample 17 is bad")
    wait_for_peers(session, rank)


def raise_while_writing(session: Session, rank: int, folder: Path) -> None:
    """Rank 0 writes a model and waits for a part of it; rank 2 fails then."""
    from megarl.weights.folder import new_folder

    if rank != 0:
        raise_in_one(session, rank, folder)
    (folder / "template").mkdir()
    (folder / "template" / "config.json").write_text("{}")
    with new_folder(folder / "model", folder / "template", 2) as writer:
        writer.write({"a": torch.ones(2)})
        wait_for_peers(session, rank)


def config_error(session: Session, rank: int, folder: Path) -> None:
    """All ranks find the same mistake."""
    mark(folder)
    raise ConfigError("data.train_path is empty")


def kill_one(session: Session, rank: int, folder: Path) -> None:
    """Rank 1 is gone without a word."""
    if rank == 1:
        time.sleep(1.0)
        mark(folder)
        os.kill(os.getpid(), signal.SIGKILL)
    wait_for_peers(session, rank)


def exit_one(session: Session, rank: int, folder: Path) -> None:
    """Rank 0, which hosts the store, leaves without a word while it holds unnamed shared memory."""
    if rank == 0:
        block = SharedMemory(create=True, size=4096)
        (folder / "block").write_text(block.name)
        time.sleep(1.0)
        mark(folder)
        os._exit(3)
    wait_for_peers(session, rank)


def wait_only(session: Session, rank: int, folder: Path) -> None:
    """Nothing goes wrong here: the test ends somebody from outside."""
    if rank == 3:
        time.sleep(600)
    wait_for_peers(session, rank)


def busy_one(session: Session, rank: int, folder: Path) -> None:
    """Rank 3 is busy in the verb, where its peers wait for it already."""
    if rank == 3:
        time.sleep(600)
    session.control.gather(rank)


def sleep_only(session: Session, rank: int, folder: Path) -> None:
    """Every rank is busy outside collectives."""
    time.sleep(600)


def wrong_verb(session: Session, rank: int, folder: Path) -> None:
    """Rank 3 takes another way, and waits there for peers that never come."""
    mark(folder)
    session.control.enter("update_critic" if rank == 3 else "update_actor")
    wait_for_peers(session, rank)


def in_order(session: Session, rank: int, folder: Path) -> None:
    """A run that ends as it should: names that are left are swept here too."""
    mark(folder)


def raise_in_vllm(session: Session, rank: int, folder: Path) -> None:
    """A raise inside vLLM's forward pass on rank 3; its replica's other rank waits inside vLLM."""
    from megarl.layout import ReplicaLayout
    from megarl.rollout.engine import generate
    from megarl.rollout.vllm_engine import VllmEngine, VllmSettings
    from megarl.types import Prompt, RolloutRequest, SamplingSpec

    settings = VllmSettings(
        model=os.environ["TEST_MODEL"],
        run_name=session.universe.launch.run_id,
        replica=ReplicaLayout(2),
        dtype="float32",
        max_model_len=64,
        kv_cache_bytes=16 << 20,
        max_num_batched_tokens=512,
    )
    engine = VllmEngine(settings, str)
    for parameter in engine.begin_load().values():
        parameter.fill_(0.01)
    engine.commit(1)
    session.universe.barrier()
    session.control.enter("generate")
    if rank == 3:

        def broken(*args: Any) -> None:
            mark(folder)
            raise RuntimeError("the engine broke")

        engine._model.model.layers[2].register_forward_pre_hook(broken)
    requests = [RolloutRequest(i, i, Prompt(i, (5, 6, 7), "", "", ""), i) for i in range(4)]
    generate(engine, [(requests, SamplingSpec(max_response_length=8))])
    session.universe.barrier()


SCENARIOS = {
    "raise": raise_in_one,
    "raise-while-writing": raise_while_writing,
    "config-error": config_error,
    "kill": kill_one,
    "exit": exit_one,
    "wait": wait_only,
    "sleep": sleep_only,
    "busy": busy_one,
    "wrong-verb": wrong_verb,
    "in-order": in_order,
    "vllm": raise_in_vllm,
}

if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
