"""Who may attend to whom, by position.

A pattern speaks of the body; prefix tokens (class, registers) attend to all and all attend to them.
"""

import re
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from ..errors import UserError


class Pattern:
    """`str(pattern)` and `Pattern.parse` are inverse."""

    def allowed(self, queries: Tensor, keys: Tensor) -> Bool[Tensor, "n m"]:
        """Which body positions `keys` each of `queries` may attend to."""
        raise NotImplementedError

    def dense(self, length: int, prefix: int = 0, device: torch.device | None = None) -> Bool[Tensor, "n n"]:
        """The whole relation among prefix + body tokens; `length` counts both."""
        position = torch.arange(length, device=device) - prefix
        both_in_body = (position >= 0)[:, None] & (position >= 0)
        return ~both_in_body | self.allowed(position[:, None], position[None, :])

    @staticmethod
    def parse(text: str) -> "Pattern":
        """A pattern from its text, such as `Local(128, exact=True)`."""
        found = re.fullmatch(r"Local\((\d+)(, exact=(True|False))?\)", text.strip())
        if not found:
            raise UserError(f"{text!r} is not a pattern: write it like Local(128, exact=True).")
        return Local(int(found[1]), exact=found[3] == "True")


@dataclass(frozen=True)
class Local(Pattern):
    """A window of `window` tokens in all, half of it to each side (Beltagy et al. 2020, section 3.1)."""

    window: int
    exact: bool = False

    def __post_init__(self):
        if self.window < 1:
            raise UserError(f"Local: the window must be at least 1 token, not {self.window}.")

    def allowed(self, queries: Tensor, keys: Tensor) -> Bool[Tensor, "n m"]:
        return (queries - keys).abs() <= self.window // 2

    def __str__(self) -> str:
        return f"Local({self.window}{', exact=True' if self.exact else ''})"
