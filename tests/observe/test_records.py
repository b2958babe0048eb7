"""A second run in a folder leaves the first one's records whole, in a folder of their own."""

from pathlib import Path

from megarl.observe.records import set_aside


def test_each_run_keeps_its_own(tmp_path: Path) -> None:
    assert set_aside(tmp_path / "none") is None
    (tmp_path / "config.yaml").write_text("settings of a run that never began")
    assert set_aside(tmp_path) is None
    for number in (1, 2):
        records = ("metrics.jsonl", "answers-step3.jsonl", "samples-step3.jsonl", "samples.jsonl")
        for name in (*records, "events.out.tfevents.17", "notes.txt"):
            (tmp_path / name).write_text(f"{number}")
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text(f"{number}")
        assert set_aside(tmp_path) == tmp_path / f"previous-{number}"
    for number in (1, 2):
        kept = tmp_path / f"previous-{number}"
        for name in ("metrics.jsonl", "model/config.json"):
            assert (kept / name).read_text() == str(number)
        assert (kept / "answers-step3.jsonl").exists() and (
            kept / "events.out.tfevents.17"
        ).exists()
    assert (tmp_path / "previous-1" / "config.yaml").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "previous-1", "previous-2"}


def test_what_the_next_run_reads_stays(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "model").mkdir()
    assert set_aside(tmp_path, [str(tmp_path / "model")]) is not None
    assert (tmp_path / "model").exists()


def test_checkpoints_are_set_aside_without_what_is_half_written(tmp_path: Path) -> None:
    """Even where no metrics are: the next run must not go on from them."""
    for name in ("iter_0000001", "iter_0000002.partial"):
        (tmp_path / "checkpoints" / name / "actor").mkdir(parents=True)
    kept = set_aside(tmp_path)
    assert kept is not None and not (tmp_path / "checkpoints").exists()
    assert [path.name for path in (kept / "checkpoints").iterdir()] == ["iter_0000001"]
