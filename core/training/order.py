"""The order of a run's data, as its options ask for it."""

from typing import Any

from ..errors import UserError
from .balanced_order import BalancedOrder, class_numbers
from .config import TrainConfig
from .repeated_order import RepeatedOrder
from .sampling import Order, SampleStream
from .shard_order import ShardOrder
from .task import Data
from .token_order import TokenOrder, token_counts


def make_order(data: Data, config: TrainConfig, world: int) -> SampleStream:
    """How the training data are cut into steps; a UserError where a step cannot be divided among the processes.

    world: the number of processes.
    """
    parts = config.accumulate * world
    # A property reads the headers of all files (as Clips of audio does), which only these options are worth.
    needed = config.tokens_per_batch is not None or config.bucket_lengths
    counts = token_counts(data) if needed or "token_counts" in getattr(data, "__dict__", {}) else None
    if config.tokens_per_batch is not None:
        if counts is None:
            raise UserError(
                "--train.tokens-per-batch needs the number of tokens of each training sample, which these data do "
                "not state (token_counts): use --train.batch-size."
            )
        return TokenOrder(config.seed, counts, config.tokens_per_batch, parts)
    if config.batch_size % (parts * config.repeats):
        factors = [f"--train.accumulate {config.accumulate}", f"{world} process{'es' if world > 1 else ''}"]
        factors += [f"--train.repeats {config.repeats}"] if config.repeats > 1 else []
        raise UserError(
            f"--train.batch-size {config.batch_size} must be a multiple of {parts * config.repeats}: of "
            f"{' times '.join(factors)}."
        )
    order = _order_of_samples(data, config, config.batch_size // config.repeats, counts)
    return order if config.repeats == 1 else RepeatedOrder(order, config.repeats)


def _order_of_samples(data: Data, config: TrainConfig, batch_size: int, counts: Any) -> SampleStream:
    """Steps of `batch_size` samples. counts: their tokens, if the data state them."""
    if config.class_balance == "sampling":
        return BalancedOrder(config.seed, class_numbers(data), batch_size, counts)
    bucket = config.bucket_lengths and counts is not None
    layout = getattr(data, "shards", None)
    if layout is not None and not bucket:
        return ShardOrder(config.seed, layout, batch_size, counts)
    return Order(config.seed, len(data), batch_size, counts, bucket)
