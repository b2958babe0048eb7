"""What docs/data.md shows is what its commands print."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def folder(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the page begins with."""
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(made / "model", folder / "model")
    texts = [" ".join(f"w{(i + j) % 48 + 1}" for j in range(4 + i % 14)) for i in range(400)]
    rows = [{"id": i, "text": text.replace("w48", "w0")} for i, text in enumerate(texts)]
    lines = (json.dumps(row) + "\n" for row in rows)
    (folder / "stories.jsonl").write_text("".join(lines))
    for part in range(2):
        codes = [" ".join(f"w{j}" for j in range((i + part) % 13)) or "w2" for i in range(150)]
        codes[0] = "" if part == 0 else codes[0]
        table = pyarrow.Table.from_pylist([{"content": code} for code in codes])
        pyarrow.parquet.write_table(table, folder / f"code-{part + 1}.parquet", row_group_size=40)
    (folder / "run.yaml").write_text(blocks("yaml")[0])
    return folder


def test_commands_print_what_the_page_says(folder: Path) -> None:
    """Line by line; "..." stands for more lines."""
    count = 0
    for block in blocks("console"):
        for part in block.split("$ ")[1:]:
            command, _, shown = part.partition("\n")
            words = shlex.split(command)
            if words[0] == "megarl":
                words[:1] = [sys.executable, "-m", "megarl.cli.main"]
            elif words[0] == "python":
                words[:2] = [sys.executable, str(ROOT / words[1])]
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr[-2000:]
            head, more, _ = shown.partition("...\n")
            printed = done.stdout[: len(head)] if more else done.stdout
            assert printed == head, command
            count += 1
    assert count == 5


def test_the_python_runs(folder: Path) -> None:
    (code,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (folder / "runs" / "mine" / "index_cache").is_dir()


def test_the_preferences_are_three_ways_to_say_the_same(made: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from megarl.data.preferences import load_preferences

    (tmp_path / "pairs.jsonl").write_text(blocks("json")[0])
    tokenizer = AutoTokenizer.from_pretrained(made / "model")
    tokenizer.add_tokens(["12", "+", "7", "19", "21", "=", "?", ".", "user"])
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}"
    first, second, third = load_preferences(
        tmp_path / "pairs.jsonl", tokenizer, max_prompt_length=9, max_response_length=9
    )
    assert (first.margin, second.margin) == (0.5, 0.0)
    assert second == third and second.chosen_ids != second.rejected_ids
    assert first.chosen_ids[-1] == second.chosen_ids[-1] == tokenizer.eos_token_id


def test_every_setting_is_on_the_page() -> None:
    from megarl.config.docs import settings

    names = [one.key for one in settings() if one.key.startswith("data.indexed.")]
    assert len(names) == 5
    for name in names:
        assert f"| `{name.removeprefix('data.indexed.')}` |" in PAGE, name
