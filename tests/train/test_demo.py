"""The demo, shortened: the same stages and code, with few steps.

Proven: every stage runs on two or four processes, what they leave behind is there and agrees, and
a second start does nothing again. Not shown: that accuracy rises, which takes the whole demo.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "examples.demo", "--dir", str(folder), *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=400
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    done = demo(folder, "--steps", "2", "--pretrain", "8", "--wanted-points", "-100")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


def test_it_leaves_model_answers_curves_and_metrics(finished: Path) -> None:
    run = finished / "ppo"
    for name in ("curves.png", "report.txt", "config.yaml", "model/model.safetensors"):
        assert (run / name).stat().st_size > 0, name
    assert list(run.glob("events.out.tfevents.*"))
    digest = (run / "reshard-plan" / "rank_0.txt").read_text().split()[1]
    for rank in range(4):
        assert "update_actor, step 2" in (run / "logs" / f"rank_{rank}.log").read_text()
        plan = (run / "reshard-plan" / f"rank_{rank}.txt").read_text()
        assert "qkv_proj.weight" in plan and plan.split()[1] == digest
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "reward_mean" in row]
    assert [row["step"] for row in steps] == [1, 2]
    assert len((run / "answers-step2.jsonl").read_text().splitlines()) == 300


def test_bytes_resharded_are_the_lower_bound(finished: Path) -> None:
    summary = json.loads((finished / "ppo" / "summary.json").read_text())
    assert summary["reshard_bytes_received"] == summary["reshard_bytes_lower_bound"] > 0


def test_both_engines_agree_on_log_probs(finished: Path) -> None:
    summary = json.loads((finished / "ppo" / "summary.json").read_text())
    assert 0 < summary["logprob_diff_max"] < 1e-3


def test_phases_make_up_the_step(finished: Path) -> None:
    lines = (finished / "ppo" / "metrics.jsonl").read_text().splitlines()
    for row in (row for row in map(json.loads, lines) if "reward_mean" in row):
        phases = {name: v for name, v in row.items() if name.startswith("timing_s/")}
        step = phases.pop("timing_s/step")
        assert 0.97 * step < sum(phases.values()) <= 1.001 * step


def test_a_second_start_does_nothing_again(finished: Path) -> None:
    stamp = (finished / "ppo" / "summary.json").stat().st_mtime_ns
    done = demo(finished, "--steps", "2", "--pretrain", "8", "--wanted-points", "-100")
    assert done.returncode == 0 and done.stderr.count("done before") == 5
    assert (finished / "ppo" / "summary.json").stat().st_mtime_ns == stamp


def test_too_little_gain_is_exit_status_1(finished: Path) -> None:
    done = demo(finished, "--steps", "2", "--pretrain", "8", "--wanted-points", "101")
    assert done.returncode == 1 and "less than 101 points" in done.stdout


def test_other_settings_are_refused(finished: Path) -> None:
    done = demo(finished, "--steps", "3", "--pretrain", "8")
    assert done.returncode != 0 and "with other settings: run.steps was 2 and is 3" in done.stderr


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_demo_that_was_killed_goes_on(tmp_path: Path) -> None:
    """Killed while PPO runs: nothing it started lives on, and what was done is not done again."""
    options = ["--steps", "2", "--pretrain", "8", "--wanted-points", "-100"]
    command = [sys.executable, "-m", "examples.demo", "--dir", str(tmp_path), *options]
    first = subprocess.Popen(
        command, cwd=ROOT, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert first.stderr is not None
    while b"stage 4 of 5, ppo ..." not in first.stderr.readline():
        assert first.poll() is None
    logs = tmp_path / "ppo" / "logs"
    while not list(logs.glob("rank_3.log")):
        assert first.poll() is None
        time.sleep(0.1)
    first.kill()
    first.wait()
    deadline = time.monotonic() + 20
    while found := processes_of(tmp_path):
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    done = demo(tmp_path, *options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stderr.count("done before") == 3


def processes_of(folder: Path) -> list[str]:
    """Command lines that name the folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if str(folder) in line]


@pytest.mark.timeout(300)
def test_eval_repeats_the_last_evaluation(finished: Path, tmp_path: Path) -> None:
    """`megarl eval` on the exported model: the answers of the run, with plain lines of progress."""
    command = [sys.executable, "-m", "megarl.cli.main", "eval", "configs/demo/ppo.yaml"]
    command += [f"run.dir={tmp_path}", f"actor.model.path={finished / 'ppo' / 'model'}"]
    command += [f"data.eval_path={finished / 'assets' / 'heldout.jsonl'}"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "evaluate (1 of 2 replicas) 150/150 (done)" in done.stderr
    answers, again = (
        [json.loads(line)["token_ids"] for line in path.read_text().splitlines()]
        for path in (finished / "ppo" / "answers-step2.jsonl", tmp_path / "eval" / "answers.jsonl")
    )
    assert sum(one == other for one, other in zip(answers, again, strict=True)) >= 297
