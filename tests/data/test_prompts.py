"""Reading prompts: formats, columns, templates, lengths, and each way a file can be wrong."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from megarl.data.prompts import load_prompts
from megarl.errors import ConfigError, DataError

CHARACTERS = [chr(i) for i in range(32, 127)]


def make_tokenizer(chat_template=None):
    """One token per character, and a BOS in front of plain text."""
    vocab = {token: i for i, token in enumerate(["<bos>", "<unk>", *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", chat_template=chat_template
    )


CHAT = (
    "{% for m in messages %}{{ raise_exception('no tools') if m.role == 'tool' }}"
    "{{ m.role }}: {{ m.content }}|{% endfor %}{% if add_generation_prompt %}bot:{% endif %}"
)


@pytest.fixture
def tokenizer():
    return make_tokenizer(CHAT)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_plain_text_rows(tmp_path, tokenizer):
    rows = [
        {"prompt": "1+1=", "label": 2, "source": "sums", "entry": {"metadata": {"a": 1}}},
        {"prompt": "2+2=", "label": "4"},
    ]
    data = load_prompts(write(tmp_path / "math.jsonl", rows), tokenizer, max_prompt_length=9)
    first, second = data
    assert (first.prompt_id, first.text, first.label, first.source) == (0, "1+1=", "2", "sums")
    assert first.token_ids == tuple(tokenizer("1+1=").input_ids) and first.token_ids[0] == 0
    assert first.extra == {"entry": {"metadata": {"a": 1}}}
    assert (second.label, second.source, second.extra) == ("4", "math", {})
    assert len(data) == 2 and data[0:1] == (first,) and data.dropped == 0


def test_chat_messages_go_through_the_template_once(tmp_path, tokenizer):
    rows = [{"prompt": [{"role": "user", "content": "hi"}], "label": ""}]
    (prompt,) = load_prompts(write(tmp_path / "a.jsonl", rows), tokenizer, max_prompt_length=99)
    assert prompt.text == "user: hi|bot:" and prompt.question == "hi"
    assert len(prompt.token_ids) == len(prompt.text)  # no second BOS
    plain = write(tmp_path / "b.jsonl", [{"prompt": "hi", "label": ""}])
    wrapped = load_prompts(plain, tokenizer, max_prompt_length=99, apply_chat_template=True)
    assert wrapped[0].token_ids == prompt.token_ids


def test_long_prompts_are_dropped_and_counted_and_ids_stay(tmp_path, tokenizer):
    rows = [{"prompt": "x" * n, "label": ""} for n in (8, 3, 8, 2)]
    path = write(tmp_path / "a.jsonl", rows)
    data = load_prompts(path, tokenizer, max_prompt_length=4)
    assert [p.prompt_id for p in data] == [1, 3] and data.dropped == 2
    assert len(load_prompts(path, tokenizer, max_prompt_length=4, limit=2)) == 1
    with pytest.raises(
        DataError, match="all 4 prompts are longer than max_prompt_length 2 .*has 3"
    ):
        load_prompts(path, tokenizer, max_prompt_length=2)


def verl_rows():
    return [
        {
            "data_source": "gsm8k",
            "prompt": [{"role": "user", "content": "1+1?"}],
            "reward_model": {"style": "rule", "ground_truth": "2"},
            "extra_info": {"index": 0},
        }
    ]


def test_parquet_with_verls_columns(tmp_path, tokenizer):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.Table.from_pylist(verl_rows()), tmp_path / "a.parquet")
    (prompt,) = load_prompts(tmp_path / "a.parquet", tokenizer, max_prompt_length=99)
    assert (prompt.label, prompt.source, prompt.text) == ("2", "gsm8k", "user: 1+1?|bot:")
    assert prompt.extra["extra_info"] == {"index": 0} and "data_source" not in prompt.extra


def test_dotted_paths_reach_into_columns(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", [{"q": {"text": "hi"}, "a": {"b": 1.5}, "kind": "k"}])
    (prompt,) = load_prompts(
        path,
        tokenizer,
        max_prompt_length=9,
        prompt_key="q.text",
        label_key="a.b",
        source_key="kind",
    )
    assert (prompt.text, prompt.label, prompt.source) == ("hi", "1.5", "k")


def test_labels_are_optional_only_when_said_so(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", [{"prompt": "hi", "x": {"y": 1}}])
    with pytest.raises(
        DataError, match=r"a.jsonl, line 1: there is no column 'label'; .*: prompt, x.y\."
    ):
        load_prompts(path, tokenizer, max_prompt_length=9)
    (prompt,) = load_prompts(path, tokenizer, max_prompt_length=9, label_key=None, source_key=None)
    assert (prompt.label, prompt.source) == ("", "a")
    with pytest.raises(DataError, match="there is no column 'origin'"):
        load_prompts(path, tokenizer, max_prompt_length=9, label_key=None, source_key="origin")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b'{"prompt": "a", "label": "b"}\n{"prompt": \n', "line 2: not a JSON object"),
        (b'\xff\xfe{"prompt"}\n', "line 1: not a JSON object"),
        (b"[1]\n", "line 1: a list instead of a JSON object"),
        (b'{"prompt": 5, "label": ""}\n', "line 1: the prompt is neither text nor a list"),
        (b'{"prompt": [], "label": ""}\n', "neither text nor a list"),
        (b'{"prompt": [{"role": "tool", "content": ""}], "label": ""}\n', "refuses the messages"),
    ],
)
def test_unreadable_rows_are_named_by_line(tmp_path, tokenizer, content, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_prompts(path, tokenizer, max_prompt_length=99)


def test_files_that_cannot_be_read_are_named(tmp_path, tokenizer):
    with pytest.raises(DataError, match="is not a file"):
        load_prompts(tmp_path / "none.jsonl", tokenizer, max_prompt_length=9)
    (tmp_path / "a.csv").touch()
    with pytest.raises(DataError, match="unknown format"):
        load_prompts(tmp_path / "a.csv", tokenizer, max_prompt_length=9)
    (tmp_path / "a.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="not readable as parquet"):
        load_prompts(tmp_path / "a.parquet", tokenizer, max_prompt_length=9)


def test_prompts_without_tokens_or_template_are_named(tmp_path):
    bare = make_tokenizer()
    chat = write(tmp_path / "a.jsonl", [{"prompt": [{"role": "user", "content": ""}], "label": ""}])
    with pytest.raises(DataError, match="the tokenizer has none"):
        load_prompts(chat, bare, max_prompt_length=9)
    empty = write(
        tmp_path / "b.jsonl", [{"prompt": [{"role": "user", "content": ""}], "label": ""}]
    )
    with pytest.raises(DataError, match="line 1: the prompt is empty"):
        load_prompts(empty, make_tokenizer("{{ '' }}"), max_prompt_length=9)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(ConfigError, match="pip install pyarrow"):
        load_prompts(tmp_path / "a.parquet", tokenizer, max_prompt_length=9)
