"""Texts of any lengths in one row of token ids, without padding, and what such a row must be."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from core import UserError
from core.attention.packing import Packing

Texts = Sequence[Int[Tensor, "_"]]
"""Token ids of each text, or something else of each token."""


def pack_texts(texts: Texts) -> tuple[Int[Tensor, "1 n"], Packing]:
    """One row of all texts, and where each of them lies in it."""
    texts = list(texts)
    if not texts:
        raise UserError("There are no texts: a list of token ids needs at least one.")
    for number, ids in enumerate(texts, 1):
        if not isinstance(ids, Tensor) or ids.ndim != 1:
            given = f"{tuple(ids.shape)} numbers" if isinstance(ids, Tensor) else f"a {type(ids).__name__}"
            raise UserError(f"Text {number} of {len(texts)} must be a tensor of token ids with one axis, not {given}.")
    packing = packing_of_lengths([len(ids) for ids in texts])
    require_tokens(packing)
    return torch.cat(texts)[None], packing


def packing_of_lengths(lengths: Sequence[int]) -> Packing:
    places = torch.zeros(len(lengths), 4, dtype=torch.int64)
    places[:, 0] = torch.tensor(lengths, dtype=torch.int64)
    return Packing(places)


def pack_like(packing: Packing, values: Any, what: str) -> Shaped[Tensor, "1 n"]:
    """Something of each token of the texts, in one row like them. values: a tensor "n" of each text."""
    if isinstance(values, Tensor):
        raise UserError(f"The texts are a list, so their {what} must be one as well, with a tensor for each text.")
    lengths = [tuple(each.shape) for each in values]
    for number, (length, found) in enumerate(zip(packing.lengths.tolist(), lengths, strict=False), 1):
        if found != (length,):
            raise UserError(f"Text {number} of {len(packing)} has {length} tokens, but its {what} have shape {found}.")
    if len(lengths) != len(packing):
        raise UserError(f"There are {len(packing)} texts, but {what} of {len(lengths)}.")
    return torch.cat(list(values))[None]


def check_row(ids: Tensor, packing: Packing) -> None:
    """Refuse a row of texts that is not what its packing says."""
    if torch.compiler.is_compiling():
        return
    if tuple(ids.shape) != (1, packing.total):
        raise UserError(
            f"{len(packing)} packed texts of {packing.total} tokens together lie in one row of token ids, which has as "
            f"many; not in {' x '.join(map(str, ids.shape))} of them."
        )
    if packing.places[:, 1:].any():
        raise UserError("Packed texts have neither prefix tokens nor grids: leave them out of the packing.")
    require_tokens(packing)


def require_tokens(packing: Packing) -> None:
    if not packing.lengths.all():
        number = int((packing.lengths == 0).nonzero()[0])
        raise UserError(f"Text {number + 1} of {len(packing)} is empty: each text needs at least one token.")


def check_mask(ids: Tensor, mask: Tensor) -> None:
    """Refuse a padding mask of other token ids."""
    if not torch.compiler.is_compiling() and mask.shape != ids.shape:
        shapes = [" x ".join(map(str, t.shape)) for t in (mask, ids)]
        advice = "give a packed row its Packing instead of a padding mask"
        raise UserError(f"The padding mask has {shapes[0]} values for {shapes[1]} token ids; {advice}.")


def end_texts(
    ids: Int[Tensor, "b n"] | Texts, mask: Bool[Tensor, "b n"] | Packing | None, end: int
) -> tuple[Int[Tensor, "b n"] | Texts, Bool[Tensor, "b n"] | Packing | None]:
    """The texts without what follows the first token `end`: it is masked as padding, or cut from a list of texts.

    A packed row says itself how long its texts are.
    """
    if not isinstance(ids, Tensor):
        return [text[: int(_until(text, end).sum())] for text in ids], mask
    if isinstance(mask, Packing):
        return ids, mask
    until = _until(ids, end)
    return ids, until if mask is None else mask & until


def _until(ids: Int[Tensor, "*b n"], end: int) -> Bool[Tensor, "*b n"]:
    """Which tokens stand before the first `end`, or are it."""
    found = ids == end
    return found.cumsum(dim=-1) - found.to(torch.int64) == 0


def fill_texts(
    ids: Int[Tensor, "b n"] | Texts, mask: Bool[Tensor, "b n"] | Packing | None, filler: int, length: int
) -> Int[Tensor, "texts length"]:
    """Each text followed by so many tokens `filler` that it has `length`, in place of its padding."""
    if isinstance(mask, Packing):
        assert isinstance(ids, Tensor)
        check_row(ids, mask)
        ids, mask = list(ids[0].split(mask.lengths.tolist())), None
    if not isinstance(ids, Tensor):
        ids = pad_sequence(list(ids), batch_first=True, padding_value=filler)
    elif mask is not None:
        check_mask(ids, mask)
        order = (~mask).to(torch.int8).argsort(dim=1, stable=True)  # padding may stand on the left
        ids = ids.masked_fill(~mask, filler).gather(1, order)
    if ids.shape[1] > length:
        raise UserError(f"A text has {ids.shape[1]} tokens, but the model takes at most {length}.")
    return torch.nn.functional.pad(ids, (0, length - ids.shape[1]), value=filler)
