"""Records of options from a group of settings that has their names."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from megarl.algorithms.corrections import CorrectionOptions
from megarl.algorithms.policy import PolicyLossOptions


def policy_loss_options(settings: Any) -> PolicyLossOptions:
    """What policy losses read; settings: has PolicyLossOptions' names, and clip_ratio.

    clip_ratio_low and clip_ratio_high that are None are clip_ratio. ConfigError for a number out of
    its range.
    """
    given = _same_names(settings, PolicyLossOptions)
    for name in ("clip_ratio_low", "clip_ratio_high"):
        if given[name] is None:
            given[name] = settings.clip_ratio
    return PolicyLossOptions(**given)


def correction_options(settings: Any) -> CorrectionOptions:
    """How samples of the engine's policy count; settings: has CorrectionOptions' names.

    ConfigError for what contradicts itself.
    """
    return CorrectionOptions(**_same_names(settings, CorrectionOptions))


def _same_names(settings: Any, kind: type[Any]) -> dict[str, Any]:
    return {each.name: getattr(settings, each.name) for each in fields(kind)}
