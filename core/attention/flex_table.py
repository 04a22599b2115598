"""Where FlexAttention finds the tokens of a row and which of its blocks attend to which: plans as tensors on a device.

Each sequence of a row takes blocks of its own, its global tokens before the others. Everything is known on the CPU
when a table is made, and it is kept for all layers: nothing in a step waits for a device.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..private_torch import fixed_axis
from ..sparse import Pattern
from ..sparse.pattern import BLOCK
from ..sparse.plan import PLANS, Plan, Rows, make_plan, whole_plan
from .packing import Packing

PIECE = 2 * BLOCK  # slots come in so many, and torch knows it: no tile of its kernel reaches beyond the last one
ALL = 0  # the kind of a pair of blocks in which every query may attend to every key
Pairs = tuple[Int[np.ndarray, "_"], Int[np.ndarray, "_"]]  # of blocks


class Table(NamedTuple):
    """A row of tokens in slots, and its blocks.

    token: in each slot; -1 where it is empty. place: the slot of each token. number: of the token in its sequence.
    first_pair: where a query's pairs begin among those of all sequences. moved: whether slots hold anything else than
    the tokens in their order.
    counts, columns: which blocks each block is paired with: cut pairs by query block, whole ones, both by key block.
    cut: whether the pattern cuts through blocks. Then `kinds` is the kind of the pair of a query block and each block
    of its sequence, `inside` the number of a block in its sequence, and `masks` says for the pairs of each kind whether
    the first query may attend to the first key, to the second one, ...
    """

    token: Int[Tensor, "pieces 128"]
    place: Int[Tensor, "n"]
    number: Int[Tensor, "slots"]
    first_pair: Int[Tensor, "slots"]
    moved: bool
    counts: tuple[Int[Tensor, "1 1 blocks"], ...]
    columns: tuple[Int[Tensor, "1 1 blocks most"], ...]
    cut: bool
    kinds: Int[Tensor, "blocks longest"]
    inside: Int[Tensor, "blocks"]
    masks: Bool[Tensor, "kinds*64*64"]


@lru_cache(maxsize=64)
def table_of_batch(plan: Plan, masked: bool, device: torch.device) -> Table:
    """The table of samples that share a plan. masked: they have a mask of keys, so that no pair of blocks is whole."""
    return _table([plan], masked, device)


@lru_cache(maxsize=8)
def table_of_row(packing: Packing, pattern: Pattern | None, device: torch.device) -> Table:
    """The table of a row of sequences; pattern: None for all pairs of each."""
    if pattern is None:
        return _table([whole_plan(n, n, BLOCK) for n in packing.lengths.tolist()], False, device)
    return _table([make_plan(pattern, *place) for place in packing], False, device)


# --- One sequence -----------------------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """A sequence: the token in each slot, the pairs of blocks with their kinds, the masks of the kinds from 1 on, and
    the pairs as they lie in `Table.columns`."""

    slots: Int[np.ndarray, "slots"]
    pairs: Pairs
    kinds: Int[np.ndarray, "pairs"]
    masks: tuple[bytes, ...]
    by_block: tuple[Pairs, ...]


@lru_cache(maxsize=PLANS)
def _part(plan: Plan, masked: bool) -> _Part:
    n, index = plan.num_global, plan.layout.index
    ahead = -(-n // BLOCK)  # blocks of global tokens
    slots = np.full(ahead * BLOCK + len(index), -1)
    slots[:n] = np.arange(n)
    slots[ahead * BLOCK :] = np.where(index >= 0, index + n, -1)
    masks: dict[bytes, int] = {}
    rows, columns, kinds = (np.concatenate(each) for each in zip(*_pairs(plan, ahead, masks), strict=True))
    whole = (kinds == ALL) & ~_with_gaps(slots)[columns] & (not masked)
    chosen = [(rows[these], columns[these]) for these in (~whole, whole)]
    by_block = (*(_ordered(i, j) for i, j in chosen), *(_ordered(j, i) for i, j in chosen))
    return _Part(slots, (rows, columns), kinds, tuple(masks), by_block)


def _with_gaps(slots: Int[np.ndarray, "slots"]) -> Bool[np.ndarray, "blocks"]:
    return np.any((slots < 0).reshape(-1, BLOCK), axis=1)


def _ordered(rows: np.ndarray, columns: np.ndarray) -> Pairs:
    order = np.lexsort((columns, rows))
    return rows[order], columns[order]


def _pairs(plan: Plan, ahead: int, masks: dict[bytes, int]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Row, column and kind of the pairs of blocks; new masks are added to `masks`."""
    body = ahead + np.arange(plan.query_blocks)
    if plan.causal:  # global tokens are before all others, and attend to those before them
        i, j = np.tril_indices(ahead)
        order = _kinds(np.tri(BLOCK, dtype=bool)[None], masks)[0] if ahead else ALL
        yield i, j, np.where(i == j, order, ALL)
    else:
        i, j = np.indices((ahead, ahead + len(body))).reshape(2, -1)
        yield i, j, np.full(len(i), ALL)
    i, j = np.repeat(body, ahead), np.tile(np.arange(ahead), len(body))
    yield i, j, np.full(len(i), ALL)
    for group in plan.groups:
        rows, columns = group.rows.numpy(), group.columns.numpy()
        kinds = np.broadcast_to(_group_kinds(plan, group, masks), columns.shape).ravel()
        there = kinds >= 0
        i, j = np.broadcast_to(rows[:, None], columns.shape).ravel(), columns.ravel()
        yield ahead + i[there], ahead + j[there], kinds[there]


def _group_kinds(plan: Plan, group: Rows, masks: dict[bytes, int]) -> np.ndarray:
    """The kind of each pair of a group; below 0 if nobody may attend to anybody."""
    rows, columns, mask = group.rows.numpy(), group.columns.numpy(), group.mask
    if mask is None or mask.shape[1] == 1:  # empty slots alone are masked
        return np.full(columns.shape, ALL)
    if len(mask) == 1 and not _with_gaps(plan.layout.index)[columns].any():
        each = mask.numpy().reshape(BLOCK, -1, BLOCK).swapaxes(0, 1)
        return _kinds(each, masks)[None]
    assert plan.pattern is not None
    within = np.arange(BLOCK)  # without the empty slots, which would make a kind of their own in each sequence
    i, j = np.broadcast_to(rows[:, None], columns.shape).reshape(-1, 1, 1) * BLOCK, columns.reshape(-1, 1, 1) * BLOCK
    each = plan.pattern.tokens(plan.layout, i + within[:, None], j + within)
    return _kinds(np.broadcast_to(each, (columns.size, BLOCK, BLOCK)), masks).reshape(columns.shape)


def _kinds(each: Bool[np.ndarray, "pairs 64 64"], masks: dict[bytes, int]) -> Int[np.ndarray, "pairs"]:
    packed, which = np.unique(np.packbits(each.reshape(len(each), -1), axis=1), axis=0, return_inverse=True)
    numbers = []
    for mask in packed:
        if mask.all() and (mask == 255).all():
            numbers.append(ALL)
        else:
            numbers.append(masks.setdefault(mask.tobytes(), len(masks) + 1) if mask.any() else -1)
    return np.array(numbers, dtype=np.int64)[which.ravel()]


# --- A row of sequences -----------------------------------------------------------------------------------------------


@torch.inference_mode(False)  # what is kept may be part of a graph later
def _table(plans: list[Plan], masked: bool, device: torch.device) -> Table:
    parts = [_part(plan, masked) for plan in plans]
    lengths = np.array([plan.length for plan in plans])
    sizes = np.array([len(part.slots) // BLOCK for part in parts])
    starts, pairs, blocks = (np.cumsum(each) - each for each in (lengths, lengths**2, sizes))
    # At least two of everything that varies: torch compiles anew for an axis of 1.
    total = PIECE // BLOCK * max(2, -(-int(sizes.sum()) * BLOCK // PIECE))

    sequence = np.repeat(np.arange(len(parts)), sizes * BLOCK)
    number = np.concatenate([part.slots for part in parts])
    filled = np.flatnonzero(number >= 0)
    token = _filled(total * BLOCK, -1, np.where(number >= 0, number + starts[sequence], -1))
    place = np.empty(int(lengths.sum()), dtype=np.int64)
    place[token[filled]] = filled
    number = number.clip(min=0)
    first_pair = pairs[sequence] + number * lengths[sequence]
    moved = len(place) != len(token) or bool((place != np.arange(len(place))).any())

    by_block = [_together([part.by_block[way] for part in parts], blocks, blocks) for way in range(4)]
    counts = np.stack([np.bincount(rows, minlength=total) for rows, _ in by_block])
    most = total if device.type == "cpu" else max(2, int(counts.max()))  # torch's kernel for CPUs asks for all columns
    columns = np.zeros((4, total, most), dtype=np.int32)
    for way, (i, j) in enumerate(by_block):
        first = np.cumsum(counts[way]) - counts[way]
        columns[way, i, np.arange(len(i)) - first[i]] = j

    numbers: dict[bytes, int] = {}
    for mask in (mask for part in parts for mask in part.masks):
        numbers.setdefault(mask, len(numbers) + 1)
    cut, longest = bool(numbers), max(2, int(sizes.max()))
    kinds = np.zeros((total, longest) if cut else (2, 2), dtype=np.int32)
    if cut:
        i, j = _together([part.pairs for part in parts], blocks, np.zeros_like(blocks))
        own = [np.array([ALL, *(numbers[mask] for mask in part.masks)])[part.kinds] for part in parts]
        kinds[i, j] = np.concatenate(own)
    bits = np.frombuffer(b"".join([b"\xff" * (BLOCK**2 // 8), *numbers]), dtype=np.uint8)
    inside = np.concatenate([np.arange(size) for size in sizes])

    def there(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    return Table(
        fixed_axis(there(token.reshape(-1, PIECE)), 1),
        there(place),
        there(_filled(total * BLOCK, 0, number)),
        there(_filled(total * BLOCK, 0, first_pair)),
        moved,
        tuple(there(each[None, None].astype(np.int32)) for each in counts),
        tuple(there(each[None, None]) for each in columns),
        cut,
        there(kinds),
        there(_filled(total, 0, inside)),
        there(np.unpackbits(bits).astype(bool)),
    )


def _filled(size: int, filler: int, start: np.ndarray) -> np.ndarray:
    return np.concatenate([start, np.full(size - len(start), filler, dtype=np.int64)])


def _together(each: list[Pairs], rows: np.ndarray, columns: np.ndarray) -> Pairs:
    """The pairs of all sequences, whose blocks begin at `rows` and `columns`."""
    counts = [len(i) for i, _ in each]
    i, j = (np.concatenate(side) for side in zip(*each, strict=True))
    return i + np.repeat(rows, counts), j + np.repeat(columns, counts)
