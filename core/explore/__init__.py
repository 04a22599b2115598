"""The attention explorer: a page on which one points at a token and sees what it attends to, and what attends to it."""

from .look import LONGEST, Look, look
from .page import Sample, page_text, write_page
from .parts import Marks, Part, Picture, Piece, Words, png

__all__ = [
    "LONGEST",
    "Look",
    "Marks",
    "Part",
    "Picture",
    "Piece",
    "Sample",
    "Words",
    "look",
    "page_text",
    "png",
    "write_page",
]
