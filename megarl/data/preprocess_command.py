"""The command line of `preprocess`; options have Megatron-LM's names where they mean the same."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from megarl.data.preprocess import preprocess
from megarl.runtime.spawn import num_cores
from megarl.runtime.warnings_filter import silence_known_warnings


def build_parser(prog: str) -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Make Megatron's indexed data sets (.bin and .idx) from texts, one a row. The "
        "output is PREFIX_COLUMN_document.bin and .idx, the same for every number of workers; it "
        "appears under its name when it is whole.",
    )
    parser.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help=".jsonl (a JSON object a line) or .parquet files, taken in this order",
    )
    parser.add_argument(
        "--json-keys",
        "--column",
        dest="columns",
        nargs="+",
        default=["text"],
        metavar="COLUMN",
        help="columns with texts, each to a data set of its own (default: text)",
    )
    parser.add_argument(
        "--tokenizer",
        "--tokenizer-model",
        required=True,
        metavar="FOLDER",
        help="Hugging Face folder with the tokenizer",
    )
    parser.add_argument(
        "--tokenizer-type",
        choices=["HuggingFaceTokenizer"],
        default="HuggingFaceTokenizer",
        help="the only type there is, so that Megatron-LM's command lines fit",
    )
    parser.add_argument(
        "--append-eod",
        action="store_true",
        help="end every document with the tokenizer's eos_token",
    )
    parser.add_argument(
        "--output-prefix",
        type=Path,
        required=True,
        metavar="PREFIX",
        help="beginning of the output's paths",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=num_cores(),
        metavar="N",
        help="processes that tokenize (default here: %(default)s)",
    )
    return parser


def main(arguments: Sequence[str] | None = None, prog: str = "preprocess_data.py") -> int:
    """Make the data sets and say what was made; returns the exit status."""
    parsed = build_parser(prog).parse_args(arguments)
    silence_known_warnings()
    written = preprocess(
        [path.expanduser() for path in parsed.input],
        parsed.output_prefix.expanduser(),
        str(Path(parsed.tokenizer).expanduser()),
        columns=parsed.columns,
        append_eod=parsed.append_eod,
        workers=parsed.workers,
    )
    for one in written:
        empty = f" ({one.num_empty} texts without a token left out)" if one.num_empty else ""
        sys.stdout.write(
            f"{one.prefix}: {one.num_documents} documents, {one.num_tokens} tokens{empty}\n"
        )
    return 0
