"""Examples of supervised fine-tuning: what is given, what is learned, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from megarl.data.examples import Example, load_examples
from megarl.errors import DataError

WORDS = ["<pad>", "<eos>", "<user>", "<bot>", "<end>", *(f"w{i}" for i in range(20))]
TEMPLATE = (
    "{% for m in messages %}{{ '<user> ' if m.role == 'user' else '<bot> ' }}{{ m.content }}"
    "{{ ' <end> ' }}{% endfor %}{% if add_generation_prompt %}{{ '<bot> ' }}{% endif %}"
)
LAST_ONLY = (  # drops what earlier answers said, as templates of reasoning models do
    "{% for m in messages %}{{ m.content if loop.last or m.role == 'user' else '' }} <end> "
    "{% endfor %}"
)


def make_tokenizer(template: str | None = TEMPLATE) -> Any:
    """One token per word."""
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    tokenizer.chat_template = template
    return tokenizer


def read(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> list[Example]:
    """The examples of some rows."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = settings.pop("tokenizer", make_tokenizer())
    return list(load_examples(path, tokenizer, **{"max_length": 64} | settings))


def shown(example: Example) -> tuple[str, str]:
    """(all words, words that are learned)."""
    words = [WORDS[token] for token in example.tokens.tolist()]
    learned = [
        w for w, is_learned in zip(words, example.learned.tolist(), strict=True) if is_learned
    ]
    return " ".join(words), " ".join(learned)


def say(role: str, content: str) -> dict[str, str]:
    """A message."""
    return {"role": role, "content": content}


def test_a_response_is_learned_after_its_prompt(tmp_path: Path) -> None:
    (found,) = read(tmp_path, [{"prompt": "w1 w2", "response": "w3 w4"}])
    # "w4<eos>" is one word to this tokenizer unless special tokens are cut out first, as they are.
    assert shown(found) == ("w1 w2 w3 w4 <eos>", "w3 w4 <eos>")
    assert found.prompt_length == 2


def test_plain_text_through_the_template(tmp_path: Path) -> None:
    rows = [{"prompt": "w1", "response": "w7"}]
    (found,) = read(tmp_path, rows, apply_chat_template=True)
    assert shown(found) == ("<user> w1 <end> <bot> w7 <end>", "w7 <end>")


def test_messages_before_a_response_are_given(tmp_path: Path) -> None:
    prompt = [say("user", "w1"), say("assistant", "w2"), say("user", "w3")]
    (found,) = read(tmp_path, [{"prompt": prompt, "response": "w4"}])
    assert shown(found)[1] == "w4 <end>"
    assert shown(found)[0].startswith("<user> w1 <end> <bot> w2 <end> <user> w3 <end> <bot> w4")


def test_every_turn_of_a_conversation_is_learned(tmp_path: Path) -> None:
    """And nothing after the last answer is kept."""
    turns = [say("user", "w1"), say("assistant", "w2 w3"), say("user", "w4"),
             say("assistant", "w5"), say("user", "w6")]  # fmt: skip
    (found,) = read(tmp_path, [{"chat": turns}], messages_key="chat")
    assert shown(found) == (
        "<user> w1 <end> <bot> w2 w3 <end> <user> w4 <end> <bot> w5 <end>",
        "w2 w3 <end> w5 <end>",
    )
    assert found.prompt_length == 4


def test_an_answer_that_begins_the_text_is_learned_but_for_its_first_token(tmp_path: Path) -> None:
    (found,) = read(tmp_path, [{"prompt": "", "response": "w1 w2"}])
    assert shown(found) == ("w1 w2 <eos>", "w2 <eos>")


def test_long_rows_are_left_out_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "w1", "response": "w2 " * n} for n in (1, 9, 3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_examples(path, make_tokenizer(), max_length=5)
    assert [len(example.tokens) for example in found] == [3, 5]
    assert found.dropped == 1


@pytest.mark.parametrize(
    ("row", "settings", "words"),
    [
        ({"prompt": "w1"}, {}, "line 1: there is no column 'response'; the columns are: prompt"),
        ({"prompt": "w1", "response": None}, {}, "column 'response' holds None"),
        ({"prompt": "w1", "response": [1]}, {}, "which is no text"),
        ({"prompt": [], "response": "w1"}, {}, "no list of chat messages"),
        ({"chat": [{"role": "user"}]}, {"messages_key": "chat"}, "no list of chat messages"),
        ({"chat": [say("user", "w1")]}, {"messages_key": "chat"}, "no message of the assistant"),
        ({"prompt": "w1", "response": "w2 " * 99}, {}, "all 1 examples are longer than 64 tokens"),
        ({"prompt": [say("user", "w1")], "response": "w2"},
         {"tokenizer": make_tokenizer(None)}, "the tokenizer has none"),
        ({"chat": [say("user", "w1"), say("assistant", "w2"), say("assistant", "w3")]},
         {"messages_key": "chat", "tokenizer": make_tokenizer(LAST_ONLY)},
         "writes message 2 differently when later ones follow"),
    ],
)  # fmt: skip
def test_refusals(
    row: dict[str, Any], settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as refusal:
        read(tmp_path, [row], **settings)
    assert words in str(refusal.value)


def test_an_empty_answer_without_an_end_is_refused(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="line 1: the answer is empty"):
        read(tmp_path, [{"prompt": "w1", "response": ""}], tokenizer=tokenizer)
