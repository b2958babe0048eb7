"""Files, defaults chains, overrides and shorthands -> a Config with the origin of each key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from megarl.cli.main import main
from megarl.config.docs import help_text, sections, settings
from megarl.config.load import DEFAULT, OVERRIDE, load_config, load_with_origins
from megarl.config.save import save_resolved
from megarl.config.schema import Config
from megarl.errors import ConfigError

FOLDER = Path(__file__).parents[2] / "configs"
PIPELINES = sorted((FOLDER / "pipelines").glob("*.yaml"))
CONFIGS = sorted(set(FOLDER.rglob("*.yaml")) - set(PIPELINES))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "base/model.yaml").write_text("actor: {mesh: t2p2, optimizer: {lr: 1e-5}}\n")
    (tmp_path / "base/long.yaml").write_text(
        "defaults: [model.yaml]\nrun: {steps: 500}\nactor: {optimizer: {lr: 2e-5}}\n"
    )
    (tmp_path / "run.yaml").write_text("defaults: [base/long.yaml]\nrun: {seed: 7}\n")
    return tmp_path


def test_later_wins_and_every_key_knows_its_origin(tree: Path) -> None:
    loaded = load_with_origins(tree / "run.yaml", ["run.seed=9"])
    config, origins = loaded.config, loaded.origins
    assert config.actor.mesh.tensor_model_parallel_size == 2
    assert config.actor.optimizer.lr == 2e-5
    assert (config.run.steps, config.run.seed) == (500, 9)
    assert origins["actor.optimizer.lr"] == str(tree / "base/long.yaml")
    assert origins["actor.mesh.pipeline_model_parallel_size"] == str(tree / "base/model.yaml")
    assert origins["run.seed"] == OVERRIDE
    assert origins["critic.optimizer.lr"] == DEFAULT


def test_no_file_gives_the_defaults() -> None:
    assert load_config(None) == Config()


def test_a_file_may_come_in_twice_but_not_by_itself(tree: Path) -> None:
    (tree / "twice.yaml").write_text("defaults: [base/model.yaml, base/long.yaml]\n")
    assert load_config(tree / "twice.yaml").run.steps == 500
    (tree / "a.yaml").write_text("defaults: [b.yaml]\n")
    (tree / "b.yaml").write_text("defaults: [a.yaml]\n")
    with pytest.raises(ConfigError, match=r"a\.yaml -> .*b\.yaml -> .*a\.yaml"):
        load_config(tree / "a.yaml")


def test_resolved_settings_load_to_the_same_config(tree: Path) -> None:
    overrides = ["reward.kwargs.partial=1e-3", "reward.kwargs.text='a: b # c'", "run.dir='x: y'"]
    overrides += ["resources.actor_gpus=[0,1,2,3]", "rollout.engine_args.nested.deep=[1, a]"]
    loaded = load_with_origins(tree / "run.yaml", overrides)
    saved = tree / "out/config.yaml"
    save_resolved(loaded.config, loaded.origins, saved, "train")
    assert load_config(saved) == loaded.config
    assert "seed: 7  # " + str(tree / "run.yaml") in saved.read_text()
    assert "partial: 0.001  # override" in saved.read_text()
    assert [p.name for p in saved.parent.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("t2p2", {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}),
        ("t2p2d4v3", {"data_parallel_size": 4, "virtual_pipeline_model_parallel_size": 3}),
        ("t8c2e4et2", {"expert_model_parallel_size": 4, "expert_tensor_parallel_size": 2}),
        ("t2+sp", {"sequence_parallel": True, "data_parallel_size": None}),
        ("d2", {"tensor_model_parallel_size": 1, "data_parallel_size": 2}),
    ],
)
def test_mesh_shorthand(text: str, expected: dict[str, object]) -> None:
    for role in ("actor", "critic", "reference"):
        mesh = getattr(load_config(None, [f"{role}.mesh={text}"]), role).mesh
        assert {name: getattr(mesh, name) for name in expected} == expected


def test_shorthand_replaces_the_sizes_of_an_earlier_mesh() -> None:
    mesh = load_config(None, ["actor.mesh=t4p2v2", "actor.mesh=t2"]).actor.mesh
    assert mesh.tensor_model_parallel_size == 2
    assert mesh.pipeline_model_parallel_size == 1
    assert mesh.virtual_pipeline_model_parallel_size is None


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("run.step=3", ["run.step (override)", "did you mean run.steps?"]),
        ("actor.lr=1e-6", ["actor.lr", "did you mean actor.optimizer.lr?"]),
        ("algoritm.gamma=1", ["algoritm", "did you mean algorithm?"]),
        ("run.steps=many", ["run.steps", "'many'", "a whole number", "Training steps"]),
        ("run.steps=2.5", ["run.steps", "2.5", "a whole number"]),
        ("evaluation.pass_at=[1,two]", ["evaluation.pass_at[1] is", "a list of whole numbers"]),
        ("algorithm.whiten_advantages=maybe", ["'maybe'", "true or false"]),
        ("resources.actor_gpus=[0,x]", ["resources.actor_gpus", "lists of ranks"]),
        ("actor.mesh=q2", ["actor.mesh", "'q2'", "t2p2d4"]),
        ("actor.mesh=t2t4", ["'t2t4'", "at most once"]),
        ("actor=3", ["actor", "3", "model, mesh, optimizer"]),
        ("run.dir=${run.nothing}", ["run.dir", "run.nothing"]),
        ("run.steps", ["'run.steps'", "key=value"]),
        ("run.steps=[1", ["run.steps=[1"]),
    ],
)
def test_a_wrong_override_is_named(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    for word in words:
        assert word in str(caught.value)


def test_a_wrong_key_in_a_file_is_named_with_the_file(tree: Path) -> None:
    (tree / "base/model.yaml").write_text("rollout: {temprature: 1.0}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(tree / "run.yaml")
    assert str(tree / "base/model.yaml") in str(caught.value)
    assert "did you mean rollout.temperature?" in str(caught.value)


@pytest.mark.parametrize("text", ["a: [1", "- a\n- b\n", "run: {steps: 1}\nrun: {steps: 2}\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config(tmp_path / "bad.yaml")


def test_a_missing_file_and_a_missing_default_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config file .*nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")
    (tmp_path / "run.yaml").write_text("defaults: [gone.yaml]\n")
    with pytest.raises(ConfigError, match=r"gone\.yaml \(a default of .*run\.yaml\)"):
        load_config(tmp_path / "run.yaml")
    (tmp_path / "run.yaml").write_text("defaults: {gone.yaml: 1}\n")
    with pytest.raises(ConfigError, match="list of paths"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize("override", ["resources=[0,1]", "reward.kwargs=[1]", "resources=null"])
def test_a_list_where_a_mapping_belongs(override: str) -> None:
    key, _, value = override.partition("=")
    with pytest.raises(ConfigError, match=rf"{key} is .*override.*must be a mapping"):
        load_config(None, [override])


def test_every_setting_and_section_is_documented() -> None:
    assert [setting.key for setting in settings() if not setting.doc] == []
    assert [key for key, doc in sections().items() if not doc] == []
    text = help_text()
    for setting in settings():
        assert f"  {setting.key} (" in text
    assert "actor.optimizer.lr (float, default 1e-06)" in text


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configs_that_are_shipped_load(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)
    load_config(path)


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.name)
def test_pipelines_that_are_shipped_can_be_run(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """But for what their first stages make."""
    assert main(["pipeline", str(path), "--dir", str(tmp_path), "--dry-run"]) == 0
    assert "stages in" in capsys.readouterr().out
