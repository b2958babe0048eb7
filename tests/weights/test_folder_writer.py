"""A folder of weights appears whole or not at all."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megarl.weights.folder import new_folder


@pytest.fixture
def template(tmp_path: Path) -> Path:
    (tmp_path / "template").mkdir()
    (tmp_path / "template" / "config.json").write_text('{"torch_dtype": "float32"}')
    return tmp_path / "template"


def test_a_failed_write_leaves_the_old_folder_alone(tmp_path: Path, template: Path) -> None:
    folder = tmp_path / "model"
    with new_folder(folder, template, 1) as writer:
        writer.write({"a": torch.ones(2)})
        writer.finish(torch.float32)
    with pytest.raises(OSError, match="disk"), new_folder(folder, template, 2) as writer:
        writer.write({"a": torch.zeros(2)})
        raise OSError("disk full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "template"]
    assert torch.equal(load_file(folder / "model.safetensors")["a"], torch.ones(2))


def test_an_older_folder_is_replaced_whole(tmp_path: Path, template: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model-00001-of-00007.safetensors").write_text("old")
    with new_folder(folder, template, 1) as writer:
        writer.write({"a": torch.ones(2)})
        writer.finish(torch.bfloat16)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "config.json").read_text().count("bfloat16") == 1


def test_all_that_lies_beside_the_weights_travels_and_no_weights(
    tmp_path: Path, template: Path
) -> None:
    (template / "additional_chat_templates").mkdir()
    for name in ("chat_template.jinja", "vocab.txt", "additional_chat_templates/tools.jinja"):
        (template / name).write_text(name)
    for name in (
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "x.pth",
        "t.jsonl",
    ):
        (template / name).write_text("not ours")
    with new_folder(tmp_path / "model", template, 1) as writer:
        writer.write({"a": torch.ones(2)})
        writer.finish(torch.float32)
    found = {str(path.relative_to(tmp_path / "model")) for path in (tmp_path / "model").rglob("*")}
    templates = {"additional_chat_templates", "additional_chat_templates/tools.jinja"}
    own = {"config.json", "model.safetensors", "chat_template.jinja", "vocab.txt"}
    assert found == own | templates
