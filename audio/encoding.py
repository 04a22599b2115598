"""What all models of clips do with the tokens of clips."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor

from core import Tokens

from .clips import Waveforms


class EncodesClips:
    """For models whose `tokens` makes tokens of clips, which their `encoder` takes."""

    def encode(self: Any, waveforms: Waveforms, lengths: Int[Tensor, "b"] | None = None) -> Tokens:
        return self.encoder(self.tokens(waveforms, lengths))

    def intermediate(
        self: Any,
        waveforms: Waveforms,
        lengths: Int[Tensor, "b"] | None = None,
        *,
        layers: Sequence[int],
        norm: bool = False,
    ) -> list[Tokens]:
        """The tokens after some layers (see `Encoder.intermediate`)."""
        return self.encoder.intermediate(self.tokens(waveforms, lengths), layers, norm=norm)
