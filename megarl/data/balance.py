"""Work cut into equal parts: groups over owners, rows into padded micro-batches.

All pure and deterministic: every rank computes the same answer from the same lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

from megarl.errors import ConfigError


def assign_groups(lengths_per_group: Sequence[int], num_owners: int) -> list[int]:
    """Owner of each group, [number of groups], with the tokens of owners as equal as it can make.

    lengths_per_group: tokens of all samples of a group. Owners get equally many groups, or one
    more or less where the count does not divide. Longest first onto the lightest owner that still
    has room, then swaps between the heaviest owner and the others while they help. Ties go to the
    lower index. ConfigError for num_owners < 1.
    """
    if num_owners < 1:
        raise ConfigError(f"groups are to be dealt to {num_owners} owners: at least 1 is needed")
    base, num_larger = divmod(len(lengths_per_group), num_owners)
    members: list[list[int]] = [[] for _ in range(num_owners)]
    loads = [0] * num_owners
    for group in sorted(range(len(lengths_per_group)), key=lambda g: (-lengths_per_group[g], g)):
        num_full = sum(len(m) > base for m in members)
        room = base + (num_full < num_larger)
        owner = min((o for o in range(num_owners) if len(members[o]) < room), key=loads.__getitem__)
        members[owner].append(group)
        loads[owner] += lengths_per_group[group]
    while _swap(members, loads, lengths_per_group):
        pass
    owner_of = [0] * len(lengths_per_group)
    for owner, groups in enumerate(members):
        for group in groups:
            owner_of[group] = owner
    return owner_of


def _swap(members: list[list[int]], loads: list[int], lengths: Sequence[int]) -> bool:
    """Swaps one group of the heaviest owner with one of another, if both end up below its load."""
    heavy = max(range(len(loads)), key=lambda o: (loads[o], -o))
    for light in sorted(range(len(loads)), key=lambda o: (loads[o], o)):
        gap = loads[heavy] - loads[light]
        swaps = (
            (abs(gap - 2 * (lengths[a] - lengths[b])), i, j)
            for i, a in enumerate(members[heavy])
            for j, b in enumerate(members[light])
        )
        left, i, j = min(swaps, default=(gap, 0, 0))
        # The pair's gap shrinks strictly, so the sum of squared loads does and the loop ends.
        if left < gap:
            a, b = members[heavy][i], members[light][j]
            members[heavy][i], members[light][j] = b, a
            loads[heavy] += lengths[b] - lengths[a]
            loads[light] += lengths[a] - lengths[b]
            return True
    return False


def pack(lengths: Sequence[int]) -> list[list[int]]:
    """Samples of each row when short ones share rows; each sample once.

    Rows are as narrow as they can be, since attention costs their width squared, while padding to
    the widest row adds at most a tenth to the tokens: first fit, longest first, into fewer and
    wider rows until that holds.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    total, longest = sum(lengths), max(lengths, default=0)
    for count in range(len(lengths), 0, -1):
        rows = _first_fit(order, lengths, max(longest, -(-total // count)))
        widest = max(sum(lengths[i] for i in row) for row in rows)
        if 10 * len(rows) * widest <= 11 * total:
            return rows
    return [[i] for i in order]  # nothing but empty samples


def _first_fit(order: Sequence[int], lengths: Sequence[int], width: int) -> list[list[int]]:
    rows: list[list[int]] = []
    room: list[int] = []
    for sample in order:
        at = next((i for i, left in enumerate(room) if left >= lengths[sample]), None)
        if at is None:
            at = len(rows)
            rows.append([])
            room.append(width)
        rows[at].append(sample)
        room[at] -= lengths[sample]
    return rows


def micro_batches(
    lengths: Sequence[int],
    *,
    micro_batch_size: int | None = None,
    max_tokens: int | None = None,
    packing: bool = False,
) -> list[list[int]]:
    """Rows of each padded micro-batch; each row once, longest first.

    lengths: tokens of each row, prompt and response. Exactly one limit is given: micro_batch_size
    in rows, or max_tokens in tokens with padding (rows * longest row). Sorting keeps rows of like
    length together, which makes the padding small and, with max_tokens, the number of
    micro-batches minimal. packing: rows will share rows, so that max_tokens counts tokens without
    padding. ConfigError for both or no limit, and for a row over max_tokens.
    """
    if (micro_batch_size is None) == (max_tokens is None):
        raise ConfigError(
            f"give either micro_batch_size or max_tokens_per_gpu with use_dynamic_batch_size, "
            f"not both or none: they are {micro_batch_size} and {max_tokens}"
        )
    if micro_batch_size is not None and micro_batch_size < 1:
        raise ConfigError(f"micro_batch_size is {micro_batch_size}: give at least 1 sample")
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    if max_tokens is not None and order and lengths[order[0]] > max_tokens:
        raise ConfigError(
            f"max_tokens_per_gpu is {max_tokens} and sample {order[0]} has {lengths[order[0]]} "
            "tokens: raise it to at least max_prompt_length + max_response_length"
        )
    if max_tokens is not None and packing:
        return _first_fit(order, lengths, max_tokens)
    batches: list[list[int]] = []
    room = 0
    for row in order:
        if room == 0:
            batches.append([])
            # Longest first: the row that opens a micro-batch sets its padded length.
            room = micro_batch_size or (max_tokens or 0) // max(lengths[row], 1)
        batches[-1].append(row)
        room -= 1
    return batches


def equalize(num_micro_batches_per_rank: Sequence[int], multiple_of: int = 1) -> int:
    """How many micro-batches every rank must run: the largest number, rounded up.

    A rank with fewer would leave its peers waiting in a gradient reduction; an interleaved
    pipeline wants a multiple of its stages.
    """
    return -(-max(num_micro_batches_per_rank, default=0) // multiple_of) * multiple_of


def split_to(
    batches: Sequence[Sequence[int]], lengths: Sequence[int], count: int
) -> list[list[int]]:
    """The micro-batches cut further until there are `count`: halves the costliest, again and again.

    Where there are fewer rows than `count`, the last ones are empty: the caller runs a padding row
    that weighs nothing. ConfigError if there are more than `count` already.
    """
    if len(batches) > count:
        raise ConfigError(f"{len(batches)} micro-batches cannot be split into {count}")
    out = [list(batch) for batch in batches]

    def cost(index: int) -> tuple[bool, int]:
        return len(out[index]) > 1, len(out[index]) * max(
            (lengths[r] for r in out[index]), default=0
        )

    while len(out) < count:
        costliest = max(range(len(out)), key=cost, default=None)
        if costliest is None or len(out[costliest]) < 2:
            out.append([])
            continue
        batch = out[costliest]
        middle = len(batch) // 2
        out[costliest : costliest + 1] = [batch[:middle], batch[middle:]]
    return out
