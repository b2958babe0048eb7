"""`megarl convert hf-to-megatron` and `megarl convert megatron-to-hf`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from megarl.errors import ConfigError, VerificationError

DIRECTIONS = {
    "hf-to-megatron": "a Hugging Face folder to a torch_dist checkpoint of Megatron-Core, which "
    "any tensor, pipeline and expert parallelism loads",
    "megatron-to-hf": "a torch_dist checkpoint of Megatron-Core, saved under any parallelism, to "
    "a Hugging Face folder",
}
DTYPES = ("float32", "bfloat16", "float16")
MOST_WORKERS = 8


def build_parser(direction: str, prog: str) -> argparse.ArgumentParser:
    """The arguments of one direction."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=f"Convert {DIRECTIONS[direction]}. Weights stream through a few hundred "
        "megabytes a worker; every tensor is read back and compared by digest; the output appears "
        "under its name when it is whole.",
    )
    to_megatron = direction == "hf-to-megatron"
    source = "Hugging Face folder" if to_megatron else "checkpoint, or the folder above it"
    target = "folder for the checkpoint" if to_megatron else "Hugging Face folder"
    parser.add_argument("source", metavar="SOURCE", type=Path, help=f"{source} to read")
    parser.add_argument("target", metavar="TARGET", type=Path, help=f"{target}; must not exist")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="cast the weights (default: as they are in SOURCE)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=min(os.cpu_count() or 1, MOST_WORKERS),
        metavar="N",
        help="processes, each writing files of its own (default here: %(default)s)",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="afterwards run a few tokens through transformers and through Megatron-Core, both in "
        "fp32, and print the largest difference of the logits (4 bytes of memory a parameter)",
    )
    if not to_megatron:
        parser.add_argument(
            "--hf",
            metavar="FOLDER",
            type=Path,
            help="where config.json and tokenizer are taken from (default: the folder hf that a "
            "conversion put beside the checkpoint)",
        )
        parser.add_argument(
            "--max-shard-gb",
            type=float,
            default=5.0,
            metavar="GB",
            help="size of an output file at most (default: %(default)s)",
        )
    return parser


def main(direction: str, arguments: Sequence[str], prog: str | None = None) -> int:
    """Convert, verify where that is asked for, and say what was made; returns the exit status."""
    parsed = build_parser(direction, prog or f"megarl convert {direction}").parse_args(arguments)
    if parsed.workers < 1:
        raise ConfigError(f"--workers is {parsed.workers}: give 1 or more")
    import torch

    from megarl.convert.arguments import other_rope
    from megarl.convert.digests import has_digests
    from megarl.convert.hf_to_megatron import hf_to_megatron
    from megarl.convert.megatron_to_hf import checkpoint_folder, megatron_to_hf
    from megarl.validate.models import read_hf_config

    source, target = parsed.source.expanduser(), parsed.target.expanduser()
    dtype = getattr(torch, parsed.dtype) if parsed.dtype else None
    said: list[str] = []

    def compare(folder: Path, checkpoint: Path) -> None:
        said.append(_compare_logits(folder, checkpoint, parsed.dtype or "float32"))

    verify = compare if parsed.verify else None
    if direction == "hf-to-megatron":
        if warning := other_rope(read_hf_config(source, "source")):
            sys.stderr.write(f"megarl: {warning}\n")
        hf_to_megatron(source, target, dtype=dtype, workers=parsed.workers, verify=verify)
    else:
        if parsed.max_shard_gb <= 0:
            raise ConfigError(f"--max-shard-gb is {parsed.max_shard_gb}: give more than 0")
        megatron_to_hf(
            source,
            target,
            hf=parsed.hf and parsed.hf.expanduser(),
            dtype=dtype,
            workers=parsed.workers,
            max_shard_bytes=int(parsed.max_shard_gb * 1e9),
            verify=verify,
        )
    known = direction == "hf-to-megatron" or (
        dtype is None and has_digests(checkpoint_folder(source))
    )
    proof = (
        "every tensor's digest is right" if known
        else "every tensor is as it was read (the checkpoint has no digests to compare with)"
    )  # fmt: skip
    sys.stdout.write(f"{target}: written, {proof}\n")
    sys.stdout.writelines(f"{line}\n" for line in said)
    return 0


def _compare_logits(folder: Path, checkpoint: Path, dtype: str) -> str:
    """What the comparison found; VerificationError where the two are not the same model."""
    import torch

    from megarl.mesh.universe import Pool, Universe
    from megarl.runtime.bringup import Launch, free_port
    from megarl.train.main import prepare_process
    from megarl.validate.models import read_model

    hf, shape = read_model(folder, "source")
    launch = Launch(0, 1, 0, "127.0.0.1", free_port(), 0, "alone")
    prepare_process(launch)
    universe = Universe(launch, [Pool("all", (0,))], 600.0)
    try:
        # Megatron-Core comes in here: the process must have its stand-in for torch.cuda first.
        from megarl.convert.logits import compare_logits

        found = compare_logits(folder, checkpoint, hf, shape, getattr(torch, dtype))
    finally:
        universe.close()
    what = "values" if shape.scalar_head else "logits"
    text = f"largest difference of {what}: {found.largest:.3g} (the largest is {found.scale:.3g})"
    if not found.acceptable:
        raise VerificationError(f"{checkpoint}: {text}: the two are not the same model")
    return text
