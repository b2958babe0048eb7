"""Reading preferences: texts and chats, what is a prompt, and each way a row can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from megarl.data.preferences import PairDataset, load_preferences
from megarl.data.prompts import load_prompts
from megarl.errors import DataError

CHARACTERS = [chr(i) for i in range(32, 127)]
EOS = 2
CHAT = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
USER = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "be kind"}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def make_tokenizer(eos: str | None = "<eos>") -> Any:
    """One token per character, and a BOS in front of plain text."""
    vocab = {token: i for i, token in enumerate(["<bos>", "<unk>", "<eos>", *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token=eos, chat_template=CHAT
    )


def ids(text: str) -> tuple[int, ...]:
    return tuple(CHARACTERS.index(character) + 3 for character in text)


def load(folder: Path, rows: list[Any], **options: Any) -> PairDataset:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    limits = {"max_prompt_length": 50, "max_response_length": 9}
    tokenizer = options.pop("tokenizer", None) or make_tokenizer()
    return load_preferences(path, tokenizer, **(limits | options))


def test_texts(tmp_path: Path) -> None:
    rows = [
        {"prompt": "1+1=", "chosen": "2", "rejected": "33", "margin": 0.5},
        {"prompt": "2+2=", "chosen": "4", "rejected": "", "margin": None},
    ]
    first, second = load(tmp_path, rows)
    assert first.prompt_ids == (0, *ids("1+1="))
    assert (first.chosen_ids, first.rejected_ids) == ((*ids("2"), EOS), (*ids("33"), EOS))
    assert (first.margin, second.margin, second.rejected_ids) == (0.5, 0.0, (EOS,))
    (templated,) = load(tmp_path, rows[:1], apply_chat_template=True)
    assert templated.prompt_ids == ids("[user]1+1=[assistant]")
    assert templated.chosen_ids == first.chosen_ids


def test_prompts_are_those_of_rollouts(tmp_path: Path) -> None:
    """The scores that PPO asks for are of the same tokens."""
    for prompt in ("1+1=", [SYSTEM, USER]):
        (pair,) = load(tmp_path, [{"prompt": prompt, "chosen": "2", "rejected": "3"}])
        (same,) = load_prompts(
            tmp_path / "pairs.jsonl", make_tokenizer(), max_prompt_length=50, label_key=None
        )
        assert pair.prompt_ids == same.token_ids


CHATS: dict[str, tuple[dict[str, Any], str]] = {
    "answers after a prompt": (
        {"prompt": [USER], "chosen": [answer("a")], "rejected": [answer("b")]},
        "[user]hi[assistant]",
    ),
    "answers after a text": (
        {"prompt": "hi", "chosen": [answer("a")], "rejected": [answer("b")]},
        "[user]hi[assistant]",
    ),
    "whole chats": (
        {"chosen": [SYSTEM, USER, answer("a")], "rejected": [SYSTEM, USER, answer("b")]},
        "[system]be kind[user]hi[assistant]",
    ),
    "whole chats beside their prompt": (
        {"prompt": "hi", "chosen": [USER, answer("a")], "rejected": [USER, answer("b")]},
        "[user]hi[assistant]",
    ),
    "a chat that went on": (
        {
            "prompt": [USER],
            "chosen": [answer("yes?"), USER, answer("a")],
            "rejected": [answer("yes?"), USER, answer("b")],
        },
        "[user]hi[assistant]yes?[user]hi[assistant]",
    ),
}


@pytest.mark.parametrize("name", CHATS)
def test_chats(name: str, tmp_path: Path) -> None:
    row, prompt = CHATS[name]
    (pair,) = load(tmp_path, [row])
    assert pair.prompt_ids == ids(prompt)
    assert (pair.chosen_ids, pair.rejected_ids) == ((*ids("a"), EOS), (*ids("b"), EOS))


def test_parquet_with_other_names(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    row = {"x": {"q": "1+1="}, "good": "2", "bad": "3", "gap": 2}
    table = pyarrow.Table.from_pylist([row] * 3)
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    found = load_preferences(
        tmp_path / "p.parquet", make_tokenizer(), max_prompt_length=9, max_response_length=9,
        prompt_key="x.q", chosen_key="good", rejected_key="bad", margin_key="gap", limit=2,
    )  # fmt: skip
    assert len(found) == 2 and found[1].margin == 2.0 and found[0:1] == (found[0],)
    assert found[0].prompt_ids == (0, *ids("1+1="))


def test_what_is_left_out(tmp_path: Path) -> None:
    """Lengths count the eos; 50 and 9 tokens fit, one more does not."""
    rows = [
        {"prompt": "x" * 49, "chosen": "1" * 8, "rejected": "2" * 8},
        {"prompt": "x" * 50, "chosen": "1", "rejected": "2"},
        {"prompt": "x", "chosen": "1" * 9, "rejected": "2"},
        {"prompt": "x", "chosen": "1", "rejected": "2" * 9},
        {"prompt": "x", "chosen": "1", "rejected": "1"},
        {"chosen": [USER, answer("1")], "rejected": [USER, answer("1")]},
    ]
    found = load(tmp_path, rows)
    assert (len(found), found.dropped, found.undecided) == (1, 3, 2)
    with pytest.raises(DataError, match="no pair.*5 rows, 3 of them longer.* 50 .* 9 .*2 with"):
        load(tmp_path, rows[1:])
    with pytest.raises(DataError, match="0 rows"):
        load(tmp_path, [])


GOOD = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no answer": ({"prompt": "x", "chosen": "2"}, ["'rejected'", "prompt, chosen"]),
    "no prompt": ({"chosen": "2", "rejected": "3"}, ["'prompt'", "chosen, rejected"]),
    "an empty prompt": (GOOD | {"prompt": []}, ["neither text nor a list"]),
    "a number": (GOOD | {"chosen": 2}, ["chosen is neither text", "'2'"]),
    "null": (GOOD | {"rejected": None}, ["rejected is neither text"]),
    "a prompt of another kind": (GOOD | {"prompt": 5}, ["prompt is neither text"]),
    "text and chat": (GOOD | {"rejected": [answer("3")]}, ["is text and the other a list"]),
    "no content": (
        {"chosen": [USER, {"role": "assistant"}], "rejected": [USER, answer("b")]},
        ["chosen is neither text nor a list of chat messages"],
    ),
    "two answers": (
        {"chosen": [USER, answer("a"), USER, answer("b")], "rejected": [USER, answer("c")]},
        ["last message alone", "1 messages", "3 and 1"],
    ),
    "the user's": ({"prompt": "x", "chosen": [USER], "rejected": [USER]}, ["the assistant's"]),
    "a margin of text": (GOOD | {"margin": "big"}, ["margin is 'big'", "give a number"]),
    "no chat's prompt": ({"chosen": [answer("a")], "rejected": [answer("b")]}, ["'prompt'"]),
    "a chat's odd prompt": (
        {"prompt": 5, "chosen": [answer("a")], "rejected": [answer("b")]},
        ["prompt is neither text", "'5'"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows(name: str, tmp_path: Path) -> None:
    row, words = BAD[name]
    with pytest.raises(DataError) as caught:
        load(tmp_path, [GOOD, row])
    for word in ("pairs.jsonl, line 2", *words):
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


def test_a_tokenizer_without_an_end(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no eos_token"):
        load(tmp_path, [GOOD], tokenizer=make_tokenizer(None))
    (tmp_path / "pairs.jsonl").write_text('{"prompt": \n')
    with pytest.raises(DataError, match="pairs.jsonl, line 1: not a JSON object"):
        load_preferences(
            tmp_path / "pairs.jsonl", make_tokenizer(), max_prompt_length=9, max_response_length=9
        )
