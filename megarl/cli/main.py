"""`megarl`: parses the command line, and turns what goes wrong into a message and a status."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from megarl.cli.output import complain, tell
from megarl.errors import ConfigError, MegaRLError

RUNS = {
    "train": "Train with PPO, GRPO or another estimator",
    "pretrain": "Next-token training of the actor's model on indexed data sets (data.indexed)",
    "sft": "Supervised fine-tuning of the actor's model on the answers in data.train_path",
    "reward": "Train a reward model (the actor's sections) on the preferences in data.train_path",
    "eval": "Greedy answers on data.eval_path, scored by the reward",
}
BENCHES = ("step", "reshard", "pack", "advantages", "rollout")
PLANS = ("reshard",)
CONVERSIONS = ("hf-to-megatron", "megatron-to-hf")
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (2: the input is wrong, 1: the run failed)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except MegaRLError as error:
        complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output (`| head`) has seen enough.
        sys.stderr.close()
        return 0


def build_parser(*, with_settings: bool) -> argparse.ArgumentParser:
    """The parser; `with_settings` puts every key of the config under the help of a run."""
    parser = argparse.ArgumentParser(
        prog="megarl",
        description="Reinforcement learning for language models on Megatron-Core and vLLM.",
        epilog="`megarl train --help` lists every key of a config.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    epilog = _settings_help() if with_settings else None
    for name, text in RUNS.items():
        run = commands.add_parser(
            name,
            help=text,
            description=f"{text}.",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        run.add_argument("config", metavar="CONFIG", help="YAML file")
        run.add_argument(
            "overrides", nargs="*", metavar="a.b=c", help="settings that win over the file's"
        )
        run.add_argument(
            "--dry-run", action="store_true", help="validate, print the meshes rank by rank, stop"
        )
        run.add_argument(
            "--ranks-per-node",
            type=int,
            metavar="N",
            help="for --dry-run: ranks of one node (default: all)",
        )
    commands.add_parser("doctor", help="Say what is installed, what is missing, and its cost")
    plan = commands.add_parser("plan", help="Say what something will cost: " + ", ".join(PLANS))
    plan.add_argument("name", choices=PLANS)
    plan.add_argument("arguments", nargs=argparse.REMAINDER, help="see `megarl plan NAME --help`")
    convert = commands.add_parser("convert", help="Convert weights: " + ", ".join(CONVERSIONS))
    convert.add_argument("name", choices=CONVERSIONS)
    convert.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="see `megarl convert NAME --help`"
    )
    pipeline = commands.add_parser("pipeline", help="Run the stages of a pipeline file in order")
    pipeline.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="see `megarl pipeline --help`"
    )
    submit = commands.add_parser("submit", help="Submit a pipeline or a config as SLURM jobs")
    submit.add_argument("arguments", nargs=argparse.REMAINDER, help="see `megarl submit --help`")
    bench = commands.add_parser("bench", help="Measure: " + ", ".join(BENCHES))
    bench.add_argument("name", choices=BENCHES)
    bench.add_argument("arguments", nargs=argparse.REMAINDER, help="see `megarl bench NAME --help`")
    return parser


def _dispatch(arguments: list[str]) -> int:
    # Options of a bench, a plan or a conversion are its own: argparse would take one for ours.
    if arguments[:1] == ["bench"] and arguments[1:2] and arguments[1] in BENCHES:
        return _bench(arguments[1], arguments[2:])
    if arguments[:1] == ["plan"] and arguments[1:2] and arguments[1] in PLANS:
        from megarl.cli.plan import main as plan

        return plan(arguments[2:])
    if arguments[:1] == ["convert"] and arguments[1:2] and arguments[1] in CONVERSIONS:
        from megarl.convert.commands import main as convert

        return convert(arguments[1], arguments[2:])
    if arguments[:1] == ["pipeline"]:
        from megarl.pipeline.commands import main as pipeline

        return pipeline(arguments[1:], tuple(RUNS), tell)
    if arguments[:1] == ["submit"]:
        from megarl.slurm.commands import main as submit

        return submit(arguments[1:], tuple(RUNS), tell)
    wants_help = bool({"-h", "--help"} & set(arguments))
    parser = build_parser(with_settings=wants_help)
    # Overrides may stand on either side of an option, which argparse leaves over.
    parsed, rest = parser.parse_known_args(arguments)
    if rest and (parsed.command not in RUNS or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if parsed.command == "doctor":
        from megarl.cli.doctor import doctor

        return doctor()
    from megarl.cli.run import run

    return run(
        parsed.command,
        parsed.config,
        [*parsed.overrides, *rest],
        dry_run=parsed.dry_run,
        ranks_per_node=parsed.ranks_per_node,
    )


def _bench(name: str, arguments: list[str]) -> int:
    try:
        module = importlib.import_module(f"megarl.bench.{name}")
    except ModuleNotFoundError as error:
        if error.name not in ("megarl.bench", f"megarl.bench.{name}"):
            raise
        raise ConfigError(f"this installation has no bench {name!r}") from None
    return int(module.main(arguments) or 0)


def _settings_help() -> str:
    from megarl.config.docs import help_text

    return (
        "Every key of a config (and of an override a.b=c), its type and default:\n\n" + help_text()
    )


if __name__ == "__main__":
    sys.exit(main())
