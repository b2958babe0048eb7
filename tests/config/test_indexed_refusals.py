"""What `validate` refuses of indexed data sets."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from indexed_corpus import write_corpus
from refusing import check
from refusing import refused as refused_with

DOCUMENTS = [[2 + (i + j) % 40 for j in range(20)] for i in range(100)]


@pytest.fixture
def corpus(own: Path) -> Path:
    """Beside the model: 100 documents of 20 tokens; its prefix."""
    return Path(write_corpus(own / "corpus", DOCUMENTS, np.uint16))


def settings(*overrides: str, blend: object) -> tuple[str, ...]:
    base = ("data.train_path=''", f"data.indexed.blend={blend}", "data.indexed.seq_length=16")
    return (*base, *overrides)


def refused(words: list[str], own: Path, *overrides: str, blend: object) -> None:
    refused_with(words, own, *settings(*overrides, blend=blend), purpose="pretrain")


def test_right_ones(own: Path, corpus: Path) -> None:
    for blend in (f"[{corpus}]", f"[[0.3,{corpus}],[2,{corpus}]]"):
        check(own, *settings("run.eval_interval=5", blend=blend), purpose="pretrain")
    # For other purposes it is not read.
    check(own, "data.indexed.blend=[nowhere]", "data.indexed.seq_length=9999")


def test_files_that_are_not_there_or_whole(own: Path, corpus: Path) -> None:
    bin_, idx = Path(f"{corpus}.bin"), Path(f"{corpus}.idx")
    whole, index = bin_.read_bytes(), idx.read_bytes()
    refused(["data.indexed.blend", "nowhere.idx is missing"], own, blend=f"[{own / 'nowhere'}]")
    refused(["corpus.bin.idx is missing", "without its ending"], own, blend=f"[{bin_}]")
    os.truncate(bin_, len(whole) - 2)
    refused(
        ["corpus.bin is truncated", "2000 tokens", "4000 bytes", "3998"], own, blend=[str(corpus)]
    )
    bin_.write_bytes(whole + b"\0\0")
    refused(["corpus.bin is of another data set", "4002"], own, blend=[str(corpus)])
    bin_.write_bytes(b"")
    refused(["corpus.bin is empty"], own, blend=[str(corpus)])
    bin_.unlink()
    refused(["corpus.bin is missing"], own, blend=[str(corpus)])
    bin_.write_bytes(whole)
    os.truncate(idx, len(index) - 8)
    refused(["corpus.idx is truncated", "100 documents"], own, blend=[str(corpus)])
    idx.write_bytes(index[:20])
    refused(["corpus.idx"], own, blend=[str(corpus)])
    idx.write_bytes(b"GARBAGE" + index[7:])
    refused(["corpus.idx is no index", "GARBAGE"], own, blend=[str(corpus)])
    idx.unlink()
    refused(["corpus.idx is missing", "did not end"], own, blend=[str(corpus)])


def test_blends_that_cannot_be(own: Path, corpus: Path) -> None:
    for weight in (0, -1, "x", "true", ".nan"):
        refused(["the weight of", "above 0"], own, blend=f"[[{weight},{corpus}]]")
    refused(["no [weight, prefix]"], own, blend=f"[[1,{corpus}],{corpus}]")
    refused(["no [weight, prefix]"], own, blend="[[1,2,3]]")
    refused(["no [weight, prefix]"], own, blend=f"[1,{corpus}]")
    refused(["must be a list"], own, blend=corpus)
    both = f"data.train_path={own / 'train.jsonl'}"
    refused(["data.train_path", "reads data.indexed.blend alone"], own, both, blend=f"[{corpus}]")
    refused(["data.indexed.blend is empty"], own, blend="[]")


def test_splits_that_cannot_be(own: Path, corpus: Path) -> None:
    for split in ("a,b", "0,1,0", "1,-1,0", "1,1,1,1", "''", "nan,1,0", "inf"):
        refused(["data.indexed.split", "99,1,0"], own, f"data.indexed.split='{split}'",
                blend=f"[{corpus}]")  # fmt: skip
    eval_ = "run.eval_interval=5"
    check(own, *settings("data.indexed.split='1,0,0'", blend=f"[{corpus}]"), purpose="pretrain")
    refused(["no documents for evaluation", "run.eval_interval=0"], own, eval_,
            "data.indexed.split='1,0,0'", blend=f"[{corpus}]")  # fmt: skip
    refused(["20 tokens for evaluation", "documents 99 to 100 of 100", "20 + 1"], own, eval_,
            "data.indexed.seq_length=20", blend=f"[{corpus}]")  # fmt: skip


def test_samples_that_are_too_long(own: Path, corpus: Path) -> None:
    refused(["data.indexed.seq_length 257", "max_position_embeddings 256"], own,
            "data.indexed.seq_length=257", blend=f"[{corpus}]")  # fmt: skip
    # What a prompt and a response would take does not matter here.
    longer = "data.max_prompt_length=500"
    check(own, *settings(longer, blend=f"[{corpus}]"), purpose="pretrain")
    short = write_corpus(own / "short", [[1, 2]] * 5)
    refused(["10 tokens for training", "16 + 1"], own, blend=f"[{short}]")


def test_tokens_of_another_tokenizer(own: Path) -> None:
    other = write_corpus(own / "other", [*DOCUMENTS, [64, 2, 3]])
    refused(["holds token 64", "vocab_size 64", "another tokenizer"], own,
            "data.indexed.split=1", blend=f"[{other}]")  # fmt: skip
