"""Each policy loss as its paper writes it, token by token or response by response, in Python.

new, old, advantages, weights, selected are lists over rows of lists over tokens. Nothing is shared
with the code under test. Each gives the sum of weight * loss, in `Scalar` arithmetic: numbers with
a gradient, so that what a paper keeps out of the gradient (`sg`) can be checked too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(eq=False)
class Scalar:
    """A number that knows its derivatives by the new log-probs: {(row, token): d}."""

    value: float
    by: dict = field(default_factory=dict)

    def __add__(self, other):
        other = lift(other)
        by = dict(self.by)
        for key, d in other.by.items():
            by[key] = by.get(key, 0.0) + d
        return Scalar(self.value + other.value, by)

    __radd__ = __add__

    def __mul__(self, other):
        other = lift(other)
        by = {key: d * other.value for key, d in self.by.items()}
        for key, d in other.by.items():
            by[key] = by.get(key, 0.0) + d * self.value
        return Scalar(self.value * other.value, by)

    __rmul__ = __mul__

    def __neg__(self):
        return self * -1

    def __sub__(self, other):
        return self + -lift(other)

    def __rsub__(self, other):
        return lift(other) + -self

    def __truediv__(self, number):
        return self * (1 / number)


def lift(x):
    """A Scalar of a number."""
    return x if isinstance(x, Scalar) else Scalar(x)


def through(x, value, slope):
    """f(x) with its value and derivative given."""
    return Scalar(value, {key: slope * d for key, d in x.by.items()})


def exp(x):
    """e^x."""
    return through(x, math.exp(x.value), math.exp(x.value))


def sigmoid(x):
    """1 / (1 + e^-x)."""
    s = 1 / (1 + math.exp(-x.value))
    return through(x, s, s * (1 - s))


def absolute(x):
    """|x|."""
    return x if x.value >= 0 else -x


def sg(x):
    """Stop gradient."""
    return Scalar(x.value)


def larger(x, y):
    """max(x, y)."""
    return x if x.value >= y.value else y


def smaller(x, y):
    """min(x, y)."""
    return x if x.value <= y.value else y


def clip(x, low, high):
    """x between low and high, without gradient where it was cut."""
    return larger(smaller(x, lift(high)), lift(low))


def ppo(new, old, advantages, weights, selected, options):
    """max(-A r, -A clip(r)), at most -A c where A < 0."""

    def token(i, t):
        a = advantages[i][t]
        r = exp(new[i][t] - old[i][t])
        low, high = 1 - options.clip_ratio_low, 1 + options.clip_ratio_high
        loss = larger(-a * r, -a * clip(r, low, high))
        if options.clip_ratio_c is not None and a < 0:
            loss = smaller(loss, lift(-a * options.clip_ratio_c))
        return loss

    return _over_tokens(token, weights)


def clip_cov(new, old, advantages, weights, selected, options):
    """PPO without the selected tokens."""
    left = [
        [0.0 if chosen else w for w, chosen in zip(*row, strict=True)]
        for row in zip(weights, selected, strict=True)
    ]
    return ppo(new, old, advantages, left, selected, options)


def kl_cov(new, old, advantages, weights, selected, options):
    """-A r + coef |log r| of selected tokens."""

    def token(i, t):
        log_r = new[i][t] - old[i][t]
        loss = -advantages[i][t] * exp(log_r)
        return loss + options.ppo_kl_coef * absolute(log_r) if selected[i][t] else loss

    return _over_tokens(token, weights)


def cispo(new, old, advantages, weights, selected, options):
    """-sg(clip(r)) A log p."""

    def token(i, t):
        r = exp(new[i][t] - old[i][t])
        kept = sg(clip(r, 1 - options.clip_ratio_low, 1 + options.clip_ratio_high))
        return -kept * advantages[i][t] * new[i][t]

    return _over_tokens(token, weights)


def sapo(new, old, advantages, weights, selected, options):
    """-A sigmoid(tau (r - 1)) 4 / tau."""

    def token(i, t):
        a = advantages[i][t]
        tau = options.tau_pos if a > 0 else options.tau_neg
        r = exp(new[i][t] - old[i][t])
        return -a * sigmoid(tau * (r - 1)) * (4 / tau)

    return _over_tokens(token, weights)


def reinforce(new, old, advantages, weights, selected, options):
    """-A log p."""
    return _over_tokens(lambda i, t: -advantages[i][t] * new[i][t], weights)


def gspo(new, old, advantages, weights, selected, options):
    """max(-A s_t, -A clip(s_t)), s_t = sg(s) p_t / sg(p_t), s the geometric mean of ratios."""

    def token(i, t):
        a, length = advantages[i][t], len(new[i])
        s = exp(sum((x - o for x, o in zip(new[i], old[i], strict=True)), Scalar(0.0)) / length)
        s_t = sg(s) * exp(new[i][t] - sg(new[i][t]))
        low, high = 1 - options.clip_ratio_low, 1 + options.clip_ratio_high
        return larger(-a * s_t, -a * clip(s_t, low, high))

    return _over_tokens(token, weights)


def gspo_of_responses(new, old, advantages, row_weights, options):
    """GSPO's eq. 5 itself: one term per response, whose advantage is that of its first token."""
    total = Scalar(0.0)
    for i, row in enumerate(new):
        if row:
            pairs = zip(row, old[i], strict=True)
            s = exp(sum((x - o for x, o in pairs), Scalar(0.0)) / len(row))
            a = advantages[i][0]
            low, high = 1 - options.clip_ratio_low, 1 + options.clip_ratio_high
            total = total + row_weights[i] * larger(-a * s, -a * clip(s, low, high))
    return total


def geo_mean_of_responses(new, old, advantages, row_weights, options):
    """GMPO's objective: (prod over t of the one-sidedly clipped r_t)^(1/|y|) A, per response."""
    total = Scalar(0.0)
    low, high = math.exp(-options.clip_ratio_low), math.exp(options.clip_ratio_high)
    for i, row in enumerate(new):
        if row:
            a, log_product = advantages[i][0], Scalar(0.0)
            for x, o in zip(row, old[i], strict=True):
                r = exp(x - o)
                kept = smaller(r, lift(high)) if a > 0 else larger(r, lift(low))
                log_product = log_product + through(kept, math.log(kept.value), 1 / kept.value)
            total = total + -a * exp(log_product / len(row)) * row_weights[i]
    return total


def _over_tokens(token, weights):
    total = Scalar(0.0)
    for i, row in enumerate(weights):
        for t, weight in enumerate(row):
            total = total + weight * token(i, t)
    return total
