"""A folder of weights appears whole or not at all."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megarl.weights.folder import FolderWriter


@pytest.fixture
def template(tmp_path: Path) -> Path:
    (tmp_path / "template").mkdir()
    (tmp_path / "template" / "config.json").write_text('{"torch_dtype": "float32"}')
    return tmp_path / "template"


def test_a_failed_write_leaves_the_old_folder_alone(tmp_path: Path, template: Path) -> None:
    folder = tmp_path / "model"
    with FolderWriter(folder, template, 1) as writer:
        writer.write({"a": torch.ones(2)})
        writer.finish(torch.float32)
    with pytest.raises(OSError, match="disk"), FolderWriter(folder, template, 2) as writer:
        writer.write({"a": torch.zeros(2)})
        raise OSError("disk full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "template"]
    assert torch.equal(load_file(folder / "model.safetensors")["a"], torch.ones(2))


def test_an_older_folder_is_replaced_whole(tmp_path: Path, template: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model-00001-of-00007.safetensors").write_text("old")
    with FolderWriter(folder, template, 1) as writer:
        writer.write({"a": torch.ones(2)})
        writer.finish(torch.bfloat16)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "config.json").read_text().count("bfloat16") == 1
