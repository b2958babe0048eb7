"""Each estimator as its paper writes it, in loops over Python numbers.

A row is the list of what stands inside its mask. Nothing is shared with the code under test.
"""

from __future__ import annotations

import math


def gae(rewards, values, gamma, lam):
    """A_t = sum over k of (gamma lam)^k delta_{t+k}: the sum itself, not the recursion."""
    length = len(values)
    values = [*values, 0.0]
    delta = [rewards[t] + gamma * values[t + 1] - values[t] for t in range(length)]
    return [
        sum((gamma * lam) ** k * delta[t + k] for k in range(length - t)) for t in range(length)
    ]


def members(group, i):
    """Rows of i's group."""
    return [j for j in range(len(group)) if group[j] == group[i]]


def mean(numbers):
    """The mean."""
    return sum(numbers) / len(numbers)


def unbiased_std(numbers):
    """With n - 1; 0 of one."""
    centre = mean(numbers)
    return math.sqrt(sum((x - centre) ** 2 for x in numbers) / max(len(numbers) - 1, 1))


def grpo(scores, group, lengths):
    """(r - mean) / (std + 1e-6)."""
    out = []
    for i, score in enumerate(scores):
        those = [scores[j] for j in members(group, i)]
        equal = all(x == score for x in those)
        out.append(0.0 if equal else (score - mean(those)) / (unbiased_std(those) + 1e-6))
    return _on_tokens(out, lengths)


def grpo_no_std(scores, group, lengths):
    """r - mean."""
    return _on_tokens(_over_mean(scores, group), lengths)


def rloo(scores, group, lengths):
    """r - mean of the others."""
    out = []
    for i, score in enumerate(scores):
        others = [scores[j] for j in members(group, i) if j != i]
        out.append(score - mean(others) if others else 0.0)
    return _on_tokens(out, lengths)


def opo(scores, group, lengths):
    """r - sum(l r) / sum(l)."""
    out = []
    for i, score in enumerate(scores):
        those = members(group, i)
        tokens = sum(lengths[j] for j in those)
        baseline = sum(lengths[j] * scores[j] for j in those) / tokens if tokens else score
        out.append(score - baseline if len(those) > 1 else 0.0)
    return _on_tokens(out, lengths)


def grpo_passk(scores, group, lengths):
    """Best minus second best, for the best; of equal bests it is 0."""
    out = []
    for i, score in enumerate(scores):
        others = [scores[j] for j in members(group, i) if j != i]
        out.append(score - max(others) if others and score > max(others) else 0.0)
    return _on_tokens(out, lengths)


def gpg(scores, group, lengths):
    """(r - mean) * B / (B - M), M responses of groups without a signal."""
    counted = [i for i in range(len(scores)) if lengths[i]]
    signal = [i for i in counted if len({scores[j] for j in members(group, i)}) > 1]
    scale = len(counted) / len(signal) if signal else 1.0
    return _on_tokens([scale * x for x in _over_mean(scores, group)], lengths)


def grpo_process(rewards, steps, group):
    """r' = (r - mean) / (std + 1e-6) over all step rewards of the group; A_t = sum of later r'."""
    out = []
    for i, row in enumerate(rewards):
        those = [
            r
            for j in members(group, i)
            for r, is_step in zip(rewards[j], steps[j], strict=True)
            if is_step
        ]
        scaled = [0.0] * len(row)
        for t, r in enumerate(row):
            if steps[i][t] and len(set(those)) > 1:
                scaled[t] = (r - mean(those)) / (unbiased_std(those) + 1e-6)
        out.append([sum(scaled[t:]) for t in range(len(row))])
    return out


def rewards_to_go(rewards, gamma):
    """G_t = sum over k of gamma^k r_{t+k}, of each row."""
    return [
        [sum(gamma**k * row[t + k] for k in range(len(row) - t)) for t in range(len(row))]
        for row in rewards
    ]


def whitened(rows):
    """(x - mean) / sqrt(unbiased variance + 1e-8) over all tokens of all rows."""
    tokens = [x for row in rows for x in row]
    if len(tokens) < 2:
        return [[0.0 for _ in row] for row in rows]
    scale = math.sqrt(unbiased_std(tokens) ** 2 + 1e-8)
    return [[(x - mean(tokens)) / scale for x in row] for row in rows]


def reinforce_plus_plus(rewards, gamma):
    """Discounted rewards to come, whitened."""
    return whitened(rewards_to_go(rewards, gamma))


def reinforce_plus_plus_baseline(scores, group, lengths):
    """r - mean, whitened."""
    return whitened(grpo_no_std(scores, group, lengths))


def remax(rewards, baselines):
    """Rewards to come minus the greedy answer's score."""
    to_go = rewards_to_go(rewards, 1.0)
    return [[g - b for g in row] for row, b in zip(to_go, baselines, strict=True)]


def _over_mean(scores, group):
    return [score - mean([scores[j] for j in members(group, i)]) for i, score in enumerate(scores)]


def _on_tokens(per_row, lengths):
    return [[x] * length for x, length in zip(per_row, lengths, strict=True)]
