"""Texts for pretraining: closed by the end of text, cut, refused where nothing is to learn."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from megarl.data.texts import read_texts, write_texts
from megarl.errors import DataError


def words(eos: str | None) -> PreTrainedTokenizerFast:
    """One token a word: w0 is 1, w1 is 2, ...; the end of text, where there is one, is 0."""
    vocabulary = {"</s>": 0} | {f"w{index}": index + 1 for index in range(8)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos)


def test_texts_end_and_are_cut(tmp_path: Path) -> None:
    write_texts(tmp_path / "t.jsonl", ["w1 w2", "w1 w2 w3 w4", "", "w5"])
    found = read_texts(tmp_path / "t.jsonl", "text", words("</s>"), 4)
    assert [one.tolist() for one in found] == [[2, 3, 0], [2, 3, 4, 5], [6, 0]]


def test_without_an_end_of_text(tmp_path: Path) -> None:
    write_texts(tmp_path / "t.jsonl", ["w1 w2", "", "w5"])
    found = read_texts(tmp_path / "t.jsonl", "text", words(None), 4)
    assert [one.tolist() for one in found] == [[2, 3]]


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_nothing_to_learn_from(texts: list[str], tmp_path: Path) -> None:
    write_texts(tmp_path / "t.jsonl", texts)
    with pytest.raises(DataError, match=f"none of its {len(texts)} texts"):
        read_texts(tmp_path / "t.jsonl", "text", words("</s>"), 4)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"body": "w1 w2"}) + "\n")
    with pytest.raises(DataError, match="no column 'text'; it has body"):
        read_texts(tmp_path / "t.jsonl", "text", words("</s>"), 4)
