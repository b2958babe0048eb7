"""In which order prompts are taken: a seeded permutation per epoch, resumable at any batch."""

from __future__ import annotations

from megarl.data.seeds import stable_hash
from megarl.errors import ConfigError


class PromptOrder:
    """Deals the rows of a data set in batches, for ever; every rank computes the same.

    Batches run across epoch borders: no prompt is dropped at the end of an epoch, and each comes
    exactly once per epoch. The permutation sorts hashes of (seed, epoch, row), so that it depends
    on no library's generator and a resume years later deals the same.
    """

    def __init__(
        self, num_prompts: int, batch_size: int, seed: int, *, shuffle: bool = True
    ) -> None:
        """batch_size: prompts. ConfigError for an empty data set or batch."""
        if num_prompts < 1:
            raise ConfigError("the data set has 0 prompts: there is nothing to order")
        if batch_size < 1:
            raise ConfigError(f"rollout_batch_size is {batch_size}: give at least 1 prompt")
        self._num_prompts = num_prompts
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._position = 0
        self._cached: tuple[int, list[int]] | None = None

    @property
    def epoch(self) -> int:
        """Epoch of the next prompt, from 0."""
        return self._position // self._num_prompts

    def next(self, count: int | None = None) -> list[int]:
        """The next batch, or `count` rows of the data set, in the order of the step."""
        count = self._batch_size if count is None else count
        batch = [self.at(place) for place in range(self._position, self._position + count)]
        self._position += count
        return batch

    def at(self, place: int) -> int:
        """The row of the data set at any place of the order, from 0 over all epochs."""
        epoch, index = divmod(place, self._num_prompts)
        return self._permutation(epoch)[index]

    def state_dict(self) -> dict[str, int]:
        """Where it stands, and what it stands in."""
        return {
            "position": self._position,
            "num_prompts": self._num_prompts,
            "seed": self._seed,
            "shuffle": int(self._shuffle),
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on where `state_dict` was taken; the batch size may differ.

        ConfigError where the order itself is another one, since the run would then repeat some
        prompts and never see others.
        """
        here = self.state_dict()
        for key in ("num_prompts", "seed", "shuffle"):
            if state[key] != here[key]:
                raise ConfigError(
                    f"cannot resume the data order: {key} was {state[key]} in the checkpoint and "
                    f"is {here[key]} now; use the same data set, filter and seed, or start anew"
                )
        self._position = state["position"]

    def _permutation(self, epoch: int) -> list[int]:
        if self._cached is None or self._cached[0] != epoch:
            rows = list(range(self._num_prompts))
            if self._shuffle:
                rows.sort(key=lambda row: (stable_hash(self._seed, epoch, row), row))
            self._cached = (epoch, rows)
        return self._cached[1]
