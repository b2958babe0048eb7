"""Checkpoints on disk: what is kept, what is named the newest, what a kill leaves behind."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from megarl.checkpoint import folder as module
from megarl.checkpoint.fingerprint import fingerprint
from megarl.checkpoint.folder import (
    LATEST,
    STATE,
    CheckpointFolder,
    check_readable,
    file_sizes,
)
from megarl.config.load import load_with_origins
from megarl.config.resume import check_same_run
from megarl.config.save import save_resolved
from megarl.errors import ConfigError, DataError
from megarl.observe.metrics_file import MetricsWriter, drop_after, read_metrics
from megarl.runtime import aside


def write(folder: CheckpointFolder, step: int, inputs: Any = None, **kept: int) -> None:
    """One checkpoint with a file in each of two parts."""
    folder.begin(step, ["actor", "critic"])
    for part in ("actor", "critic"):
        (folder.aside(step) / part / "data").write_text(str(step))
    state = {"step": step, "files": file_sizes(folder.aside(step)), "inputs": inputs or {}}
    (folder.aside(step) / STATE).write_text(json.dumps(state))
    folder.finish(step, kept.get("keep_last", 2), kept.get("keep_every", 0), kept.get("best"))


def test_the_newest_is_named_when_it_is_whole(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    assert folder.latest() is None and folder.steps() == []
    write(folder, 3)
    folder.begin(4, ["actor"])
    assert folder.latest() == 3 and folder.steps() == [3], "4 is not whole"
    write(folder, 5)
    assert folder.latest() == 5
    assert not list(folder.root.glob("*.partial")), "what a kill left is gone"


def test_what_is_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for step in range(1, 8):
        write(folder, step, keep_last=2, keep_every=3)
    assert folder.steps() == [3, 6, 7]
    assert (folder.path(3) / "critic" / "data").read_text() == "3"
    write(folder, 8, keep_last=1, best=7)
    write(folder, 9, keep_last=1, best=7)
    assert folder.steps() == [7, 9]
    other = CheckpointFolder(tmp_path / "all")
    for step in range(1, 4):
        write(other, step, keep_last=0)
    assert other.steps() == [1, 2, 3]


def test_a_step_that_is_made_again_replaces_the_first(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    write(folder, 2)
    (folder.path(2) / "old").touch()
    write(folder, 2)
    assert not (folder.path(2) / "old").exists()


class Killed(BaseException):
    """As if the process were gone."""


@pytest.mark.parametrize("remake", [False, True])
def test_wherever_a_save_is_killed_the_newest_is_whole(
    remake: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each change of the folder in turn; remake: a checkpoint of that step lies there."""
    calls = 0

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == killed_at:
                raise Killed
            return function(*arguments, **options)

        return call

    changes: dict[Any, tuple[str, ...]] = {
        os: ("replace", "rename"),
        shutil: ("rmtree",),
        aside: ("sync",),
        module: ("write_synced",),
    }
    points = 0
    for killed_at in range(1, 20):
        folder = CheckpointFolder(tmp_path / str(killed_at))
        for step in (1, 2, 3) if remake else (1, 2):
            write(folder, step)
        if remake:
            (folder.root / LATEST).write_text("2\n")
        calls = 0
        with monkeypatch.context() as patched:
            for owner, names in changes.items():
                for name in names:
                    patched.setattr(owner, name, counted(getattr(owner, name)))
            try:
                write(folder, 3)
            except Killed:
                points += 1
        (step, *_) = folder.candidates("auto")
        assert step in (2, 3) and folder.state(step)["step"] == step
        write(folder, 3)
        assert folder.latest() == 3 and folder.steps() == [2, 3]
        assert not list(folder.root.glob("*.partial"))
    assert 5 <= points < 15, "every change was met, and the last round was not disturbed"


def test_which_a_run_may_go_on_from(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    assert folder.candidates("auto") == folder.candidates("previous") == []
    for step in (1, 2, 3, 4):
        write(folder, step, keep_last=0)
    assert folder.candidates("auto") == [4] and folder.candidates("never") == []
    (tmp_path / LATEST).write_text("3")
    assert folder.candidates("previous") == [3, 2, 1], "4 is not what the file names, nor before it"
    (tmp_path / LATEST).write_text("9")
    assert folder.candidates("previous") == [4, 3, 2, 1]


def test_what_was_left_out_does_not_count_as_kept(tmp_path: Path) -> None:
    """Or keep_last would remove the one that can be read, and keep the one that cannot."""
    folder = CheckpointFolder(tmp_path)
    for step in (2, 3):
        write(folder, step)
    (folder.path(3) / "actor" / "data").unlink()
    with pytest.raises(DataError, match="actor/data: No such file"):
        folder.state(3)
    folder.leave_out([3], 2)
    assert folder.candidates("auto") == [2]
    write(folder, 4, keep_last=2)
    assert folder.steps() == [2, 4] and (tmp_path / "iter_0000003.unreadable").is_dir()


def test_later_checkpoints_of_a_run_that_went_back_do_not_count_as_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for step in (2, 4, 6, 8):
        write(folder, step, keep_last=0)
    (tmp_path / LATEST).write_text("2")
    write(folder, 3, keep_last=2)
    assert folder.latest() == 3 and {2, 3} <= set(folder.steps())


@pytest.mark.parametrize("text", ["7", "", "nonsense"])
def test_a_name_of_nothing_is_refused(tmp_path: Path, text: str) -> None:
    folder = CheckpointFolder(tmp_path)
    write(folder, 2)
    (tmp_path / LATEST).write_text(text)
    with pytest.raises(DataError, match=r"of steps \[2\]"):
        folder.latest()


def test_other_settings_do_not_go_on(tmp_path: Path) -> None:
    saved = tmp_path / "config.yaml"
    loaded = load_with_origins(None, ["actor.optimizer.lr=1e-3"])
    save_resolved(loaded.config, loaded.origins, saved, "train")
    free = ["run.steps=7", "actor.mesh=t2p2", "observe.progress=false", "weight_sync.alias=true"]
    same = load_with_origins(None, ["actor.optimizer.lr=1e-3", *free]).config
    check_same_run(saved, same, "train")
    with pytest.raises(ConfigError, match=r"holds a run of `megarl train`, .* `megarl sft`"):
        check_same_run(saved, same, "sft")
    other = load_with_origins(None, ["actor.optimizer.lr=2e-3", "algorithm.kl_coef=0.1"]).config
    with pytest.raises(ConfigError) as caught:
        check_same_run(saved, other, "train")
    for words in ("lr was 0.001 and is 0.002", "kl_coef was 0.0 and is 0.1", "resume_mode=never"):
        assert words in str(caught.value)


def test_a_setting_that_an_older_version_did_not_know(tmp_path: Path) -> None:
    """It had what is the default now; a file that a power cut emptied has nothing to compare."""
    saved = tmp_path / "config.yaml"
    saved.write_text("actor: {optimizer: {lr: 0.001}}\n")
    check_same_run(saved, load_with_origins(None, ["actor.optimizer.lr=1e-3"]).config, "train")
    other = ["actor.optimizer.lr=1e-3", "algorithm.lam=0.9"]
    with pytest.raises(ConfigError, match=r"algorithm.lam was 1.0 and is 0.9"):
        check_same_run(saved, load_with_origins(None, other).config, "train")
    saved.write_text("")
    with pytest.raises(ConfigError, match=r"lr was 1e-06 and is 0.001"):
        check_same_run(saved, load_with_origins(None, ["actor.optimizer.lr=1e-3"]).config, "train")


def test_other_data_and_fewer_steps_do_not_go_on(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("a row\n")
    given = [f"data.train_path={data}", f"run.dir={tmp_path}", "run.steps=5"]
    config = load_with_origins(None, given).config
    folder = CheckpointFolder(tmp_path / "checkpoints")
    write(folder, 5, inputs=module.input_facts(config))
    check_readable(config)
    with pytest.raises(ConfigError, match=r"of step 5, and run.steps is 4"):
        check_readable(load_with_origins(None, [*given, "run.steps=4"]).config)
    data.write_text("a roW\n")
    words = r"data.train_path: the file was 6 bytes, .* is 6 bytes, "
    with pytest.raises(ConfigError, match=words):
        check_readable(config)


def test_a_model_that_changed_does_not_go_on(tmp_path: Path) -> None:
    """Settings of the architecture, and the tokenizer; not who wrote the file."""
    model = tmp_path / "model"
    model.mkdir()
    hf = {"rope_theta": 10000.0, "head_dim": 16, "transformers_version": "5"}

    def write_model(**changes: object) -> None:
        (model / "config.json").write_text(json.dumps(hf | changes))

    write_model()
    (model / "tokenizer.json").write_text("{}")
    config = load_with_origins(None, [f"actor.model.path={model}", f"run.dir={tmp_path}"]).config
    write(CheckpointFolder(tmp_path / "checkpoints"), 5, inputs=module.input_facts(config))
    write_model(transformers_version="6")
    check_readable(config)
    write_model(rope_theta=77.0, head_dim=32)
    words = r"actor.model.path: head_dim was 16 and is 32; .*rope_theta was 10000.0 and is 77.0"
    with pytest.raises(ConfigError, match=words):
        check_readable(config)
    write_model()
    (model / "tokenizer.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"tokenizer.json was 2 bytes"):
        check_readable(config)


def test_every_part_of_a_large_file_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megarl.checkpoint.fingerprint.WHOLE_BYTES", 640)
    file = tmp_path / "large"
    file.write_bytes(bytes(6400))
    before = fingerprint(file)
    for place in (0, 6390 * 32 // 63, 6399):
        file.write_bytes(bytes(place) + b"x" + bytes(6399 - place))
        assert fingerprint(file) != before


def test_a_longer_run_would_have_had_another_learning_rate(tmp_path: Path) -> None:
    """Where it decays over the whole run; Megatron-Core goes on with the one it was saved with."""
    saved, decays = tmp_path / "config.yaml", ["actor.optimizer.lr_decay_style=cosine"]
    loaded = load_with_origins(None, decays)
    save_resolved(loaded.config, loaded.origins, saved, "train")
    check_same_run(saved, load_with_origins(None, [*decays, "actor.mesh=t2"]).config, "train")
    with pytest.raises(ConfigError, match=r"run.steps was 100 and is 7, and actor.optimizer.lr"):
        check_same_run(saved, load_with_origins(None, [*decays, "run.steps=7"]).config, "train")
    given = [*decays, "actor.optimizer.lr_decay_steps=50"]
    loaded = load_with_origins(None, given)
    save_resolved(loaded.config, loaded.origins, saved, "train")
    check_same_run(saved, load_with_origins(None, [*given, "run.steps=7"]).config, "train")


def test_later_metrics_are_cut_off_under_an_open_writer(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)
    for step in range(4):
        writer.write(step, {"reward": float(step)})
    path.open("ab").write(b'{"step": 4, "rew')
    drop_after(path, 1)
    writer.write(2, {"reward": 20.0})
    writer.close()
    assert read_metrics(path) == {0: {"reward": 0.0}, 1: {"reward": 1.0}, 2: {"reward": 20.0}}
