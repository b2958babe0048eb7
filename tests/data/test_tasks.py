"""Demo tasks: splits that never meet, mixes by weight, and carelessness in exact shares."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from megarl.data.tasks import careless_text, write_task
from megarl.errors import ConfigError, DataError

pytest.importorskip("reasoning_gym")

SUMS = {
    "name": "chain_sum",
    "params": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
}


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_have_what_scoring_needs(tmp_path):
    write_task(tmp_path / "new" / "a.jsonl", [SUMS], 40, seed=1, prompt_format="{expression} =")
    rows = rows_of(tmp_path / "new" / "a.jsonl")
    assert len(rows) == 40 and set(rows[0]) == {"prompt", "label", "source", "entry"}
    for row in rows:
        left = row["prompt"].removesuffix(" =")
        assert str(eval(left)) == row["label"] == row["entry"]["answer"]
        assert row["source"] == row["entry"]["metadata"]["source_dataset"] == "chain_sum"


def test_same_seed_same_file_and_another_seed_another(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_task(tmp_path / name, [SUMS], 20, seed=seed)
    texts = [(tmp_path / name).read_text() for name in "abc"]
    assert texts[0] == texts[1] != texts[2]


def test_splits_share_no_prompt_whatever_the_seed(tmp_path):
    for seed in (1, 2):
        write_task(tmp_path / f"train{seed}", [SUMS], 300, seed=seed)
        write_task(tmp_path / f"held{seed}", [SUMS], 50, seed=seed, split="heldout")
    train = {row["prompt"] for seed in (1, 2) for row in rows_of(tmp_path / f"train{seed}")}
    held = {row["prompt"] for seed in (1, 2) for row in rows_of(tmp_path / f"held{seed}")}
    assert not train & held and len(rows_of(tmp_path / "train1")) == 300


def test_weights_share_the_rows_exactly(tmp_path):
    tasks = [{**SUMS, "weight": 3}, {"name": "gcd"}]
    write_task(tmp_path / "a", tasks, 41, seed=0)
    rows = rows_of(tmp_path / "a")
    assert Counter(row["source"] for row in rows) == {"chain_sum": 31, "gcd": 10}
    assert [row["source"] for row in rows] != sorted(row["source"] for row in rows)
    assert len({row["prompt"] for row in rows}) == 41


@pytest.mark.parametrize(
    ("tasks", "options", "error", "message"),
    [
        ([{"name": "no_such_task"}], {}, ConfigError, "refuses task 'no_such_task'"),
        ([{**SUMS, "params": {"nope": 1}}], {}, ConfigError, "refuses task 'chain_sum'.*nope"),
        ([{**SUMS, "wieght": 1}], {}, ConfigError, "give name, and maybe params and weight"),
        ([{**SUMS, "weight": 0}], {}, ConfigError, r"weights are \[0.0\]"),
        ([], {}, ConfigError, "at least one positive weight"),
        ([SUMS], {"split": "test"}, ConfigError, "split is 'test'"),
        ([SUMS], {"prompt_format": "{x}"}, ConfigError, "names 'x'; task chain_sum has: answer"),
        ([SUMS], {"size": 10**6}, DataError, "distinct train questions"),
    ],
)
def test_bad_tasks_are_named(tmp_path, tasks, options, error, message):
    with pytest.raises(error, match=message):
        write_task(tmp_path / "a", tasks, **{"size": 5, "seed": 0, **options})
    assert not (tmp_path / "a").exists()


ENTRIES = [{"prompt": f"{i} + 1 =", "label": str(i + 1)} for i in range(200)]


def test_careless_text_has_the_shares_asked_for():
    rows = careless_text(ENTRIES, evasive_share=0.3, wrong_share=0.25, seed=0)
    kinds = Counter()
    for row, entry in zip(rows, ENTRIES, strict=True):
        assert row["prompt"] == entry["prompt"] and row["completion"].startswith(" ")
        answer = row["completion"][1:]
        if answer == "?":
            kinds["evasive"] += 1
            continue
        kinds["right" if answer == entry["label"] else "wrong"] += 1
        assert 0 <= abs(int(answer) - int(entry["label"])) <= 9
    assert kinds == {"evasive": 60, "wrong": 50, "right": 90}
    assert rows == careless_text(ENTRIES, 0.3, 0.25, 0) != careless_text(ENTRIES, 0.3, 0.25, 1)


def test_careless_text_refuses_nonsense():
    with pytest.raises(ConfigError, match="at most 1 together"):
        careless_text(ENTRIES, 0.6, 0.5, 0)
    with pytest.raises(DataError, match="'cat' is no whole number"):
        careless_text([{"prompt": "?", "label": "cat"}], 0, 1, 0)
    assert careless_text([], 0.5, 0.5, 0) == []
