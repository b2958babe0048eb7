"""A pipeline file: references, overrides, and one clear message for what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from megarl.cli.main import RUNS
from megarl.errors import ConfigError
from megarl.pipeline.check import check_stages, load_stages
from megarl.pipeline.spec import Pipeline, load_pipeline

GOOD: dict[str, Any] = {
    "dir": "out/${name}",
    "seed": 3,
    "stages": [
        {"name": "data", "run": "python -m tool --dir '${dir}/my data' --seed ${seed}"},
        {
            "name": "base",
            "command": "pretrain",
            "config": "one.yaml",
            "overrides": {"actor.model.path": "${data.dir}", "actor": {"mesh": "t2p2"}},
            "metric": "eval/probability",
        },
        {
            "name": "ppo",
            "command": "train",
            "config": "one.yaml",
            "overrides": {"actor.model.path": "${base.model}", "run.seed": 9},
        },
    ],
}


def write(folder: Path, **changes: Any) -> Path:
    (folder / "one.yaml").write_text("run: {steps: 2}\n")
    path = folder / "demo.yaml"
    path.write_text(yaml.safe_dump(GOOD | changes))
    return path


def load(file: Path, *overrides: str, folder: str | None = None) -> Pipeline:
    return load_pipeline(file, overrides, folder=folder, commands=tuple(RUNS))


def test_references_become_paths(tmp_path: Path) -> None:
    pipeline = load(write(tmp_path))
    data, base, ppo = pipeline.stages
    assert pipeline.folder == Path("out/demo")
    assert data.run == ("python", "-m", "tool", "--dir", "out/demo/my data", "--seed", "3")
    assert base.folder == Path("out/demo/base")
    assert base.overrides["actor.model.path"] == "out/demo/data"
    assert base.override_words()[:2] == ["run.dir=out/demo/base", "run.seed=3"]
    assert ppo.overrides["actor.model.path"] == "out/demo/base/model"
    assert ppo.overrides["run.seed"] == 9
    assert (base.uses, ppo.uses) == (("data",), ("base",))


def test_a_run_folder_of_its_own_is_followed(tmp_path: Path) -> None:
    stages = [GOOD["stages"][0], GOOD["stages"][1] | {"overrides": {"run.dir": "${dir}/x"}}]
    later = GOOD["stages"][2]
    pipeline = load(write(tmp_path, stages=[*stages, later]))
    assert pipeline.stage("ppo").overrides["actor.model.path"] == "out/demo/x/model"


def test_the_command_line_wins(tmp_path: Path) -> None:
    pipeline = load(write(tmp_path), "seed=5", "ppo.run.steps=7", folder="else")
    assert pipeline.folder == Path("else")
    assert pipeline.stage("base").overrides["run.seed"] == 5
    assert pipeline.stage("ppo").overrides["run.steps"] == 7
    assert load_stages(pipeline)["ppo"].config.run.steps == 7


@pytest.mark.parametrize("value", ["null", "a b", "t2p2", True, 1.5e-5, [0, 1], {}])
def test_override_words_say_the_value(value: Any, tmp_path: Path) -> None:
    stage = GOOD["stages"][2] | {"overrides": {"reward.kwargs.x": value, "data.train_path": "=="}}
    pipeline = load(write(tmp_path, stages=[stage]))
    config = load_stages(pipeline)["ppo"].config
    assert config.reward.kwargs["x"] == value and type(config.reward.kwargs["x"]) is type(value)
    assert config.data.train_path == "=="


def stage(**changes: Any) -> dict[str, Any]:
    return {"stages": [{"name": "one", "command": "train", "config": "one.yaml"} | changes]}


TWICE = {"stages": [GOOD["stages"][0], GOOD["stages"][0]]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stage": []}, ("stage is no key", "did you mean stages?")),
        ({"stages": []}, ("stages is []",)),
        ({"seed": "x"}, ("seed is 'x'", "whole number")),
        (stage(comand="train"), ("stages[0].comand is no key", "did you mean command?")),
        (stage(name="stages"), ("name is 'stages'", "none of")),
        (stage(name=7), ("name is 7",)),
        (stage(command="tran"), ("stage one", "'tran'", "train, pretrain")),
        (stage(run="x"), ("stage one", "either command", "or run")),
        (stage(config="two.yaml"), ("stage one", "'two.yaml'", "relative to the pipeline file")),
        (stage(config=None), ("stage one", "config is None")),
        (stage(overrides=[1]), ("stage one", "overrides is [1]", "mapping")),
        (stage(slurm={"node": 1}), ("slurm.node is no key", "did you mean nodes?")),
        (stage(overrides={"run.dir": "${two.dir}"}), ("stage one", "${two.dir}", "earlier")),
        (stage(overrides={"data.train_path": "${dri}"}), ("${dri}", "refers to nothing")),
        ({"stages": [{"name": "one", "run": "x 'y"}]}, ("stage one", "run: No closing quotation")),
        ({"stages": [{"name": "one", "run": "x", "config": "y"}]}, ("config belongs to command",)),
        (TWICE, ("two stages are named 'data'",)),
    ],
)
def test_what_is_wrong_is_said(
    changes: dict[str, Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, **changes))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("override", ["ppo=1", "data.run=x", "later.run.steps=2", "stages=[]"])
def test_overrides_of_nothing_are_refused(override: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="STAGE.KEY|there are name, dir, seed, base.KEY, ppo.KEY"):
        load(write(tmp_path), override)


def test_a_later_stage_is_named_with_its_wrong_key(tmp_path: Path) -> None:
    pipeline = load(write(tmp_path), "ppo.run.stepps=7")
    with pytest.raises(ConfigError, match=r"stage ppo: run.stepps .*did you mean run.steps"):
        load_stages(pipeline)


def check(file: Path, *overrides: str) -> dict[str, int]:
    pipeline = load(file, *overrides)
    return check_stages(pipeline, load_stages(pipeline)).ranks


def pipeline_of(made: Path, folder: Path) -> Path:
    """sft -> train on a model folder that is there."""
    config = f"""
actor: {{model: {{path: {made / "model"}}}, mesh: t2p2}}
rollout: {{tensor_parallel_size: 2}}
data: {{train_path: {made / "train.jsonl"}, response_column: label, rollout_batch_size: 16,
        max_prompt_length: 64, max_response_length: 64}}
algorithm: {{global_batch_size: 16}}
"""
    (folder / "one.yaml").write_text(config)
    stages = [
        {"name": "base", "command": "sft", "config": "one.yaml"},
        {
            "name": "ppo",
            "command": "train",
            "config": "one.yaml",
            "overrides": {"actor.model.path": "${base.model}"},
        },
    ]
    path = folder / "two.yaml"
    path.write_text(yaml.safe_dump({"dir": str(folder / "out"), "stages": stages}))
    return path


def test_what_is_not_there_yet_is_not_demanded(made: Path, tmp_path: Path) -> None:
    assert check(pipeline_of(made, tmp_path)) == {"base": 4, "ppo": 4}


def test_an_indexed_data_set_of_an_earlier_stage(made: Path, tmp_path: Path) -> None:
    """It goes by a prefix, which is no file; one that nobody makes is missed."""
    tool = {"name": "data", "run": "tool"}
    base = {"name": "base", "command": "pretrain", "config": "two.yaml"}
    config = f"actor: {{model: {{path: {made / 'model'}}}}}\ndata: {{indexed: {{seq_length: 32}}}}"
    for blend, fits in ((["${data.dir}/text"], True), ([f"{made}/text"], False)):
        file = write(tmp_path, stages=[tool, base | {"overrides": {"data.indexed.blend": blend}}])
        (tmp_path / "two.yaml").write_text(config)
        if fits:
            assert check(file) == {"base": 1}
        else:
            with pytest.raises(ConfigError, match="stage base: .*text"):
                check(file)


def test_a_reward_model_that_is_to_come_is_checked(made: Path, tmp_path: Path) -> None:
    file = pipeline_of(made, tmp_path)
    plan = yaml.safe_load(file.read_text())
    plan["stages"].insert(1, {"name": "judge", "command": "reward", "config": "one.yaml",
                              "overrides": {"actor.model.path": "${base.model}"}})  # fmt: skip
    plan["stages"][2]["overrides"]["reward.model.path"] = "${judge.model}"
    file.write_text(yaml.safe_dump(plan))
    columns = "judge.data.chosen_column=prompt", "judge.data.rejected_column=label"
    assert check(file, *columns)["ppo"] == 4
    with pytest.raises(ConfigError, match="stage ppo: reward.mesh"):
        check(file, *columns, "ppo.reward.mesh=p3")


def test_a_mesh_is_checked_before_its_model_is_there(made: Path, tmp_path: Path) -> None:
    """The model that fine-tuning starts from stands in for the one that it will write."""
    with pytest.raises(ConfigError, match=r"stage ppo: .*tensor_model_parallel_size"):
        check(pipeline_of(made, tmp_path), "ppo.actor.mesh=t4")


def test_what_no_stage_will_write_is_demanded(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stage ppo: .*elsewhere"):
        check(pipeline_of(made, tmp_path), f"ppo.actor.model.path={tmp_path / 'elsewhere'}")
    with pytest.raises(ConfigError, match="stage base: .*none.jsonl"):
        check(pipeline_of(made, tmp_path), f"base.data.train_path={tmp_path / 'none.jsonl'}")
