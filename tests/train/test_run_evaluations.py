"""Samples of held-out prompts, evaluated while a run trains on scripted answers.

Shown: which answers are sampled, on one replica and on two; every metric, against subsets and
counts; the files; that a resumed run has the figures of the evaluations before it. What vLLM
samples is tests/docs/test_quickstart_page.py's.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from fixed_rollouts import NUM_PROMPTS, fixed_config
from jobs_evaluate import evaluated_run
from parts import RoleSpec
from tiny_models import EOS, TinyModels

from megarl.config.schema import Config
from megarl.data.seeds import stable_hash
from megarl.mesh.layout import MeshLayout
from megarl.observe.metrics_file import read_metrics

pytestmark = pytest.mark.dist
HELD_OUT, SAMPLES, SEED = 6, 4, 11
ONE, TWO = RoleSpec((0,), MeshLayout()), RoleSpec((0, 1), MeshLayout(dp=2))


def answers_to(prompt_id: int) -> list[list[int]]:
    """Right, wrong, wrong in another way, nothing, right but cut off; prompts differ in how many of
    each; the first is what a greedy engine says."""
    right, wrong = [10 + prompt_id, EOS], [30 + prompt_id, EOS]
    other, nothing, cut_off = [50, EOS], [EOS], [10 + prompt_id] * 10
    mixed = [right, wrong, other, nothing, cut_off]
    return [mixed, [wrong, right], [right, right, wrong], [cut_off, right], [nothing], [right]][
        prompt_id % 6
    ]


def source_of(prompt_id: int) -> str:
    return "easy/one" if prompt_id % 3 else "hard"


def write_data(folder: Path) -> None:
    prompts, script = [], []
    for i in range(NUM_PROMPTS):
        prompts.append({"prompt": f"w{2 + i}", "label": f"w{10 + i}", "source": source_of(i)})
        for tokens in answers_to(i):
            script.append(
                {"prompt_id": i, "response_ids": tokens, "logprobs": [-4.0] * len(tokens)}
            )
    for name, rows in (("prompts", prompts), ("script", script)):
        lines = (json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines))


def config_of(folder: Path, run_dir: Path) -> Config:
    """GRPO, two steps, an evaluation before each and after the last, by exact match."""
    config = fixed_config(folder, run_dir)
    config.run.steps, config.run.seed, config.run.eval_interval = 2, SEED, 1
    config.algorithm.adv_estimator, config.algorithm.kl_coef = "grpo", 0.0
    config.data.eval_path, config.data.eval_size = config.data.train_path, HELD_OUT
    config.reward.function = "exact_match"
    config.evaluation.n_samples = SAMPLES
    return config


def expected_samples() -> list[dict[str, Any]]:
    """What samples.jsonl must hold, but for text and reward."""
    rows = []
    for prompt_id, index in itertools.product(range(HELD_OUT), range(SAMPLES)):
        known = answers_to(prompt_id)
        tokens = known[stable_hash(SEED, "evaluation", prompt_id, index) % len(known)]
        ended = tokens[-1] == EOS
        rows.append(
            {
                "prompt": f"w{2 + prompt_id}", "label": f"w{10 + prompt_id}",
                "source": source_of(prompt_id), "sample": index, "token_ids": tokens,
                "answer": f"w{tokens[0]}" if ended and len(tokens) > 1 else None,
                "right": tokens == [10 + prompt_id, EOS], "finished": ended,
            }
        )  # fmt: skip
    return rows


def expected_metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """By counting; rows as of `expected_samples`, SAMPLES for each prompt."""
    groups = [rows[i : i + SAMPLES] for i in range(0, len(rows), SAMPLES)]
    share: dict[str, list[float]] = {"sampled_accuracy": [row["right"] for row in rows]}
    for k in (1, 2, 4):
        subsets = [list(itertools.combinations(group, k)) for group in groups]
        share[f"pass@{k}"] = [
            sum(any(row["right"] for row in one) for one in each) / len(each) for each in subsets
        ]
    share["maj@4"] = []
    for group in groups:
        votes = Counter(row["answer"] for row in group if row["answer"] is not None)
        leaders = [a for a, n in votes.items() if n == max(votes.values())]
        # Of answers alike in number each counts as much; here an answer is right, or wrong.
        right = [leader == group[0]["label"] for leader in leaders]
        share["maj@4"].append(sum(right) / len(right) if right else 0.0)
    return {name: sum(values) / len(values) for name, values in share.items()}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(cluster: Cluster, tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on one rank, with a checkpoint of each."""
    folder = tmp_path_factory.mktemp("evaluated")
    write_data(folder)
    config = config_of(folder, folder / "run")
    config.checkpoint.save_interval = 1
    cluster.run(1, evaluated_run, config, tiny("llama"), ONE)
    return folder


def test_samples_are_what_their_seeds_say(finished: Path) -> None:
    found = {step: read_lines(finished / f"run/samples-step{step}.jsonl") for step in (0, 1, 2)}
    assert found[0] == found[1] == found[2], "a script does not learn"
    expected = expected_samples()
    assert len({str(row["token_ids"]) for row in expected}) > 5, "a seed that tells nothing"
    for row, right in zip(found[0], expected, strict=True):
        assert {name: row[name] for name in right} == right
        assert row["reward"] == float(row["text"] == row["label"])
        assert row.keys() - right.keys() == {"text", "reward"}


def test_metrics_are_counted_right(finished: Path) -> None:
    metrics = read_metrics(finished / "run/metrics.jsonl")
    rows = expected_samples()
    greedy = [answers_to(i)[0] == [10 + i, EOS] for i in range(HELD_OUT)]
    sources: dict[str, list[int]] = {"": list(range(HELD_OUT)), "/hard": [0, 3]}
    sources["/easy/one"] = [1, 2, 4, 5]
    for step in (0, 1, 2):
        for end, prompts in sources.items():
            own = [row for row in rows if int(row["prompt"][1:]) - 2 in prompts]
            for name, value in expected_metrics(own).items():
                assert metrics[step][f"eval/{name}{end}"] == pytest.approx(value, abs=1e-12), name
            right = sum(greedy[i] for i in prompts) / len(prompts)
            assert metrics[step][f"eval/accuracy{end}"] == right
    counted = {name for name in metrics[0] if name.startswith("eval/")} - {"eval/seconds"}
    assert len(counted) == 3 * 8


def test_greedy_answers_have_their_source_and_verdict(finished: Path) -> None:
    rows = read_lines(finished / "run/answers-step0.jsonl")
    assert [row["token_ids"] for row in rows] == [answers_to(i)[0] for i in range(HELD_OUT)]
    assert [row["right"] for row in rows] == [True, False, True, False, False, True]
    assert [row["source"] for row in rows] == [source_of(i) for i in range(HELD_OUT)]
    assert "sample" not in rows[0] and "answer" not in rows[0]


def test_two_replicas_sample_the_same(
    finished: Path, cluster: Cluster, tiny: TinyModels, tmp_path: Path
) -> None:
    config = config_of(finished, tmp_path / "run")
    config.run.steps, config.run.eval_interval = 1, 0
    first, second = cluster.run(2, evaluated_run, config, tiny("llama"), TWO)
    assert first == second, "ranks decide by their own metrics"
    for name in ("answers-step0.jsonl", "samples-step0.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / "run" / name).read_bytes()


def test_the_report_has_a_row_for_each_source(finished: Path) -> None:
    lines = (finished / "run/report.txt").read_text().splitlines()
    (start,) = [i for i, line in enumerate(lines) if "Evaluation after step 2" in line]
    table = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines[start:]]
    heads = ["source", "accuracy", "pass@1", "pass@2", "pass@4", "maj@4", "reward", "finished"]
    assert table[2] == [*heads, "prompts"]
    assert [row[0] for row in table[4:7]] == ["easy/one", "hard", "all"]
    assert [row[-1] for row in table[4:7]] == ["4", "2", "6"]
    found = expected_metrics(expected_samples())
    assert table[6][1:4] == ["0.5", f"{found['pass@1']:.4g}", f"{found['pass@2']:.4g}"]
    assert any(line.startswith("│ held-out pass@4 ") for line in lines)


def test_a_resumed_run_knows_what_came_before(
    finished: Path, cluster: Cluster, tiny: TinyModels, tmp_path: Path
) -> None:
    """From figures in the checkpoint, without the texts of samples; a step's files are its own."""
    run_dir = tmp_path / "run"
    shutil.copytree(finished / "run", run_dir)
    (state,) = run_dir.glob("checkpoints/iter_0000002/state.json")
    kept = json.loads(state.read_text())["stage"]["evaluations"]
    assert kept.keys() == {"0", "1", "2"} and len(json.dumps(kept)) < 3 * 3000
    assert "sample" not in kept["0"] and len(kept["0"]["shown"]) == HELD_OUT
    (run_dir / "samples-step3.jsonl").write_text("of a step that is made again")
    config = config_of(finished, run_dir)
    config.run.steps = 3
    (metrics,) = cluster.run(1, evaluated_run, config, tiny("llama"), ONE)
    assert list(metrics) == [0, 1, 2, 3] and metrics[0] == metrics[3]
    assert len(read_lines(run_dir / "samples-step3.jsonl")) == HELD_OUT * SAMPLES
    report = (run_dir / "report.txt").read_text()
    assert "Evaluation after step 3" in report and "Right answer" in report
    summary = json.loads((run_dir / "summary.json").read_text())
    assert list(summary["accuracy"]) == ["0", "1", "2", "3"]
