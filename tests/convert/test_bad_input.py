"""What cannot be converted is one message with its cause, and leaves nothing behind."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_folder import change_config
from torch import Tensor
from torch.distributed.checkpoint import metadata as dcp

from megarl.cli.main import main

Q = "model.layers.1.self_attn.q_proj.weight"
LAST = "model.layers.3.mlp.down_proj.weight"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
QKV = "decoder.layers.self_attention.linear_qkv.weight"


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of a Hugging Face folder that is right."""
    return Path(shutil.copytree(made / "model", tmp_path / "model"))


@pytest.fixture(scope="module")
def converted(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, converted."""
    target = tmp_path_factory.mktemp("converted") / "ckpt"
    assert main(["convert", "hf-to-megatron", str(made / "model"), str(target)]) == 0
    return target


@pytest.fixture
def checkpoint(converted: Path, tmp_path: Path) -> Path:
    """A converted checkpoint that is right."""
    return Path(shutil.copytree(converted, tmp_path / "ckpt"))


def refused(
    capsys: pytest.CaptureFixture[str],
    direction: str,
    source: Path,
    *words: str,
    status: int = 2,
    options: tuple[str, ...] = (),
) -> None:
    """One line of error with these words, this status, and no output, whole or in part."""
    target = source.parent / "out"
    capsys.readouterr()
    arguments = ["convert", direction, str(source), str(target), "--workers", "1", *options]
    assert main(arguments) == status
    printed = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("megarl: error")
    ]
    assert len(printed) == 1
    for word in words:
        assert word in printed[0], f"{word!r} is not in: {printed[0]}"
    assert not list(source.parent.glob("out*"))


def edited(folder: Path, edit: Callable[[dict[str, Tensor]], None]) -> Path:
    """The folder, with its tensors changed."""
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)
    return folder


def split(folder: Path) -> dict[str, str]:
    """Make two files and an index of the folder's one; returns tensor -> file."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    half = len(names) // 2
    found = {}
    for number, part in enumerate((names[:half], names[half:])):
        file = f"model-{number + 1:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        found |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": found}))
    (folder / WEIGHTS).unlink()
    return found


class Edit(NamedTuple):
    """A change of the tensors and what the message says then."""

    change: Callable[[dict[str, Tensor]], Any]
    words: tuple[str, ...]


EDITS = {
    "missing": Edit(lambda t: t.pop(Q), ("1 tensors are missing", Q)),
    "renamed": Edit(lambda t: t.update({"model.q": t.pop(Q)}), ("1 tensors are missing", Q)),
    "extra": Edit(lambda t: t.update({"model.extra": torch.ones(2)}), ("model.extra",)),
    "misshapen": Edit(
        lambda t: t.update({Q: torch.zeros(64, 128)}),
        (WEIGHTS, Q, "[64, 128]", "[128, 128]"),
    ),
    "int8": Edit(
        lambda t: t.update({name: value.to(torch.int8) for name, value in t.items()}),
        (WEIGHTS, "type I8", "BF16"),
    ),
    "mixed": Edit(lambda t: t.update({Q: t[Q].bfloat16()}), (Q, "bfloat16", "float32", "--dtype")),
}


@pytest.mark.parametrize("name", EDITS)
def test_wrong_tensors(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "hf-to-megatron", edited(folder, EDITS[name].change), *EDITS[name].words)


def test_mixed_types_convert_when_one_is_chosen(folder: Path, tmp_path: Path) -> None:
    edited(folder, EDITS["mixed"].change)
    out = str(tmp_path / "ckpt")
    assert main(["convert", "hf-to-megatron", str(folder), out, "--dtype", "bfloat16"]) == 0


def test_files_that_are_not_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = (folder / WEIGHTS).stat().st_size
    os.truncate(folder / WEIGHTS, size - 100)
    refused(capsys, "hf-to-megatron", folder, WEIGHTS, "truncated")
    (folder / WEIGHTS).unlink()
    refused(capsys, "hf-to-megatron", folder, str(folder), "no safetensors files")


def test_an_index_that_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file_of = split(folder)
    other = next(file for file in file_of.values() if file != file_of[Q])
    (folder / INDEX).write_text(json.dumps({"weight_map": file_of | {Q: other}}))
    refused(capsys, "hf-to-megatron", folder, other, Q, "the index says so")
    (folder / INDEX).write_text(json.dumps({"weight_map": file_of}))
    (folder / other).unlink()
    refused(capsys, "hf-to-megatron", folder, f"{other} is missing")


def test_models_that_are_not_known(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_config(folder, architectures=["GPT2LMHeadModel"])
    refused(capsys, "hf-to-megatron", folder, "GPT2LMHeadModel", "known: LlamaForCausalLM")
    (folder / "config.json").unlink()
    refused(capsys, "hf-to-megatron", folder, "config.json", "give the path of a Hugging Face")


def test_outputs_that_cannot_be(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = folder.parent / "taken"
    taken.mkdir()
    (taken / "mine").write_text("x")
    assert main(["convert", "hf-to-megatron", str(folder), str(taken)]) == 2
    assert f"{taken} exists already" in capsys.readouterr().err
    assert [file.name for file in taken.iterdir()] == ["mine"]
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5_000_000))
    refused(capsys, "hf-to-megatron", folder, "0.005 GB left")
    refused(capsys, "hf-to-megatron", folder, "--workers is 0", options=("--workers", "0"))


@pytest.mark.parametrize("direction", ["hf-to-megatron", "megatron-to-hf"])
def test_a_disk_that_fills_up(
    direction: str, folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """Files may not grow beyond 100 KB: the kernel says so in the middle of a tensor."""
    source = folder if direction == "hf-to-megatron" else checkpoint
    shard = () if direction == "hf-to-megatron" else ("--max-shard-gb", "0.0005")
    done = subprocess.run(
        [sys.executable, "-m", "megarl.cli.main", "convert", direction, str(source),
         str(tmp_path / "out"), *shard],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("megarl: error")]
    assert len(errors) == 1 and "File too large" in errors[0] and "make room" in errors[0]
    name = "distcp, at decoder." if direction == "hf-to-megatron" else "safetensors, at model."
    assert name in errors[0] or "at embedding." in errors[0] or "at lm_head" in errors[0]
    assert not list(tmp_path.glob("out*"))


def test_checkpoints_that_are_not_whole(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = checkpoint.glob("release/__0_0.distcp")
    whole = file.read_bytes()
    os.truncate(file, len(whole) - 4000)
    refused(capsys, "megatron-to-hf", checkpoint, file.name, "truncated", "copy it again")
    file.unlink()
    refused(capsys, "megatron-to-hf", checkpoint, file.name, "missing")
    file.write_bytes(b"\0" * len(whole))
    words = (file.name, "no tensor can be read")
    refused(capsys, "megatron-to-hf", checkpoint, *words)
    (checkpoint / "release" / ".metadata").unlink()
    refused(capsys, "megatron-to-hf", checkpoint, "there is no .metadata")
    refused(capsys, "megatron-to-hf", checkpoint / "nowhere", "there is no such folder")


def test_one_changed_element_is_noticed(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = checkpoint.glob("release/__0_0.distcp")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    words = ("is not what it was when the checkpoint was made", "model.")
    refused(capsys, "megatron-to-hf", checkpoint, *words, status=1)


def changed_tables(checkpoint: Path, change: Callable[[Any], None]) -> Path:
    """The checkpoint, with its table of contents changed."""
    file = checkpoint / "release" / ".metadata"
    tables = pickle.loads(file.read_bytes())
    change(tables)
    file.write_bytes(pickle.dumps(tables))
    return checkpoint


def test_tables_that_do_not_fit(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def rename(tables: Any) -> None:
        states = tables.state_dict_metadata
        states["decoder.layers.self_attention.qkv.weight"] = states.pop(QKV)

    whole = (checkpoint / "release" / ".metadata").read_bytes()
    changed_tables(checkpoint, rename)
    refused(capsys, "megatron-to-hf", checkpoint, "has no place in any file")
    (checkpoint / "release" / ".metadata").write_bytes(whole)
    changed_tables(checkpoint, lambda tables: tables.state_dict_metadata.pop(QKV))
    refused(capsys, "megatron-to-hf", checkpoint, f"there is no tensor {QKV}")
    (checkpoint / "release" / ".metadata").write_bytes(whole)
    changed_tables(checkpoint, lambda tables: tables.state_dict_metadata[QKV].chunks.pop())
    refused(capsys, "megatron-to-hf", checkpoint, QKV, "was not saved whole")
    (checkpoint / "release" / ".metadata").write_bytes(pickle.dumps(print))
    refused(capsys, "megatron-to-hf", checkpoint, "builtins.print", "no checkpoint needs")
    (checkpoint / "release" / ".metadata").write_bytes(pickle.dumps(_Reaching()))
    refused(capsys, "megatron-to-hf", checkpoint, "getattr of", "no checkpoint needs")


class _Reaching:
    """Pickled as getattr(Metadata, "__init__")."""

    def __reduce__(self) -> Any:
        return getattr, (dcp.Metadata, "__init__")


class _OldPython(pickle.Pickler):
    """Writes members of enums as Python 3.11.0 to 3.11.3 do."""

    def reducer_override(self, value: Any) -> Any:
        return (getattr, (type(value), value.name)) if isinstance(value, Enum) else NotImplemented


def test_tables_of_an_older_python(checkpoint: Path) -> None:
    file = checkpoint / "release" / ".metadata"
    tables = io.BytesIO()
    _OldPython(tables).dump(pickle.loads(file.read_bytes()))
    assert b"getattr" in tables.getvalue()
    file.write_bytes(tables.getvalue())
    target = checkpoint.parent / "back"
    assert main(["convert", "megatron-to-hf", str(checkpoint), str(target), "--workers", "1"]) == 0


def test_configs_of_another_model(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_config(checkpoint / "hf", num_hidden_layers=3)
    refused(capsys, "megatron-to-hf", checkpoint, "linear_qkv", "[4, 128]", "[3, 128]")
    change_config(checkpoint / "hf", num_hidden_layers=4, tie_word_embeddings=True)
    refused(capsys, "megatron-to-hf", checkpoint, "output_layer.weight", "does not ask for")
    shutil.rmtree(checkpoint / "hf")
    refused(capsys, "megatron-to-hf", checkpoint, "--hf")


def test_a_second_conversion_to_the_same_folder_waits_for_nobody(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import fcntl

    with (tmp_path / "out.partial.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["convert", "hf-to-megatron", str(folder), str(tmp_path / "out")]) == 2
    assert "another process is writing it now" in capsys.readouterr().err
