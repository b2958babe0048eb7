"""Checkpoints that cannot be read or written, other settings, another layout, and what is shown.

A run never starts over silently: what does not fit is refused before anything is touched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_runs import KILLED, ForkedRuns, Moment, difference, outcome
from safetensors.torch import load_file
from stage_runs import STAGES, STEPS
from tiny_models import TinyModels

from megarl.cli.main import main
from megarl.convert.megatron_to_hf import megatron_to_hf
from megarl.observe.metrics_file import read_metrics
from megarl.runtime.aside import sole_use

pytestmark = pytest.mark.dist
NEWEST = f"iter_{STEPS:07d}"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher started this process."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_one_run_at_a_time_in_a_folder(
    whole: Any, alone: None, tmp_path: Path, capsys: Any
) -> None:
    run = whole.copy("sft", tmp_path)
    with sole_use(run.run_dir, "run.dir"):
        before = snapshot(run.run_dir)
        assert main([*run.arguments, f"run.steps={STEPS + 1}"]) == 2
        said = capsys.readouterr().err
        assert f"run.dir {run.run_dir}: another run" in said and f"process {os.getpid()} on" in said
        assert snapshot(run.run_dir) == before
    assert main([*run.arguments, "actor.optimizer.lr=0.5"]) == 2
    assert "lr was 0.003 and is 0.5" in capsys.readouterr().err, "the lock is gone"


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file, with its time and what is in it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def cut(checkpoint: Path) -> str:
    """A file of weights loses its end."""
    file = next(checkpoint.glob("actor/__1_*.distcp"))
    file.write_bytes(file.read_bytes()[:-1000])
    return f"actor/{file.name} has {file.stat().st_size} bytes where"


def without_state(checkpoint: Path) -> str:
    """state.json is gone."""
    (checkpoint / "state.json").unlink()
    return "state.json: No such file"


def garbled(checkpoint: Path) -> str:
    """A file of weights has its size and other contents."""
    file = next(checkpoint.glob("actor/__1_*.distcp"))
    file.write_bytes(bytes(file.stat().st_size))
    return "actor cannot be read"


def zeros_for_common(checkpoint: Path) -> str:
    """What a power cut may leave of a file that was not flushed."""
    file = checkpoint / "actor/common.pt"
    file.write_bytes(bytes(file.stat().st_size))
    return "actor cannot be read"


def zeros_for_generators(checkpoint: Path) -> str:
    """The same of one rank's file."""
    file = checkpoint / "rank_0001.pt"
    file.write_bytes(bytes(file.stat().st_size))
    return "cannot be read: rank_0001.pt"


ONLY_A_LOAD_FINDS = (garbled, zeros_for_common, zeros_for_generators)


@pytest.mark.parametrize("spoil", [cut, without_state])
def test_a_spoilt_checkpoint_is_refused_before_anything_is_touched(
    spoil: Callable[[Path], str], whole: Any, alone: None, tmp_path: Path, capsys: Any
) -> None:
    run = whole.copy("sft", tmp_path)
    words = [str(run.checkpoint(STEPS)), spoil(run.checkpoint(STEPS)), "resume_mode=previous"]
    before = snapshot(run.run_dir)
    assert main(run.arguments) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in [*words, f"of step {STEPS - 1}"]), said
    assert snapshot(run.run_dir) == before


@pytest.mark.parametrize(
    "spoil",
    [
        garbled,
        zeros_for_generators,
        pytest.param(zeros_for_common, marks=pytest.mark.slow),
        pytest.param(cut, marks=pytest.mark.slow),
        pytest.param(without_state, marks=pytest.mark.slow),
    ],
)
def test_the_one_before_it_leads_to_the_same_end(
    spoil: Callable[[Path], str], whole: Any, tmp_path: Path
) -> None:
    """With resume_mode previous alone; the run says what it left out. TensorBoard has each once."""
    run: ForkedRuns = whole.copy("sft", tmp_path)
    word = spoil(run.checkpoint(STEPS))
    if spoil in ONLY_A_LOAD_FINDS:
        kept = snapshot(run.run_dir / "checkpoints"), (run.run_dir / "metrics.jsonl").read_text()
        assert run() == [2, 2]
        assert "checkpoint.resume_mode=previous goes on" in run.output()
        assert kept[0] == snapshot(run.run_dir / "checkpoints")
        assert kept[1] == (run.run_dir / "metrics.jsonl").read_text()
    run.to_the_end("checkpoint.resume_mode=previous")
    assert f"{NEWEST}" in run.output() and word in run.output()
    assert difference(outcome(run.run_dir, STEPS), whole("sft")) is None
    assert (run.run_dir / "checkpoints" / f"{NEWEST}.unreadable").is_dir()
    tensorboard_has_each_step_once(run.run_dir)


def tensorboard_has_each_step_once(run_dir: Path) -> None:
    """And the values of metrics.jsonl, as TensorBoard's own reader sees them."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert len(list(run_dir.glob("events.out.tfevents.*"))) > 1
    events = reader.EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    events.Reload()
    metrics = read_metrics(run_dir / "metrics.jsonl")
    names = {name for row in metrics.values() for name in row}
    assert names == set(events.Tags()["scalars"])
    for name in names:
        found = [(event.step, event.value) for event in events.Scalars(name)]
        rows = [(step, row[name]) for step, row in metrics.items() if name in row]
        assert [step for step, _ in found] == [step for step, _ in rows], name
        assert [value for _, value in found] == pytest.approx([v for _, v in rows], rel=1e-6)


@pytest.mark.parametrize(
    "stage", [pytest.param(stage, marks=[pytest.mark.slow] * (stage != "sft")) for stage in STAGES]
)
def test_other_settings_are_refused_with_the_difference(
    stage: str, whole: Any, alone: None, tmp_path: Path, capsys: Any
) -> None:
    run = whole.copy(stage, tmp_path)
    before = snapshot(run.run_dir)
    assert main([*run.arguments, "actor.optimizer.lr=0.5", "algorithm.global_batch_size=4"]) == 2
    said = capsys.readouterr().err
    for words in ("lr was 0.003 and is 0.5", "global_batch_size was 8 and is 4", str(run.run_dir)):
        assert words in said, said
    assert snapshot(run.run_dir) == before


@pytest.mark.slow
def test_a_stage_goes_on_under_another_layout(whole: Any, runs: Any, tmp_path: Path) -> None:
    """Pipeline -> tensor: a run with nothing left to do exports what the other saved, bit for bit;
    one with steps left ends where the other ended, to rounding."""
    done: ForkedRuns = whole.copy("sft", tmp_path / "done")
    before = load_file(done.run_dir / "model/model.safetensors")
    done.to_the_end("actor.mesh=t2")
    assert difference(load_file(done.run_dir / "model/model.safetensors"), before) is None
    half: ForkedRuns = whole.copy("sft", tmp_path / "half")
    (half.run_dir / "checkpoints/latest_checkpointed_iteration.txt").write_text("2\n")
    half.to_the_end("actor.mesh=t2")
    after = load_file(half.run_dir / "model/model.safetensors")
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("stage", ["reward", pytest.param("sft", marks=pytest.mark.slow)])
def test_the_weights_of_a_checkpoint_are_the_exported_model(
    stage: str, whole: Any, tiny: TinyModels, tmp_path: Path
) -> None:
    run: ForkedRuns = whole.copy(stage, tmp_path / "run")
    family = "llama-reward" if stage == "reward" else "llama"
    megatron_to_hf(run.checkpoint(STEPS) / "actor", tmp_path / "model", hf=Path(tiny(family)))
    both = run.run_dir / "model", tmp_path / "model"
    exported, converted = (load_file(folder / "model.safetensors") for folder in both)
    assert difference(converted, exported) is None
    one, other = (json.loads((folder / "config.json").read_text()) for folder in both)
    assert one == other


def test_the_best_step_is_saved_and_stays(runs: Callable[..., Any]) -> None:
    """Also where the run was killed after it; the highest loss is that of the first evaluation."""
    options = {"best_metric": "eval/loss", "higher_is_better": True, "keep_last": 1}
    run: ForkedRuns = runs("sft", save_interval=3, **options)
    assert KILLED in run(moment=Moment("update:4"))
    assert run.steps() == [2, 3]
    run.to_the_end()
    metrics = read_metrics(run.run_dir / "metrics.jsonl")
    losses = {step: metrics[step]["eval/loss"] for step in (2, 4)}
    assert losses[2] > losses[4]
    assert run.steps() == [2, 4]
    state = json.loads((run.checkpoint(4) / "state.json").read_text())
    assert (state["best"]["step"], state["best"]["value"]) == (2, losses[2])


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_that_is_full(rank: int, runs: Callable[..., Any], whole: Any) -> None:
    """On one rank: all end within seconds with the cause, and the checkpoint before is kept."""
    run: ForkedRuns = runs("sft", async_save=rank == 1)
    full = Moment("save_checkpoint:3", rank=rank, limit_bytes=60_000)
    assert run(moment=full) == [1, 1], run.output()
    assert run.seconds_until_ended() < 30
    assert "checkpoint of step 3 could not be written" in run.output()
    assert "File too large" in run.output(), run.output()
    latest = run.run_dir / "checkpoints/latest_checkpointed_iteration.txt"
    assert latest.read_text() == "2\n"
    run.to_the_end()
    assert difference(outcome(run.run_dir, STEPS), whole("sft")) is None
