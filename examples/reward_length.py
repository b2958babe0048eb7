"""A reward of your own: the right answer, and the shorter the better.

Use it with `reward.function=examples/reward_length.py:right_and_short`, or `...:shortness` alone.
"""


def shortness(prompts, responses, max_chars=200):
    """1 for an empty response, falling to 0 at max_chars characters."""
    return [max(0.0, 1.0 - len(response) / max_chars) for response in responses]


def right_and_short(prompts, responses, bonus=0.1):
    """1 where the label is in the response, plus up to `bonus` for being short; else 0."""
    short = shortness(prompts, responses)
    right = [bool(p.label) and p.label in r for p, r in zip(prompts, responses, strict=True)]
    return [1.0 + bonus * s if ok else 0.0 for ok, s in zip(right, short, strict=True)]
