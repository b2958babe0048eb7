"""Report: tables with their figures, and a picture with a panel per metric there is."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from megarl.errors import DataError
from megarl.observe.curves import PANELS, Panel, _moving_mean, _series, plot_curves
from megarl.observe.logger import Logger
from megarl.observe.report import (
    SampleAnswer,
    answers_table,
    show,
    sources_table,
    summary_table,
    to_text,
)


def test_summary_table_holds_the_figures():
    rows = {"accuracy": (0.12, 0.94), "tokens": (12345, 2345678.0), "stop": ("-", "limit")}
    text = to_text(summary_table(rows, ["", "before", "after"], title="Run"))
    for part in ("Run", "before", "0.12", "0.94", "12,345", "2,345,678", "limit"):
        assert part in text
    single = to_text(summary_table({"steps": 120}, ["what", "value"]))
    assert "120" in single
    with pytest.raises(ValueError, match="row 'x' has 1 cells for 2 columns"):
        summary_table({"x": 1}, ["", "a", "b"])


def rows_of(table):
    lines = [line for line in to_text(table).splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_an_evaluation_has_a_row_for_each_source():
    names = ("accuracy", "pass@1", "pass@2", "maj@2", "sampled_accuracy", "reward_mean")
    metrics = {f"eval/{name}": 0.1 * i for i, name in enumerate(names)}
    metrics |= {f"eval/{name}/org/sums": 0.01 * i for i, name in enumerate(names)}
    metrics |= {f"eval/{name}/all": 0.2 * i for i, name in enumerate(names)}
    assert rows_of(sources_table(metrics, {"org/sums": 1, "all": 1999})) == [
        ["source", "accuracy", "pass@1", "pass@2", "maj@2", "reward", "prompts"],
        ["all", "0", "0.2", "0.4", "0.6", "1", "1,999"],
        ["org/sums", "0", "0.01", "0.02", "0.03", "0.05", "1"],
        ["(all)", "0", "0.1", "0.2", "0.3", "0.5", "2,000"],
    ]
    one = {"eval/reward_mean": 0.5, "eval/finished": 1.0}
    assert rows_of(sources_table(one, {"sums": 7})) == [
        ["source", "reward", "finished", "prompts"], ["all", "0.5", "1", "7"]
    ]  # fmt: skip
    fewer = {"eval/pass@2": 0.5, "eval/sampled_accuracy": 0.25}  # without pass@1
    assert rows_of(sources_table(fewer, {"sums": 7}))[1] == ["all", "0.5", "0.25", "7"]


def test_answers_stand_side_by_side_and_markup_is_text():
    sample = SampleAnswer("4 - [b]1[/b] =", "3", "", "three " * 50, 0.0, 1.0)
    text = to_text(answers_table([sample]))
    assert "4 - [b]1[/b] =" in text and "(empty)" in text and "…" in text
    assert "reward 0" in text and "reward 1" in text


def test_show_writes_to_the_console_it_is_given(capsys):
    console = Console(file=io.StringIO())
    show(summary_table({"steps": 1}, ["what", "value"]), console)
    assert "steps" in console.file.getvalue() and "\x1b" not in console.file.getvalue()
    show(summary_table({"steps": 1}, ["what", "value"]))
    assert "steps" in capsys.readouterr().out


def log_run(folder, num_steps=60):
    with Logger(use_tensorboard=False, log_dir=folder) as logger:
        for step in range(1, num_steps + 1):
            metrics = {"reward_mean": step / 60, "actor/entropy": 1 / step, "lr": 1e-5}
            metrics |= {"timing_s/generate": 2.0, "timing_s/step": 3.0}
            if step % 2:
                metrics["timing_s/update"] = 1.0
            logger.log(metrics, step)
    return folder / "metrics.jsonl"


def test_curves_become_a_png(tmp_path):
    path = plot_curves(log_run(tmp_path), tmp_path / "plots" / "curves.png", title="run")
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) > 10_000


def test_panels_choose_metrics_by_name():
    metrics = {
        "actor/ppo_kl": 1.0,
        "kl_coef": 2.0,
        "timing_s/step": 3.0,
        "timing_s/update/actor": 4.0,
        "timing_s/sync": 5.0,
    }
    chosen = {panel.title: list(_series({1: metrics}, panel)) for panel in PANELS}
    assert chosen["KL"] == ["actor/ppo_kl"]
    assert chosen["Time per phase"] == ["timing_s/sync"]


def test_the_moving_mean_keeps_a_line_and_its_ends():
    line = [0.5 * i for i in range(60)]
    assert _moving_mean(line, 3) == pytest.approx(line)


def test_nothing_to_draw_is_named(tmp_path):
    path = log_run(tmp_path, num_steps=1)
    with pytest.raises(DataError, match=r"nothing to draw; they have: .*'lr'"):
        plot_curves(path, tmp_path / "x.png", panels=[Panel("None", ("nothing",))])
