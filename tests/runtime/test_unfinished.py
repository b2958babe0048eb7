"""What is being written when a process is ended from the side."""

from pathlib import Path

from megarl.runtime import unfinished
from megarl.runtime.aside import work_folder


def test_nothing_of_an_unfinished_folder_stays(tmp_path: Path) -> None:
    """Neither what was written, nor the lock that kept others away."""
    with work_folder(tmp_path / "model.partial") as folder:
        (folder / "config.json").write_text("{}")
        assert len(list(tmp_path.iterdir())) == 2
        unfinished.remove_all()  # and the process would end here
        assert not list(tmp_path.iterdir())


def test_what_is_finished_stays(tmp_path: Path) -> None:
    with work_folder(tmp_path / "model.partial") as folder:
        (folder / "config.json").write_text("{}")
        folder.rename(tmp_path / "model")
    unfinished.remove_all()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
