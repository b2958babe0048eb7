"""The command line: help, dry run, exit statuses, and who runs what."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import megarl
from megarl.cli import run as cli_run
from megarl.cli.doctor import report
from megarl.cli.main import main
from megarl.config.docs import settings
from megarl.config.load import load_config
from megarl.errors import RunError
from megarl.runtime import spawn
from megarl.runtime.inventory import Finding

LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID")


@pytest.fixture
def config(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run of four ranks, started by nobody."""
    for name in (*LAUNCHERS, spawn.CHECKED):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = tmp_path / "run.yaml"
    path.write_text(
        f"""
actor: {{model: {{path: {made / "model"}}}, mesh: t2p2}}
critic: {{mesh: p2d2}}
rollout: {{tensor_parallel_size: 2}}
data: {{train_path: {made / "train.jsonl"}, max_prompt_length: 64, max_response_length: 64,
        rollout_batch_size: 16}}
algorithm: {{global_batch_size: 16}}
run: {{dir: {tmp_path / "run"}}}
"""
    )
    return str(path)


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """What the training entry was called with; nothing is trained."""
    calls: list[tuple[Any, Any]] = []
    module = ModuleType("fake_entry")
    module.run_training = lambda config, plan: calls.append((config, plan))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_entry", module)
    monkeypatch.setitem(cli_run.ENTRIES, "train", ("fake_entry", "run_training"))
    return calls


def under_torchrun(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    values = (rank, world_size, rank, "127.0.0.1", 29999)
    for name, value in zip(LAUNCHERS, values, strict=False):
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("command", ["train", "pretrain", "sft", "reward", "eval"])
def test_help_gives_every_key(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert [s.key for s in settings() if f"  {s.key} ({s.type}, default" not in text] == []


def test_dry_run_prints_the_meshes_rank_by_rank(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", config, "run.steps=3", "--dry-run", "algorithm.kl_coef=0.1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 ranks in 1 pool(s)"
    table = [re.split(r"\s{2,}", line) for line in lines[-5:]]
    assert table[0][0] == "rank"
    assert table[1:] == [
        ["0", "0 0", "0,0,0", "0,0,0", "0,0,0", "0,0"],
        ["1", "0 1", "1,0,0", "0,0,1", "1,0,0", "0,1"],
        ["2", "0 2", "0,1,0", "0,1,0", "0,1,0", "1,0"],
        ["3", "0 3", "1,1,0", "0,1,1", "1,1,0", "1,1"],
    ]
    assert not (tmp_path / "run").exists()


def test_dry_run_of_pools_and_nodes(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    ranks = ["resources.actor_gpus=[0,1,2,3]", "resources.critic_gpus=[4,5]", "critic.mesh=p2"]
    assert main(["train", config, *ranks, "--dry-run", "--ranks-per-node", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "critic    t1p2d1" in "\n".join(lines)
    assert lines[-1].split() == ["5", "1", "1", "-", "0,1,0", "-"]


def test_dry_run_shows_which_rank_takes_which_shard(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stages of a replica lie where the actor's stages are, and on one node where they fit."""
    ranks = ["resources.actor_gpus=[0,1,2,3]", "actor.mesh=t2p2", "reference.mesh=t2p2"]
    replicas = ["rollout.tensor_parallel_size=1", "rollout.pipeline_parallel_size=2"]
    places = []
    for per_node in ("4", "2"):
        command = ["train", config, *ranks, *replicas, "--dry-run", "--ranks-per-node", per_node]
        assert main(command) == 0
        lines = capsys.readouterr().out.splitlines()[-4:]
        places.append([line.split("  ")[-1].strip() for line in lines])
    assert places[0] == ["0,0 pp 0", "1,0 pp 0", "0,0 pp 1", "1,0 pp 1"]
    assert places[1] == ["0,0 pp 0", "0,0 pp 1", "1,0 pp 0", "1,0 pp 1"]


def test_dry_runs_show_what_the_command_has(
    config: str, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fine-tuning has one role and examples; an evaluation rolls out and takes no steps."""
    examples = ["algorithm.global_batch_size=24", "data.response_column=label"]
    assert main(["sft", config, "--dry-run", *examples]) == 0
    shown = capsys.readouterr().out
    assert "a step: 24 examples" in shown and "rollout" not in shown and "critic" not in shown
    assert main(["eval", config, "--dry-run", f"data.eval_path={made / 'train.jsonl'}"]) == 0
    shown = capsys.readouterr().out
    assert "rollout" in shown and "a step" not in shown and "critic" not in shown


def test_a_dry_run_is_for_other_machines_too(
    config: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Files are read where they lie; what this machine cannot do is another's to tell."""
    monkeypatch.setattr("megarl.validate.engines.on_cuda", lambda: False)
    gpus = ["rollout.enable_sleep_mode=true", "actor.mesh=t2c2", "critic.mesh=t2c2"]
    for setting in gpus[:2]:
        assert main(["train", config, setting]) == 2
    assert main(["train", config, *gpus, "--dry-run"]) == 0
    assert "\nnot checked here: device and engines\n" in capsys.readouterr().out
    assert main(["train", config, *gpus, "--dry-run", "data.train_path=gone.jsonl"]) == 2
    assert "data.train_path" in capsys.readouterr().err
    assert main(["train", config, "rollout.engine_args.max_model_len=64", "--dry-run"]) == 2
    assert "rollout.engine_args.max_model_len" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_bytes((made / "model/config.json").read_bytes())
    there = ["data.train_path=gone.jsonl", f"actor.model.path={empty}"]
    assert main(["train", config, *gpus, *there, "--dry-run"]) == 0
    left = f"weights, tokenizer, data ({empty} has no weights), device and engines"
    assert f"\nnot checked here: {left}\n" in capsys.readouterr().out


def test_a_dry_run_looks_at_the_run_that_is_there(
    config: str, entry: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Other settings and a checkpoint that is not whole; nothing is written."""
    under_torchrun(monkeypatch, 0, 4)
    assert main(["train", config]) == 0
    folder = tmp_path / "run"
    (folder / "metrics.jsonl").touch()
    before = sorted(folder.rglob("*"))
    assert main(["train", config, "--dry-run"]) == 0
    assert main(["train", config, "--dry-run", "run.seed=7"]) == 2
    assert "holds a run with other settings: run.seed was 0 and is 7" in capsys.readouterr().err
    assert main(["sft", config, "--dry-run", "data.response_column=label"]) == 2
    assert main(["train", config, "--dry-run", "run.seed=7", "checkpoint.resume_mode=never"]) == 0
    assert sorted(folder.rglob("*")) == before
    (folder / "checkpoints/iter_0000002").mkdir(parents=True)
    (folder / "checkpoints/latest_checkpointed_iteration.txt").write_text("2\n")
    assert main(["train", config, "--dry-run"]) == 2
    assert "iter_0000002 cannot be read: state.json" in capsys.readouterr().err


def test_bad_input_is_one_message_and_status_2(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", config, "actor.mesh=t4"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("megarl: error: actor.mesh.tensor_model_parallel_size")
    assert error.count("\n") == 1
    assert main(["train", config, "run.step=3"]) == 2
    assert "did you mean run.steps?" in capsys.readouterr().err
    assert main(["train", config, "run.dir=/proc/nowhere/run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("megarl: error: run.dir /proc/nowhere/run cannot be written")
    assert error.count("\n") == 1


def test_no_traceback_in_a_process_of_its_own(config: str) -> None:
    command = [sys.executable, "-m", "megarl.cli.main", "train", config, "data.train_path=x.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("megarl: error: data.train_path")


def test_alone_it_starts_the_ranks_after_the_checks(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], int, str]] = []

    def fake(arguments: list[str], num_ranks: int, say: Any, *, module: str, saves: bool) -> int:
        assert not saves  # SIGTERM asks for a checkpoint only where there are some
        started.append((list(arguments), num_ranks, module))
        return 7

    monkeypatch.setattr(spawn, "spawn", fake)
    assert main(["train", config, "run.steps=3"]) == 7
    assert started == [(["train", config, "run.steps=3"], 4, "megarl.cli.main")]
    saved = tmp_path / "run" / cli_run.RESOLVED
    assert "steps: 3  # override" in saved.read_text()
    assert load_config(saved) == load_config(config, ["run.steps=3"])
    assert main(["train", config, "actor.mesh=t3"]) == 2
    assert len(started) == 1


def test_a_single_rank_runs_in_this_process(
    config: str, entry: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    single = ["actor.mesh=t1", "critic.mesh=t1", "rollout.tensor_parallel_size=1"]
    assert main(["train", config, *single]) == 0
    ((_, plan),) = entry
    assert plan.world_size == 1


def test_under_a_launcher_one_rank_of_a_node_speaks(
    config: str,
    entry: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    under_torchrun(monkeypatch, 1, 4)
    assert main(["train", config]) == 0
    assert entry[0][1].world_size == 4
    assert main(["train", config, "actor.mesh=t4"]) == 2
    assert capsys.readouterr().err == ""
    under_torchrun(monkeypatch, 0, 3)
    assert main(["train", config]) == 2
    assert "= 4 does not divide the pool's 3 ranks" in capsys.readouterr().err


def test_ranks_of_a_checked_config_read_no_data_again(
    config: str, entry: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    under_torchrun(monkeypatch, 0, 4)
    monkeypatch.setenv(spawn.CHECKED, "1")
    monkeypatch.setattr(spawn, "die_with_parent", lambda: None)
    assert main(["train", config, "data.train_path=gone.jsonl"]) == 0
    assert not (tmp_path / "run").exists()


def test_a_failed_run_has_its_own_status(
    config: str, entry: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fail(config: Any, plan: Any) -> int:
        raise RunError("reward mine raised on row 3")

    monkeypatch.setattr(sys.modules["fake_entry"], "run_training", fail)
    under_torchrun(monkeypatch, 0, 4)
    assert main(["train", config]) == 1
    assert capsys.readouterr().err == "megarl: error: reward mine raised on row 3\n"


def test_bench_gets_its_own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    module = ModuleType("megarl.bench.step")
    module.main = lambda arguments: seen.append(arguments)  # type: ignore[attr-defined]
    monkeypatch.setattr("megarl.cli.main.importlib.import_module", lambda name: module)
    assert main(["bench", "step", "--help", "-x"]) == 0
    assert seen == [["--help", "-x"]]


@pytest.mark.parametrize("argv", [[], ["trian"], ["bench", "none"], ["doctor", "x"], ["train"]])
def test_a_wrong_command_line_is_status_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2


def test_an_unknown_option_of_a_run_is_status_2(config: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", config, "--stepz", "3"])
    assert caught.value.code == 2


def test_doctor_finds_this_installation(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    text = capsys.readouterr().out
    for name in ("torch", "megatron-core", "vllm", "megarl_cpp (CPU)", "nvcc", "SLURM", "apex"):
        assert name in text


def test_doctor_says_what_is_missing_what_it_costs_and_the_cure() -> None:
    findings = [
        Finding("torch", "2.13", True, "nothing runs", "make venv"),
        Finding("vllm", None, False, "slow rollouts", "pip install vllm"),
        Finding("safetensors", None, True, "no checkpoints", "make venv"),
    ]
    text = report(findings, "a machine")
    assert "torch        2.13" in text
    assert "vllm         slow rollouts" in text and "-> pip install vllm" in text
    assert "REQUIRED: no checkpoints" in text


def test_public_names_are_lazy_and_the_version_is_one() -> None:
    assert megarl.load_config is load_config
    assert set(megarl.__all__) <= set(dir(megarl))
    with pytest.raises(AttributeError, match="nothing"):
        megarl.nothing  # noqa: B018
    setup = (Path(__file__).parents[2] / "setup.py").read_text()
    assert f'version="{megarl.__version__}"' in setup
