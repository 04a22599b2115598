"""Where the tokens of a sequence are: on a picture, in a text, or nowhere (class and register tokens)."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.image import imsave


@dataclass(frozen=True)
class Marks:
    """Tokens that are at no place of the input, each with its name."""

    names: Sequence[str]

    @property
    def count(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Picture:
    """Tokens that form a grid on a picture: an image, or a spectrogram with time to the right.

    Places are fractions of the picture's height and width, counted from its upper left corner.
    """

    image: bytes = field(repr=False)
    """A PNG file."""
    aspect: float
    """Width over height, as it is shown."""
    grid: tuple[int, int]
    """Rows and columns; the tokens go along the rows."""
    origin: tuple[float, float]
    """Down and across: the centre of the first token."""
    step: tuple[float, float]
    """Down and across: from the centre of a token to that of the next."""
    size: tuple[float, float]
    """Height and width of what a token covers; more than a step if patches overlap."""
    names: Sequence[str] | None = None
    """Of the rows (frequencies); None: they are numbered."""
    seconds: tuple[float, float] | None = None
    """The time at the left and at the right edge; None for an image."""
    sound: bytes | None = field(default=None, repr=False)
    """A WAV file, which can be played at the place pointed to."""

    @property
    def count(self) -> int:
        return self.grid[0] * self.grid[1]


class Piece(NamedTuple):
    """A token of a text."""

    text: str
    start: int
    """Of its letters in the text; equal to `end` for a special token."""
    end: int
    joined: bool = False
    """Whether it goes on with the word of the piece before."""


@dataclass(frozen=True)
class Words:
    """Tokens that are pieces of a text."""

    pieces: Sequence[Piece]

    @property
    def count(self) -> int:
        return len(self.pieces)


Part = Marks | Picture | Words


def png(pixels: Float[np.ndarray, "..."]) -> bytes:
    """A PNG file of "h w" or "h w 3" values from 0 to 1."""
    buffer = io.BytesIO()
    imsave(buffer, np.clip(pixels, 0, 1), cmap="gray", vmin=0, vmax=1, format="png")
    return buffer.getvalue()
