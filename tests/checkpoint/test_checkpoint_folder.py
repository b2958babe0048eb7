"""Checkpoints on disk: what is kept, what is named the newest, what a kill leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from megarl.checkpoint.folder import LATEST, CheckpointFolder
from megarl.config.load import load_with_origins
from megarl.config.resume import check_same_run
from megarl.config.save import save_resolved
from megarl.errors import ConfigError, DataError
from megarl.observe.metrics_file import MetricsWriter, drop_after, read_metrics


def write(folder: CheckpointFolder, step: int, keep_last: int = 2, keep_every: int = 0) -> None:
    """One checkpoint with a file in each of two parts."""
    folder.begin(step, ["actor", "critic"])
    for part in ("actor", "critic"):
        (folder.aside(step) / part / "data").write_text(str(step))
    folder.finish(step, keep_last, keep_every)


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
    save_resolved(loaded.config, loaded.origins, saved)
    free = ["run.steps=7", "actor.mesh=t2p2", "observe.progress=false", "weight_sync.alias=true"]
    check_same_run(saved, load_with_origins(None, ["actor.optimizer.lr=1e-3", *free]).config)
    other = load_with_origins(None, ["actor.optimizer.lr=2e-3", "algorithm.kl_coef=0.1"]).config
    with pytest.raises(ConfigError) as caught:
        check_same_run(saved, other)
    for words in ("lr was 0.001 and is 0.002", "kl_coef was 0.0 and is 0.1", "resume_mode=never"):
        assert words in str(caught.value)


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
