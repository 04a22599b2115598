"""`Packing`: where several sequences lie, one behind the other, in a row of tokens."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import UserError
from ..private_torch import GetAttrKey, register_pytree_node

LONGEST = 2**31 - 1


class Place(NamedTuple):
    """One sequence: how many tokens it has, how many of them are prefix tokens, and the grid of the others."""

    length: int
    prefix: int = 0
    grid: tuple[int, int] | None = None


class TokenPlaces(NamedTuple):
    """For each token of a row: its sequence, its number in the body of it (below 0: a prefix token), and the row and
    column of that in its grid."""

    sequence: Int[Tensor, "n"]
    position: Int[Tensor, "n"]
    row: Int[Tensor, "n"]
    column: Int[Tensor, "n"]

    @property
    def in_body(self) -> Bool[Tensor, "n"]:
        return self.position >= 0


@dataclass(frozen=True, eq=False)
class Packing:
    """Where several sequences lie in a row of tokens, in this order and without gaps.

    places: of each sequence the number of tokens, how many of them are prefix tokens, and the rows and columns of the
    others' grid (0 and 0 for a sequence without a grid). It stays on the CPU: nothing ever waits for a device to say
    how long the sequences are. A sequence may be empty.
    """

    places: Int[Tensor, "s 4"]

    def __post_init__(self):
        if torch.compiler.is_compiling():
            return
        check_places(self.places)
        for number, (length, prefix, rows, columns) in enumerate(self.places.tolist()):
            on_grid = rows > 0 and columns > 0
            fits = 0 <= prefix <= length <= LONGEST and (length == prefix + rows * columns if on_grid else True)
            if not fits or ((rows or columns) and not on_grid):
                grid = f" and a grid of {rows} x {columns}" if rows or columns else ""
                raise ValueError(
                    f"Packing: {prefix} prefix tokens{grid} do not make the {length} tokens of sequence {number}."
                )

    @classmethod
    def of(cls, places: Iterable[Place]) -> "Packing":
        places = list(places)
        if wrong := next((place for place in places if not isinstance(place, Place)), None):
            raise UserError(f"Packing.of: each sequence is a Place, as in Place(9), not {wrong!r}.")
        numbers = [(length, prefix, *(grid or (0, 0))) for length, prefix, grid in places]
        if any(isinstance(number, float) for four in numbers for number in four):
            raise UserError("Packing.of: lengths, prefixes and grids must be whole numbers.")
        return cls(torch.tensor(numbers, dtype=torch.int64).reshape(-1, 4))

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[Place]:
        for length, prefix, rows, columns in self.places.tolist():
            yield Place(length, prefix, (rows, columns) if rows else None)

    @property
    def lengths(self) -> Int[Tensor, "s"]:
        return self.places[:, 0]

    @property
    def prefixes(self) -> Int[Tensor, "s"]:
        return self.places[:, 1]

    @property
    def starts(self) -> Int[Tensor, "s"]:
        """The place of each sequence's first token in the row."""
        return self.lengths.cumsum(0) - self.lengths

    @property
    def total(self) -> int:
        """Tokens of the row."""
        return int(self.lengths.sum())

    @property
    def on_grid(self) -> Bool[Tensor, "s"]:
        """Which sequences have a grid."""
        return self.places[:, 2] > 0

    def tokens(self, count: int | None = None) -> TokenPlaces:
        """Where each token is, on the CPU; count: the tokens of the row, which a graph cannot read from `places`."""
        count = self.total if count is None else count
        sequence = torch.repeat_interleave(torch.arange(len(self.places)), self.lengths, output_size=count)
        position = torch.arange(count) - self.starts[sequence] - self.prefixes[sequence]
        columns = self.places[sequence, 3].clamp(min=1)
        return TokenPlaces(sequence, position, position // columns, position % columns)

    def tokens_on(self, device: torch.device, count: int | None = None) -> TokenPlaces:
        """`tokens` on a device, kept for the layers that ask for it again."""
        if torch.compiler.is_compiling():
            return TokenPlaces(*(t.to(device) for t in self.tokens(count)))
        return _tokens_on(self, device)

    def require_grids(self, what: str) -> None:
        if not torch.compiler.is_compiling() and not self.on_grid.all():
            number = int((~self.on_grid).nonzero()[0])
            raise UserError(f"{what} needs tokens with a grid, but sequence {number} of the row has none.")


@dataclass(frozen=True, eq=False)
class Selection:
    """Which tokens are left of a packed row, the others being masked. Each keeps its position in its whole sequence.

    whole: of all tokens. index: where those that are left lie in that row, in ascending order; all prefix tokens are
    among them.
    """

    whole: Packing
    index: Int[Tensor, "n"]

    def tokens(self) -> TokenPlaces:
        """Where each token that is left is in its whole sequence, on the device of the index."""
        return TokenPlaces(*(t[self.index] for t in self.whole.tokens_on(self.index.device)))

    def of_each(self, lengths: Int[Tensor, "s"]) -> Iterator[tuple[Place, Int[Tensor, "_"]]]:
        """Each whole sequence, and the numbers of the tokens that are left of it; lengths: how many those are."""
        parts = self.index.split(lengths.tolist())
        for place, start, part in zip(self.whole, self.whole.starts.tolist(), parts, strict=True):
            yield place, part - start


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # what is kept may be part of a graph later
def _tokens_on(packing: Packing, device: torch.device) -> TokenPlaces:
    return TokenPlaces(*(t.to(device, non_blocking=True) for t in packing.tokens()))


def check_places(places: Any) -> None:
    """Raise a ValueError unless it is a tensor of places, whose numbers are not looked at."""
    if not isinstance(places, Tensor):
        raise ValueError(f"Packing: places must be a tensor, not {type(places).__name__}.")
    if places.is_nested or places.layout != torch.strided:
        raise ValueError("Packing: places must be a plain tensor, neither nested nor sparse.")
    if places.device.type != "cpu" or places.dtype != torch.int64 or places.ndim != 2 or places.shape[1] != 4:
        given = f"{tuple(places.shape)} {places.dtype} on {places.device}"
        raise ValueError(f"Packing: places must be 64-bit integers on the CPU, four for each sequence, not {given}.")


# Lets torch.compile take and return a Packing.
register_pytree_node(
    Packing,
    lambda packing: ((packing.places,), None),  # pyright: ignore[reportArgumentType]
    lambda leaves, _: _unflatten(leaves),
    flatten_with_keys_fn=lambda packing: ([(GetAttrKey("places"), packing.places)], None),  # pyright: ignore
    serialized_type_name="trivium.Packing",
)


def _unflatten(leaves) -> Packing:
    packing = object.__new__(Packing)  # without __init__: torch.export temporarily puts other things than tensors here
    object.__setattr__(packing, "places", leaves[0])
    return packing
