"""PPO that was killed and started again ends where an undisturbed run ends, bit for bit.

Compared: the exported weights, every tensor of the last checkpoint (weights and Adam's states of
actor and critic), the schedules, all random generators, the data's order, the KL controller, and
the metrics but for times, rates and memory. TensorBoard is tests/train/test_stage_checkpoints.py's.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import Cluster, free_port
from fixed_rollouts import write_fixed_rollouts
from forked_runs import KILLED, ForkedRuns, Moment, difference, outcome
from safetensors.torch import load_file
from tiny_models import TinyModels

from megarl.convert.megatron_to_hf import megatron_to_hf

pytestmark = pytest.mark.vllm
STEPS = 4
PHASES = {"generation": "generate", "backward": "update_actor", "sync": "sync_weights"}
"""Moment -> verb."""
SAVES = ("save", "async-save", "naming")


def write_config(folder: Path, model: str, **checkpoint: Any) -> Path:
    """PPO with a critic, an adaptive KL coefficient and evaluations; a checkpoint a step."""
    write_fixed_rollouts(folder)
    prompts = str(folder / "prompts.jsonl")
    config: dict[str, dict[str, Any]] = {
        "run": {"dir": str(folder / "run"), "steps": STEPS, "world_size": 2, "eval_interval": 2},
        "actor": {"model": {"path": model}, "optimizer": {"lr": 3e-3}, "mesh": "p2"},
        "critic": {"optimizer": {"lr": 3e-3}, "mesh": "p2"},
        "data": {
            "train_path": prompts, "eval_path": prompts, "rollout_batch_size": 8,
            "max_prompt_length": 8, "max_response_length": 16,
        },
        "algorithm": {
            "global_batch_size": 4, "kl_coef": 0.05,
            "kl_ctrl": {"type": "adaptive", "target_kl": 0.01, "horizon": 100},
        },
        "reward": {"function": str(folder / "reward.py") + ":reward"},
        "rollout": {"tensor_parallel_size": 2, "kv_cache_megabytes": 16},
        "checkpoint": {"save_interval": 1} | checkpoint,
        "observe": {"progress": False},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def runs(cluster: Cluster, tiny: TinyModels, tmp_path: Path) -> Callable[..., ForkedRuns]:
    """A run in a folder of the test's own."""

    def make(**checkpoint: Any) -> ForkedRuns:
        write_config(tmp_path, tiny("llama"), **checkpoint)
        return ForkedRuns(cluster, tmp_path, "train")

    return make


@pytest.fixture(scope="module")
def undisturbed(
    cluster: Cluster, tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory
) -> ForkedRuns:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    write_config(folder, tiny("llama"))
    run = ForkedRuns(cluster, folder, "train")
    run.to_the_end()
    return run


def same_end(run: ForkedRuns, undisturbed: ForkedRuns) -> bool:
    """Bit for bit."""
    found = difference(outcome(run.run_dir, STEPS), outcome(undisturbed.run_dir, STEPS))
    assert found is None, found
    assert not list(run.run_dir.glob("**/*.partial"))
    return True


def roll(kind: str, dice: random.Random, undisturbed: ForkedRuns) -> Moment:
    """Some time in a phase after the first checkpoint, as long as it takes where nothing happens;
    or in the middle of a save."""
    step, rank = dice.randrange(2, STEPS + 1), dice.randrange(2)
    if kind == "naming":  # rank 0 flushes the names twice for a checkpoint
        return Moment(f"naming:{dice.randrange(2, 2 * STEPS)}")
    if kind not in PHASES:  # two roles write files in a save
        return Moment(f"writing:{dice.randrange(3, 2 * STEPS + 1)}", dice.uniform(0, 5e-3), rank)
    rows = map(json.loads, (undisturbed.run_dir / "metrics.jsonl").read_text().splitlines())
    seconds = [row.get(f"timing_s/{PHASES[kind]}", 0.0) for row in rows]
    return Moment(f"{PHASES[kind]}:{step}", dice.uniform(0.0, max(seconds)), rank)


def kills() -> list[Any]:
    slow = [("generation", 0), ("async-save", 1)]
    rare = [(kind, 10 * place + seed) for place, kind in enumerate((*PHASES, *SAVES), 1)
            for seed in range(4)]  # fmt: skip
    return [
        *(pytest.param(*case, marks=pytest.mark.slow) for case in slow),
        *(pytest.param(*case, marks=pytest.mark.long) for case in rare),
    ]


@pytest.mark.parametrize(("kind", "seed"), kills())
def test_a_kill_changes_nothing(
    kind: str, seed: int, runs: Callable[..., ForkedRuns], undisturbed: ForkedRuns
) -> None:
    moment = roll(kind, random.Random(seed), undisturbed)
    print(f"seed {seed}: {moment}")  # noqa: T201
    run = runs(async_save=kind == "async-save")
    statuses = run(moment=moment)
    assert statuses[moment.rank] == KILLED and 0 not in statuses, run.output()
    assert run.seconds_until_ended() < 30 and run.says_who_is_gone()
    run.to_the_end()
    assert same_end(run, undisturbed)


def start(config: Path, log: Path, *launcher: str) -> subprocess.Popen[bytes]:
    """`megarl train`, alone or under a launcher."""
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, *launcher, "-m", "megarl.cli.main", "train", str(config)],
            env=os.environ | {"TORCHDYNAMO_DISABLE": "1"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def wait_for(moment: str, launcher: subprocess.Popen[bytes], folder: Path) -> None:
    """Until rank 0's log has it."""
    log, deadline = folder / "run/logs/rank_0.log", time.monotonic() + 200
    while moment not in (log.read_text() if log.exists() else ""):
        assert launcher.poll() is None and time.monotonic() < deadline, moment
        time.sleep(0.005)


def children(launcher: subprocess.Popen[bytes]) -> list[int]:
    """Processes of the ranks."""
    file = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    return [int(pid) for pid in file.read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2])
def test_torchrun_goes_on_by_itself(
    seed: int, runs: Callable[..., ForkedRuns], undisturbed: ForkedRuns
) -> None:
    """The agent starts both ranks anew, and they find the newest checkpoint."""
    run, dice = runs(async_save=True), random.Random(seed)
    # In step 2 the first checkpoint may still be on its way.
    verb, step = dice.choice(list(PHASES.values())), dice.randrange(3, STEPS + 1)
    print(f"seed {seed}: {verb}, step {step}")  # noqa: T201
    log = run.folder / "log"
    launcher = start(
        run.config, log, "-m", "torch.distributed.run", "--nproc-per-node", "2",
        "--max-restarts", "3", "--master-port", str(free_port()),
    )  # fmt: skip
    wait_for(f"{verb}, step {step}", launcher, run.folder)
    time.sleep(dice.random() * 0.1)
    os.kill(dice.choice(children(launcher)), signal.SIGKILL)
    assert launcher.wait(timeout=280) == 0, log.read_text()[-3000:]
    assert "going on from the checkpoint" in (run.run_dir / "logs/rank_0.log").read_text()
    assert same_end(run, undisturbed)


@pytest.mark.parametrize(
    ("number", "interval"),
    [
        pytest.param(signal.SIGTERM, 3, id="SIGTERM", marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, 0, id="SIGUSR1", marks=pytest.mark.long),
    ],
)
def test_a_signal_saves_and_asks_for_another_start(
    number: signal.Signals,
    interval: int,
    runs: Callable[..., ForkedRuns],
    undisturbed: ForkedRuns,
) -> None:
    """At the end of the step in which it came; also where no checkpoints are kept by themselves."""
    run = runs(save_interval=interval, async_save=True)
    launcher = start(run.config, run.folder / "log")
    wait_for("generate, step 2", launcher, run.folder)
    # As a batch system does it: to every process, of which one hands it on as well.
    for pid in (*children(launcher), launcher.pid):
        os.kill(pid, number)
    assert launcher.wait(timeout=100) == 75
    assert (run.run_dir / "requeue").read_text() == "2\n"
    latest = run.run_dir / "checkpoints/latest_checkpointed_iteration.txt"
    assert latest.read_text() == "2\n"
    run.to_the_end("checkpoint.save_interval=1")
    assert same_end(run, undisturbed)
    assert not (run.run_dir / "requeue").exists()


@pytest.mark.slow
def test_roles_move_to_pools_of_their_own(
    cluster: Cluster, undisturbed: ForkedRuns, tmp_path: Path
) -> None:
    """Both roles on both ranks -> a rank each. With nothing left to do, the same weights bit for
    bit; with steps left, a run that goes on."""
    pools = (
        "resources={actor_gpus: [0], critic_gpus: [1]}", "actor.mesh=t1", "critic.mesh=t1",
        "rollout.tensor_parallel_size=1",
    )  # fmt: skip
    for done in (STEPS, STEPS - 1):
        shutil.copytree(undisturbed.run_dir, tmp_path / f"{done}/run")
        moved = ForkedRuns(cluster, tmp_path / f"{done}", "train", undisturbed.config)
        latest = moved.run_dir / "checkpoints/latest_checkpointed_iteration.txt"
        latest.write_text(f"{done}\n")
        moved.to_the_end(*pools)
        assert f"going on from the checkpoint of step {done}" in moved.log(0)
        files = [run.run_dir / "model/model.safetensors" for run in (undisturbed, moved)]
        one, other = map(load_file, files)
        assert done < STEPS or difference(one, other) is None
    rows = map(json.loads, (moved.run_dir / "metrics.jsonl").read_text().splitlines())
    assert [row["step"] for row in rows if "reward_mean" in row] == [1, 2, 3, 4]


@pytest.mark.slow
def test_weights_alone_become_hugging_face_folders(
    undisturbed: ForkedRuns, tiny: TinyModels, tmp_path: Path
) -> None:
    """The actor's are the exported model; the critic's come with the scalar head it trained."""
    checkpoint = undisturbed.checkpoint(STEPS)
    for role in ("actor", "critic"):
        megatron_to_hf(checkpoint / role, tmp_path / role, hf=Path(tiny("llama")))
    exported = load_file(undisturbed.run_dir / "model/model.safetensors")
    assert difference(load_file(tmp_path / "actor/model.safetensors"), exported) is None
    critic = load_file(tmp_path / "critic/model.safetensors")
    config = json.loads((tmp_path / "critic/config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert critic["score.weight"].abs().max() > 0 and "lm_head.weight" not in critic
