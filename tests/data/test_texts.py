"""Texts for pretraining: closed by the end of text, cut, refused where nothing is to learn."""

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


def found_in(path: Path, eos: str | None, **columns: str | None) -> list[tuple[list[int], int]]:
    """Tokens and prompt length of each text that is kept, of at most four tokens."""
    given = {"prompt_column": "prompt", "label_column": "completion"} | columns
    texts = read_texts(path, tokenizer=words(eos), max_length=4, **given)  # type: ignore[arg-type]
    return [(text.tokens.tolist(), text.prompt_length) for text in texts]


def plain(path: Path, *texts: str) -> Path:
    """A file of plain texts."""
    write_texts(path, [{"prompt": text} for text in texts])
    return path


def test_plain_texts_end_and_are_cut(tmp_path: Path) -> None:
    path = plain(tmp_path / "t.jsonl", "w1 w2", "w1 w2 w3 w4", "", "w5")
    found = found_in(path, "</s>", label_column=None)
    assert found == [([2, 3, 0], 1), ([2, 3, 4, 5], 1), ([6, 0], 1)]
    assert found_in(path, None, label_column=None) == [([2, 3], 1), ([2, 3, 4, 5], 1)]


def test_a_completion_is_learned_and_its_prompt_given(tmp_path: Path) -> None:
    pairs = [("w1 w2", "w3"), ("w1 w2 w3", "w4 w5"), ("w1 w2 w3 w4", "w5"), ("w1", "")]
    write_texts(tmp_path / "t.jsonl", [{"prompt": p, "completion": c} for p, c in pairs])
    expected = [([2, 3, 4, 0], 2), ([2, 3, 4, 5], 3), ([2, 0], 1)]
    assert found_in(tmp_path / "t.jsonl", "</s>") == expected


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_nothing_to_learn_from(texts: list[str], tmp_path: Path) -> None:
    path = plain(tmp_path / "t.jsonl", *texts)
    with pytest.raises(DataError, match=f"none of its {len(texts)} texts"):
        found_in(path, "</s>", label_column=None)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = plain(tmp_path / "t.jsonl", "w1 w2")
    with pytest.raises(DataError, match="no column 'text'.*are: prompt.*data.prompt_column"):
        found_in(path, "</s>", prompt_column="text")
    with pytest.raises(DataError, match="no column 'completion'.*data.label_column.*or null"):
        found_in(path, "</s>")
