"""What docs/evaluation.md shows is what `megarl eval` prints and writes.

The model's answers are scripted: the page is about what is made of them.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import pytest
from cluster import Cluster
from forked_runs import ForkedRuns
from tiny_models import EOS, TinyModels

from megarl.config.docs import settings
from megarl.config.schema import EvaluationConfig

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
pytestmark = pytest.mark.dist


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def write_tokenizer(folder: Path) -> dict[str, int]:
    """A word a token: the numbers to 63, and what a sum needs; word -> token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", *map(str, range(64)), "+", "-", "="]
    vocab = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"eos_token": "<eos>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return vocab


def write_data(folder: Path, vocab: dict[str, int]) -> None:
    """200 sums and differences; a model that knows some, guesses at others, and may not end."""
    dice = random.Random(0)
    prompts, script = [], []
    for number in range(200):
        a, b = sorted((dice.randrange(32), dice.randrange(32)), reverse=True)
        adds = dice.random() < 0.6
        label = a + b if adds else a - b
        prompt = f"{a} {'+' if adds else '-'} {b} ="
        source = "sums" if adds else "differences"
        prompts.append({"prompt": prompt, "label": f"{label}", "source": source})
        knows = dice.random() * (1.0 if adds else 0.7)
        for index in range(20):  # greedily it says the first
            certain = dice.random() if index else 0.45
            said = label if certain < knows else min(63, abs(label + dice.randint(-2, 2)))
            words = [vocab[str(said)]]
            tokens = words * 4 if dice.random() < 0.03 else [*words, EOS]
            script.append(
                {"prompt_id": number, "response_ids": tokens, "logprobs": [-1.0] * len(tokens)}
            )
    for name, rows in (("heldout", prompts), ("script", script)):
        lines = (json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines))


@pytest.fixture(scope="module")
def evaluated(
    cluster: Cluster, tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory
) -> ForkedRuns:
    """The page's command, done."""
    folder = tmp_path_factory.mktemp("evaluation")
    shutil.copytree(tiny("llama"), folder / "model")
    write_data(folder, write_tokenizer(folder / "model"))
    (folder / "config.yaml").write_text(block("yaml"))
    run = ForkedRuns(cluster, folder, "eval", num_ranks=1)
    run.to_the_end(
        f"actor.model.path={folder / 'model'}",
        f"data.eval_path={folder / 'heldout.jsonl'}",
        "rollout.engine=scripted",
        f"rollout.engine_args.script={folder / 'script.jsonl'}",
        "weight_sync.canary=false",
    )
    return run


def test_it_prints_what_the_page_says(evaluated: ForkedRuns) -> None:
    """But for the table's title, which names a folder."""
    command, title, *table = block("console").splitlines()
    assert command == "$ megarl eval run.yaml" and title.strip() == "Evaluation runs/sums/eval"
    assert "\n".join(table) in evaluated.output()
    assert "evaluate (1 of 1 replicas) 1800/1800 (done)" in evaluated.output()


def test_files_are_what_the_page_says(evaluated: ForkedRuns) -> None:
    folder = evaluated.run_dir / "eval"
    samples = (folder / "samples.jsonl").read_text().splitlines()
    assert len(samples) == 1600 and block("json").strip() in samples
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert json.loads(samples[0]).keys() - answers[0].keys() == {"sample", "answer"}
    metrics = json.loads((folder / "eval.json").read_text())
    assert metrics["eval/accuracy"] == sum(row["right"] for row in answers) / 200
    overall = {name for name in metrics if name.count("/") == 1}
    known = {re.sub(r"pass@\d+", "pass@k", re.sub(r"maj@\d+", "maj@n", name)) for name in overall}
    assert known == set(re.findall(r"^\| `(eval/\S+)` \|", PAGE, re.MULTILINE))


def test_every_setting_is_on_the_page() -> None:
    names = {one.key for one in settings() if one.key.startswith("evaluation.")}
    assert len(names) == len(EvaluationConfig.__dataclass_fields__)
    rows = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert {f"evaluation.{row}" for row in rows} == names
