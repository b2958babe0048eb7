"""Texts to indexed data sets: every token, the same for all workers, and nothing that is half."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from indexed_corpus import read_corpus
from transformers import AutoTokenizer

from megarl.data.chunks import chunks_of
from megarl.data.index_file import read_index
from megarl.data.preprocess import preprocess
from megarl.errors import ConfigError, MegaRLError

SCRIPT = Path(__file__).parents[2] / "tools" / "preprocess_data.py"
TEXTS = [" ".join(f"w{(i * 7 + j) % 48}" for j in range(i % 30)) for i in range(400)]
"""Every thirtieth is empty."""


def write_rows(path: Path, rows: list[Any]) -> Path:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=60)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(texts: list[str]) -> list[dict[str, Any]]:
    return [{"id": i, "text": text} for i, text in enumerate(texts)]


def make(made: Path, out: Path, *inputs: Path, **options: Any) -> Path:
    written = preprocess(inputs, out, str(made / "model"), progress=False, **options)
    return written[0].prefix


def content(prefix: Path) -> tuple[bytes, bytes]:
    return Path(f"{prefix}.bin").read_bytes(), Path(f"{prefix}.idx").read_bytes()


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_documents_are_the_tokenizers(suffix: str, made: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / f"texts{suffix}", rows_of(TEXTS))
    prefix = make(made, tmp_path / "out", file, append_eod=True)
    assert prefix.name == "out_text_document"
    tokenizer = AutoTokenizer.from_pretrained(made / "model")
    expected = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in TEXTS if text]
    assert read_corpus(prefix) == expected
    index = read_index(str(prefix))
    assert index.dtype is np.uint16
    assert index.lengths.tolist() == [len(document) for document in expected]
    assert sorted(file.name for file in tmp_path.glob("out*")) == [
        "out_text_document.bin",
        "out_text_document.idx",
    ]


def test_without_end_tokens_and_from_several_columns(made: Path, tmp_path: Path) -> None:
    rows = [{"a": {"b": f"w{i}"}, "c": f"w{i + 1} w{i + 2}"} for i in range(20)]
    file = write_rows(tmp_path / "texts.jsonl", rows)
    written = preprocess(
        [file], tmp_path / "x", str(made / "model"), columns=("a.b", "c"), progress=False
    )
    assert [one.prefix.name for one in written] == ["x_a.b_document", "x_c_document"]
    assert [one.num_tokens for one in written] == [20, 40]
    assert read_corpus(written[0].prefix) == [[i + 2] for i in range(20)]


def test_workers_and_chunks_change_nothing(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write_rows(tmp_path / "first.jsonl", rows_of(TEXTS[:130]))
    second = write_rows(tmp_path / "second.parquet", rows_of(TEXTS[130:]))
    whole = content(make(made, tmp_path / "one", first, second, append_eod=True))
    for chunk_bytes in (97, 1000):
        chunks = chunks_of([first, second], chunk_bytes)
        assert len(chunks) > 5
        texts = [text for chunk in chunks for (text,) in chunk.texts(["text"])]
        assert texts == TEXTS
    monkeypatch.setattr("megarl.data.preprocess.chunks_of", lambda paths: chunks_of(paths, 2000))
    for workers in (1, 3):
        prefix = make(
            made, tmp_path / f"w{workers}", first, second, append_eod=True, workers=workers
        )
        assert content(prefix) == whole


def test_lines_without_an_end_and_between(made: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('\n{"text": "w1"}\r\n\n{"text": "w2\\nw3"}')
    for chunk_bytes in (1, 5, 100):
        texts = [t for chunk in chunks_of([file], chunk_bytes) for (t,) in chunk.texts(["text"])]
        assert texts == ["w1", "w2\nw3"]
    assert read_corpus(make(made, tmp_path / "out", file)) == [[3], [4, 5]]


BAD: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "broken": (
        lambda file: file.write_text('{"text": "w1"}\n{"text": "w2"}\n{"text": "w'),
        ["texts.jsonl, line 3: not a JSON object"],
    ),
    "no object": (
        lambda file: file.write_text('{"text": "w1"}\n["w2"]\n'),
        ["texts.jsonl, line 2", "a list instead of a JSON object"],
    ),
    "not utf-8": (
        lambda file: file.write_bytes(b'{"text": "w1"}\n{"text": "\xff"}\n'),
        ["texts.jsonl, line 2", "not a JSON object"],
    ),
    "no column": (
        lambda file: write_rows(file, [{"text": "w1"}, {"content": "w2", "id": 1}]),
        ["line 2", "no column 'text'", "content, id", "--json-keys"],
    ),
    "a number": (
        lambda file: write_rows(file, [*rows_of(TEXTS), {"text": 5}]),
        ["line 401", "'text' holds 5", "no text"],
    ),
    "null": (lambda file: write_rows(file, [{"text": None}]), ["line 1", "holds None"]),
    "empty": (lambda file: file.write_text(""), ["no text to write"]),
    "empty texts": (lambda file: write_rows(file, rows_of(["", ""])), ["2 texts, all of them"]),
    "missing": (lambda file: None, ["--input", "texts.jsonl is not a file"]),
}


@pytest.mark.parametrize(("name", "workers"), [*((name, 1) for name in BAD), ("a number", 2)])
def test_bad_inputs(
    name: str, workers: int, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line numbers are right in whatever chunk the line is; processes say the same."""
    change, words = BAD[name]
    file = tmp_path / "texts.jsonl"
    change(file)
    monkeypatch.setattr("megarl.data.preprocess.chunks_of", lambda paths: chunks_of(paths, 20))
    with pytest.raises(ConfigError) as caught:
        make(made, tmp_path / "out", file, workers=workers)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"
    assert not list(tmp_path.glob("out*"))


def test_bad_parquet(made: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "texts.parquet", rows_of(TEXTS))
    with pytest.raises(ConfigError, match="row 1: there is no column 'body'; .*id, text"):
        make(made, tmp_path / "out", file, columns=("body",))
    with pytest.raises(ConfigError, match="row 1: column 'id' holds 0, which is no text"):
        make(made, tmp_path / "out", file, columns=("id",))
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ConfigError, match="texts.parquet: not readable as parquet"):
        make(made, tmp_path / "out", file)
    assert not list(tmp_path.glob("out*"))


def test_outputs_and_settings_that_cannot_be(made: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "texts.jsonl", rows_of(TEXTS))
    taken = tmp_path / "taken_text_document.idx"
    taken.write_text("mine")
    cases: list[tuple[str, dict[str, Any]]] = [
        ("taken_text_document.idx exists already", {"out": tmp_path / "taken"}),
        ("texts.jsonl cannot be written", {"out": file / "out"}),
        ("--workers is 0", {"workers": 0}),
        ("a column twice", {"columns": ("text", "text")}),
        ("there is no such folder", {"made": tmp_path}),
        ("unknown format", {"file": Path(__file__)}),
    ]
    for words, changes in cases:
        asked = {"made": made, "out": tmp_path / "out", "file": file} | changes
        with pytest.raises(ConfigError, match=words):
            make(asked.pop("made"), asked.pop("out"), asked.pop("file"), **asked)
    assert taken.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [taken.name, file.name]


@pytest.mark.parametrize("part", ["bin", pytest.param("idx", marks=pytest.mark.slow)])
def test_a_disk_that_fills_up(part: str, made: Path, tmp_path: Path) -> None:
    """Files may not grow beyond 100 KB: long documents fill the .bin, many short ones the .idx."""
    texts = ["w1 " * 100_000] if part == "bin" else ["w1"] * 20_000
    file = write_rows(tmp_path / "texts.jsonl", rows_of(texts))
    done = run_script(
        made, file, tmp_path / "out",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )  # fmt: skip
    assert done.wait(120) == 1
    errors = [line for line in done.communicate()[1].splitlines() if "megarl: error" in line]
    assert len(errors) == 1 and "File too large" in errors[0] and "make room" in errors[0]
    assert not list(tmp_path.glob("out*"))


@pytest.mark.slow
def test_a_kill_in_the_middle(made: Path, tmp_path: Path) -> None:
    """No output under its name, no process left; the same command then does all of the work."""
    texts = [" ".join(TEXTS[29:59])] * 6000
    file = write_rows(tmp_path / "texts.jsonl", rows_of(texts))
    assert file.stat().st_size > 10_000_000, "less would be one chunk or two"
    running = run_script(made, file, tmp_path / "out", "--workers", "2")
    growing = tmp_path / "out.partial" / "out_text_document.bin"
    while not growing.exists() or not growing.stat().st_size:
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.01)
    workers = children(running.pid)
    os.kill(running.pid, signal.SIGKILL)
    running.communicate()
    assert len(workers) >= 2
    assert not list(tmp_path.glob("out_*"))
    deadline = time.monotonic() + 30
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "workers outlive the command"
        time.sleep(0.05)
    again = make(made, tmp_path / "out", file)
    assert read_index(str(again)).num_documents == 6000
    assert not list(tmp_path.glob("out.partial*"))


def test_two_at_the_same_time(made: Path, tmp_path: Path) -> None:
    import fcntl

    file = write_rows(tmp_path / "texts.jsonl", rows_of(TEXTS))
    with (tmp_path / "out.partial.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(MegaRLError, match="another process is writing"):
            make(made, tmp_path / "out", file)
    make(made, tmp_path / "out", file)


def run_script(
    made: Path, file: Path, out: Path, *options: str, preexec_fn: Callable[[], Any] | None = None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), "--input", str(file), "--tokenizer", str(made / "model"),
         "--output-prefix", str(out), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=preexec_fn,
    )  # fmt: skip


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """Whether it runs: one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
