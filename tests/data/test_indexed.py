"""Samples of indexed data sets, against documents that are strung together and cut by hand."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from indexed_corpus import numbered_documents, write_corpus

from megarl.config.schema import IndexedDataConfig
from megarl.data.blend import document_ranges
from megarl.data.indexed import IndexedData, IndexedSamples, open_indexed
from megarl.errors import ConfigError, MegaRLError

SEQ = 16
MANY = 1 << 20
"""More tokens than any data set here has."""


def opened(
    blend: Sequence[Any], where: Path, train: int, held: int = 0, seed: int = 3, **settings: Any
) -> IndexedData:
    config = IndexedDataConfig(
        **({"blend": list(blend), "split": "1,0,0", "seq_length": SEQ} | settings)
    )
    return open_indexed(
        config,
        num_train_samples=train,
        num_eval_samples=held,
        seed=seed,
        vocab_size=MANY,
        eod=7,
        run_dir=where,
    )


def targets(samples: IndexedSamples) -> Counter[int]:
    return Counter(token for sample in samples for token in sample.tokens[1:].tolist())


def stream_of(samples: IndexedSamples) -> list[int]:
    """The samples put back in a row: each begins with the token that another one ends with."""
    after = {int(sample.tokens[0]): sample.tokens.tolist() for sample in samples}
    last = {int(sample.tokens[-1]) for sample in samples}
    (first,) = after.keys() - last
    found = [first]
    while found[-1] in after:
        found += after.pop(found[-1])[1:]
    assert not after, "windows that no other one leads to"
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_one_epoch_is_the_documents_in_a_row(seed: int, tmp_path: Path) -> None:
    """All documents, whole, in some order, each token a target once; but the tail that is cut."""
    documents = numbered_documents(60, seed)
    total = sum(map(len, documents))
    prefix = write_corpus(tmp_path / "c", documents)
    count = (total - 1) // SEQ
    train = opened([prefix], tmp_path, count, seed=seed).train
    assert len(train) == count
    assert all(sample.tokens.shape == (SEQ + 1,) for sample in train)
    assert train[0].tokens.dtype == torch.int64 and train[0].learned.dtype == torch.bool
    stream = stream_of(train)
    assert len(stream) == count * SEQ + 1 and set(targets(train).values()) == {1}
    begins = {document[0]: document for document in documents}
    rebuilt: list[int] = []
    while len(rebuilt) < len(stream):
        rebuilt += begins.pop(stream[len(rebuilt)])
    assert rebuilt[: len(stream)] == stream
    assert stream != sorted(stream), "documents are shuffled"
    firsts = [int(sample.tokens[0]) for sample in train]
    places = [stream.index(token) // SEQ for token in firsts]
    assert sorted(places) == list(range(count)) and places != sorted(places), "and so are samples"


def test_every_epoch_has_every_token_once(tmp_path: Path) -> None:
    documents = numbered_documents(40, 5)
    total = sum(map(len, documents))
    prefix = write_corpus(tmp_path / "c", documents)
    epochs = 3
    count = (epochs * total - 1) // SEQ
    found = targets(opened([prefix], tmp_path, count).train)
    assert sum(found.values()) == count * SEQ
    missing = {token: epochs - found[token] for token in range(total) if found[token] != epochs}
    assert all(times > 0 for times in missing.values()), "a token came too often"
    assert sum(missing.values()) == epochs * total - count * SEQ <= SEQ


def test_parts_share_no_document(tmp_path: Path) -> None:
    documents = numbered_documents(50, 2)
    prefix = write_corpus(tmp_path / "c", documents)
    (begin, middle), (_, end) = document_ranges("70,20,10", 50)
    assert (begin, middle, end) == (0, 35, 45)
    data = opened([prefix], tmp_path, 60, 20, split="70,20,10")
    assert data.eval is not None and len(data.eval) == 20
    border, top = documents[middle][0], documents[end][0]
    assert set(targets(data.train)) <= set(range(border))
    assert set(targets(data.eval)) <= set(range(border, top))
    alone = opened([prefix], tmp_path, 60, split="70,20,10")
    assert alone.eval is None and alone.digest == data.digest
    assert all(
        torch.equal(a.tokens, b.tokens) for a, b in zip(alone.train, data.train, strict=True)
    )


def test_ranges_are_megatrons() -> None:
    from megatron.core.datasets.blended_megatron_dataset_config import (
        convert_split_vector_to_split_matrix,
        parse_and_normalize_split,
    )

    for split in ("99,1,0", "969,30,1", "1,1,1", "0.9,0.1", "1", "7,3,11"):
        matrix = convert_split_vector_to_split_matrix(parse_and_normalize_split(split))
        for count in (*range(1, 60), 997, 12345):
            theirs = [
                (round(part[0] * float(count)), round(part[1] * float(count)))
                for part in matrix[:2]
                if part
            ]
            ours = [part for part in document_ranges(split, count)][: len(theirs)]
            assert ours == theirs, (split, count)


def test_shares_of_a_blend(tmp_path: Path) -> None:
    """At every step a data set's share is right to a sample or two, whatever its size."""
    weights = (5.0, 3.0, 0.5)
    blend = []
    for number, weight in enumerate(weights):
        documents = numbered_documents(20 * (number + 1), number, first=number * 10_000)
        blend.append([weight, write_corpus(tmp_path / f"c{number}", documents)])
    train = opened(blend, tmp_path, 500).train
    counts = Counter[int]()
    for position, sample in enumerate(train, start=1):
        assert {token // 10_000 for token in sample.tokens.tolist()} == {sample.corpus}
        counts[sample.corpus] += 1
        for corpus, weight in enumerate(weights):
            assert abs(counts[corpus] - position * weight / sum(weights)) <= 1.5
    plain = opened([prefix for _, prefix in blend], tmp_path, 500).train
    sizes = [sum(map(len, numbered_documents(20 * (n + 1), n))) for n in range(3)]
    shares = Counter(sample.corpus for sample in plain)
    assert all(abs(shares[n] - 500 * sizes[n] / sum(sizes)) <= 1.5 for n in range(3))


def test_small_blends_of_many(tmp_path: Path) -> None:
    """Megatron-Core's own margin of half a percent is too small for these."""
    blend = [
        [1.0 + 30 * (n == 0), write_corpus(tmp_path / f"c{n}", numbered_documents(9, n))]
        for n in range(30)
    ]
    for count in (1, 7, 40, 200):
        train = opened(blend, tmp_path, count).train
        assert len(list(train)) == count


def same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return all(torch.equal(x.tokens, y.tokens) for x, y in zip(a, b, strict=True))


def test_the_order_is_the_seeds_and_the_files(tmp_path: Path) -> None:
    blend = [
        [2, write_corpus(tmp_path / "a", numbered_documents(80, 0))],
        [1, write_corpus(tmp_path / "b", numbered_documents(80, 1, first=10_000), np.uint16)],
    ]
    first = opened(blend, tmp_path, 50)
    again = opened(blend, tmp_path, 50)
    anew = opened(blend, tmp_path / "elsewhere", 50)
    assert same(first.train, again.train) and same(first.train, anew.train)
    assert first.digest == again.digest == anew.digest
    other = opened(blend, tmp_path, 50, seed=4)
    assert not same(first.train, other.train) and other.digest != first.digest
    assert same(first.train[7:12], [first.train[i] for i in range(7, 12)])
    assert torch.equal(first.train[-1].tokens, first.train[49].tokens)
    with pytest.raises(IndexError):
        first.train[50]


def test_more_steps_within_an_epoch_keep_the_order(tmp_path: Path) -> None:
    """And where they do not, the digest says so, and a resume is refused."""
    prefix = write_corpus(tmp_path / "c", numbered_documents(100, 0))
    few, more, many = (opened([prefix], tmp_path, count) for count in (40, 90, 400))
    assert same(few.train, more.train[:40])
    more.check_same_order(few.digest)
    assert not same(few.train, many.train[:40])
    with pytest.raises(ConfigError, match="another number of epochs"):
        many.check_same_order(few.digest)


def test_what_follows_an_end_of_document(tmp_path: Path) -> None:
    documents = [[7 if token % 10 == 7 else 100 + token for token in range(60)]] * 4
    prefix = write_corpus(tmp_path / "c", documents)
    plain = opened([prefix], tmp_path, 10).train
    masked = opened([prefix], tmp_path, 10, eod_mask_loss=True).train
    assert same(plain, masked)
    assert all(bool(sample.learned[1:].all()) for sample in plain)
    for sample in masked:
        assert torch.equal(sample.learned[1:], sample.tokens[:-1] != 7)
    assert any(not bool(sample.learned[1:].all()) for sample in masked)


def test_a_cache_that_is_not_this_order(tmp_path: Path) -> None:
    """What a kill left, and indices of a data set that was made again, are not read."""
    documents = numbered_documents(80, 0)
    prefix = write_corpus(tmp_path / "c", documents)
    cache = tmp_path / "index_cache"
    first = opened([prefix], tmp_path, 50)
    (folder,) = cache.iterdir()
    shutil.rmtree(folder)
    import socket

    left = cache / f"{folder.name}.{socket.gethostname()}.partial"
    left.mkdir()
    (left / "half-GPTDataset-train-shuffle_index.npy").write_bytes(b"\x93NUMPY")
    again = opened([prefix], tmp_path, 50)
    assert same(first.train, again.train) and list(cache.iterdir()) == [folder]
    write_corpus(tmp_path / "c", documents[::-1])
    os.utime(f"{prefix}.idx", ns=(1, 1))
    remade = opened([prefix], tmp_path, 50)
    assert remade.digest != first.digest and len(list(cache.iterdir())) == 2
    assert same(remade.train, opened([prefix], tmp_path / "x", 50).train)


def test_token_ids_beyond_the_model(tmp_path: Path) -> None:
    prefix = write_corpus(tmp_path / "c", [[1, 2, 3] * 30])
    config = IndexedDataConfig(blend=[prefix], split="1", seq_length=SEQ)
    data = open_indexed(
        config, num_train_samples=3, num_eval_samples=0, seed=0, vocab_size=3, eod=None,
        run_dir=tmp_path,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="sample 0 holds token 3, .*/c, and the model has 3"):
        _ = data.train[0].tokens


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    prefix = write_corpus(tmp_path / "c", numbered_documents(80, 0))
    (tmp_path / "file").write_text("")
    with pytest.raises(MegaRLError, match=r"data.indexed.cache_dir .*file cannot be written"):
        opened([prefix], tmp_path, 9, cache_dir=str(tmp_path / "file"))
    with pytest.raises(MegaRLError, match="eod_mask_loss: the tokenizer has no eos_token"):
        open_indexed(
            IndexedDataConfig(blend=[prefix], eod_mask_loss=True), num_train_samples=1,
            num_eval_samples=0, seed=0, vocab_size=9, eod=None, run_dir=tmp_path,
        )  # fmt: skip


def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    prefix = write_corpus(tmp_path / "c", numbered_documents(80, 0))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(MegaRLError, match="No space left on device.*make room"):
            opened([prefix], tmp_path, 9)
    assert not list((tmp_path / "index_cache").iterdir())
    assert len(opened([prefix], tmp_path, 9).train) == 9
