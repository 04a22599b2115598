"""The order of samples that lie in shards: a process reads few shards at a time, and each of them once an epoch."""

import numpy as np
from jaxtyping import Int64

from ..data.shards import ShardLayout
from .sampling import Order

LANES = 8


class ShardOrder(Order):
    """Steps of `batch_size` samples, shuffled by shard and within windows of shards.

    Shards come in a random order, which is cut into windows, and the samples of a window in a random order. This stream
    is cut into up to `LANES` lanes of equal length, and each step takes an equal part of each, one lane behind the
    other. Since processes take contiguous parts of a step, each reads the shards of its own lanes alone; the lanes
    depend on the number of shards and the batch size, not on the number of processes. If one window holds all shards,
    the order is that of `Order`.
    """

    def __init__(self, seed: int, layout: ShardLayout, batch_size: int, lengths: np.ndarray | None = None):
        super().__init__(seed, sum(layout.sizes), batch_size, lengths)
        self.layout = layout
        self.windows = -(-len(layout.sizes) // layout.window)
        most = min(LANES, self.windows)
        self.lanes = next(lanes for lanes in range(most, 0, -1) if batch_size % lanes == 0)
        self.shard_of = np.repeat(np.arange(len(layout.sizes), dtype=np.int32), layout.sizes)

    def _arranged(
        self, order: Int64[np.ndarray, "n"], epoch: int, random_state: np.random.Generator
    ) -> Int64[np.ndarray, "n"]:
        if self.windows == 1:
            return order
        shards = random_state.permutation(len(self.layout.sizes))
        window_of = np.empty(len(shards), np.int32)
        window_of[shards] = np.arange(len(shards)) // self.layout.window
        order = order[np.argsort(window_of[self.shard_of[order]], kind="stable")]
        # The epoch's first samples fill up a step that the last epoch began; whole steps come next.
        first = min(-epoch * self.size % self.batch_size, self.size)
        steps = (self.size - first) // self.batch_size
        body = order[first : first + steps * self.batch_size]
        body = body.reshape(self.lanes, steps, self.batch_size // self.lanes)
        return np.concatenate([order[:first], body.transpose(1, 0, 2).ravel(), order[first + body.size :]])
