"""How held-out prompts are answered, and which metric of that decides what the best step is."""

from __future__ import annotations

from collections.abc import Sequence

from megarl.algorithms.eval_metrics import PAIR_METRICS, TEXT_METRICS, answer_metrics
from megarl.algorithms.evaluation import pass_at_ks
from megarl.config.schema import Config
from megarl.data.blend import wants_evaluation
from megarl.errors import ConfigError
from megarl.rewards.load import is_judged
from megarl.types import Prompt
from megarl.validate.contradictions import check_top_k

JUDGE = "give a reward.function (with function_coef 0 it judges evaluations and nothing else)"
"""The cure where a reward model alone decides."""


def check_evaluation(config: Config) -> None:
    """ConfigError for samples of held-out prompts that could not be made, or not be counted."""
    settings = config.evaluation
    check_top_k("evaluation.top_k", settings.top_k)
    wrong = [k for k in settings.pass_at if not 1 <= k <= settings.n_samples]
    if wrong:
        raise ConfigError(
            f"evaluation.pass_at has {wrong[0]}, and evaluation.n_samples is "
            f"{settings.n_samples}: each k is at least 1 and at most n_samples; sample more, or "
            "leave pass_at empty for the usual ones"
        )
    if settings.n_samples and not is_judged(config):
        raise ConfigError(
            f"evaluation.n_samples is {settings.n_samples}, and a reward model alone decides: "
            "nothing says which samples are right, so that there is no pass@k; set it to 0, or "
            + JUDGE
        )


def check_best_metric(config: Config, purpose: str) -> None:
    """ConfigError for a best metric that no evaluation gives."""
    name, data, interval = config.checkpoint.best_metric, config.data, config.run.eval_interval
    if name is None:
        return
    known, judged = _known(config, purpose, judged=True), is_judged(config)
    metric = _over_all(name, known) if purpose == "train" else name
    if metric not in known:
        more = purpose == "train" and not config.evaluation.n_samples
        raise ConfigError(
            f"checkpoint.best_metric is {name!r}, which evaluations do not give: one of "
            f"{', '.join(known)}" + ("; more with evaluation.n_samples above 0" if more else "")
        )
    if metric not in _known(config, purpose, judged=judged):
        raise ConfigError(
            f"checkpoint.best_metric is {name!r}, and a reward model alone decides: nothing says "
            f"which answers are right; take eval/reward_mean, or {JUDGE}"
        )
    indexed = bool(data.indexed.blend)
    has_data = wants_evaluation(data.indexed.split, interval) if indexed else data.eval_path
    if not has_data:
        source = f"data.indexed.split {data.indexed.split!r}" if indexed else "data.eval_path ''"
        raise ConfigError(
            f"checkpoint.best_metric is {name!r}, and {source} leaves nothing to evaluate on: give "
            "held-out data, or set checkpoint.best_metric=null"
        )


def check_best_source(config: Config, prompts: Sequence[Prompt]) -> None:
    """ConfigError for a best metric of a source that the held-out prompts do not have."""
    name, sources = config.checkpoint.best_metric, sorted({prompt.source for prompt in prompts})
    if name is None or (metric := _over_all(name, _known(config, "train", judged=True))) == name:
        return
    given = [f"{metric}/{source}" for source in sources] if len(sources) > 1 else []
    if name not in given:
        raise ConfigError(
            f"checkpoint.best_metric is {name!r}, and the {len(prompts)} prompts of an evaluation "
            f"(data.eval_path, data.eval_size) have the source(s) {', '.join(sources)}: take one "
            f"of {', '.join([metric, *given])}"
        )


def _over_all(name: str, known: Sequence[str]) -> str:
    """The metric over all sources, for one of a single source: NAME of NAME/SOURCE."""
    return next((each for each in known if name.startswith(f"{each}/")), name)


def _known(config: Config, purpose: str, *, judged: bool) -> tuple[str, ...]:
    """Metrics of a command's evaluations, over all that is held out."""
    if purpose == "train":
        settings = config.evaluation
        ks = pass_at_ks(settings.n_samples, settings.pass_at)
        return tuple(answer_metrics(settings.n_samples, ks, judged=judged))
    names = PAIR_METRICS if purpose == "reward" else TEXT_METRICS
    return tuple(f"eval/{name}" for name in names)
