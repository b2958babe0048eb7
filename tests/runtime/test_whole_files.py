"""Files that have their names once they are whole."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from megarl.errors import RunError
from megarl.runtime.aside import write_whole


def test_the_older_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    write_whole(path, ["old\n"])

    def lines() -> Iterator[str]:
        yield "new\n"
        assert path.read_text() == "old\n"
        yield "é\n"

    write_whole(path, lines())
    assert path.read_text(encoding="utf-8") == "new\né\n"
    assert [each.name for each in tmp_path.iterdir()] == ["samples.jsonl"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    write_whole(path, ["old\n"])

    def lines() -> Iterator[str]:
        yield "new\n"
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=r"samples.jsonl: No space left .* make room"):
        write_whole(path, lines())
    assert path.read_text() == "old\n" and len(list(tmp_path.iterdir())) == 1
