"""`pack` puts sequences of any kind into one row without padding; `unpack` and `pad` take them out again."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..attention.packing import Packing, Place
from ..errors import UserError
from .tokens import Tokens


def pack(batches: Tokens | Sequence[Tokens]) -> Tokens:
    """One row of all sequences, one behind the other, without padding.

    batches: each may have many sequences, padded at the end or not, or be packed already. A padded batch with a grid
    holds smaller grids, each in its first rows and columns. Reading a mask waits for its device: give unpadded
    sequences where you can.
    """
    batches = [batches] if isinstance(batches, Tokens) else list(batches)
    if not batches:
        raise UserError("pack: there are no sequences.")
    if len(widths := {tokens.x.shape[2] for tokens in batches}) > 1:
        raise UserError(f"pack: sequences of {_and(sorted(widths))} features cannot lie in one row.")
    rows, places = [], []
    for tokens in batches:
        if tokens.packing is not None:
            rows.append(tokens.x[0])
            places += tokens.packing
        elif tokens.mask is None:
            rows.append(tokens.x.flatten(0, 1))
            places += [Place(tokens.x.shape[1], tokens.prefix, tokens.grid)] * len(tokens.x)
        else:
            rows.append(tokens.x[tokens.mask])
            places += [_place(tokens, real) for real in tokens.mask.cpu()]
    return Tokens(torch.cat(rows)[None], packing=Packing.of(places))


def unpack(tokens: Tokens) -> list[Tokens]:
    """The sequences of a row or a batch, each by itself and without padding."""
    if tokens.packing is None:
        tokens = pack(tokens)
    assert tokens.packing is not None
    parts = tokens.x[0].split(tokens.packing.lengths.tolist())
    return [
        Tokens(x[None], grid=place.grid, prefix=place.prefix) for x, place in zip(parts, tokens.packing, strict=True)
    ]


def pad(tokens: Tokens) -> Tokens:
    """A batch of the sequences of a row, padded with zeros to the longest, or to the largest grid.

    All must have as many prefix tokens, and all a grid or none.
    """
    packing = tokens.packing
    if packing is None:
        return tokens
    places = list(packing)
    if len({(place.prefix, place.grid is None) for place in places}) > 1:
        raise UserError("pad: sequences with other prefixes, or with and without a grid, cannot be one batch.")
    prefix = places[0].prefix if places else 0
    at, grid = packing.tokens(), None
    if places and places[0].grid is not None:
        grid = int(packing.places[:, 2].max()), int(packing.places[:, 3].max())
        body = at.row * grid[1] + at.column
        length = prefix + grid[0] * grid[1]
    else:
        body = at.position
        length = max((place.length for place in places), default=0)
    where = at.sequence, body.where(at.in_body, at.position) + prefix
    mask = torch.zeros(len(places), length, dtype=torch.bool)
    mask[where] = True
    index = tuple(each.to(tokens.x.device) for each in where)
    x = tokens.x.new_zeros(len(places), length, tokens.x.shape[2]).index_put(index, tokens.x[0])
    return Tokens(x, mask=None if mask.all() else mask.to(tokens.x.device), grid=grid, prefix=prefix)


def _place(tokens: Tokens, real: Tensor) -> Place:
    """Of one sequence of a padded batch."""
    length, prefix = int(real.sum()), tokens.prefix
    if not real[:prefix].all():
        raise UserError("pack: class and register tokens must not be padding.")
    if tokens.grid is None:
        if not real[:length].all():
            raise UserError(
                "pack: padding must be behind a sequence's tokens: a row has no gaps, so tokens behind one would "
                "lose their positions. Keep such a batch padded, or let features say which tokens are missing."
            )
        return Place(length, prefix)
    body = real[prefix:].unflatten(0, tokens.grid)
    rows, columns = int(body.any(dim=1).sum()), int(body.any(dim=0).sum())
    if not body[:rows, :columns].all():
        raise UserError("pack: the tokens that are not padding are no smaller grid in the corner of the whole one.")
    return Place(length, prefix, (rows, columns) if rows else None)


def _and(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
