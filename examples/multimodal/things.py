"""A batch of things, each in up to three modalities, and their tokens joined into one sequence each."""

from collections.abc import Sequence
from typing import NamedTuple, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from core import Tokens, UserError
from core.attention.packing import Packing

MODALITIES = ("image", "audio", "text")

Images = Float[Tensor, "b c h w"] | Sequence[Float[Tensor, "_ _ _"] | None]
Waveforms = Float[Tensor, "b samples"] | Sequence[Float[Tensor, "_"] | None]
Ids = Int[Tensor, "b n"] | Sequence[Int[Tensor, "_"] | None]


class Things(NamedTuple):
    """A batch of things in up to three modalities.

    Each modality is a padded batch, a list with one sample of any size for each thing, or None. In a list, None marks a
    thing that lacks the modality; None in place of the list means that all of them lack it.
    """

    images: Images | None = None
    waveforms: Waveforms | None = None
    lengths: Int[Tensor, "b"] | None = None
    """Samples of each waveform; None for a list, or if they are all real."""
    ids: Ids | None = None
    real: Bool[Tensor, "b n"] | None = None
    """Padding mask: which token ids are real tokens; None for a list, or if they all are."""
    present: Bool[Tensor, "b 3"] | None = None
    """Which of image, audio and text each thing has; inputs that are not present are ignored. None: all that are
    given."""

    def shown(self) -> Bool[Tensor, "b 3"]:
        """Which of image, audio and text each thing has, on the CPU."""
        inputs = (self.images, self.waveforms, self.ids)
        counts = {len(part) for part in (*inputs, self.present) if part is not None}
        if len(counts) != 1:
            numbers = " or ".join(map(str, sorted(counts))) or "no"
            raise UserError(f"A batch of {numbers} things: give inputs of as many things for each modality.")
        for name, part, extra in (("waveforms", self.waveforms, self.lengths), ("token ids", self.ids, self.real)):
            if extra is not None and part is not None and not isinstance(part, Tensor):
                raise UserError(f"A list of {name} has no padding: leave out their lengths and their padding mask.")
        given = torch.stack([_given(part, *counts) for part in inputs], dim=1)
        if self.present is None:
            return given
        present = self.present.cpu()
        if (missing := present & ~given).any():
            number, modality = missing.nonzero()[0].tolist()
            raise UserError(f"Thing {number} has {MODALITIES[modality]} according to `present`, but it is not given.")
        return present


def _given(part: Tensor | Sequence[Tensor | None] | None, count: int) -> Bool[Tensor, "b"]:
    if part is None or isinstance(part, Tensor):
        return torch.full((count,), part is not None)
    for number, each in enumerate(part):
        if each is not None and not each.numel():
            raise UserError(f"Thing {number} of the list is empty: give None for what is absent.")
    return torch.tensor([each is not None for each in part])


@overload
def chosen(part: Tensor, shown: Bool[Tensor, "b"]) -> Tensor: ...
@overload
def chosen(part: Sequence[Tensor | None], shown: Bool[Tensor, "b"]) -> list[Tensor]: ...
def chosen(part: Tensor | Sequence[Tensor | None], shown: Bool[Tensor, "b"]) -> Tensor | list[Tensor]:
    """The samples that have a modality, of its batch or list."""
    if isinstance(part, Tensor):
        return part if shown.all() else part[shown.nonzero()[:, 0].to(part.device)]
    return [each for each, is_shown in zip(part, shown.tolist(), strict=True) if is_shown and each is not None]


def join(parts: Sequence[Tokens], present: Bool[Tensor, "b parts"]) -> Tokens:
    """For each sample the sequences of the parts that it has as one sequence, without a grid or prefix tokens; all
    samples in one row.

    parts: packed, of those samples that have the part. present: on the CPU.
    """
    owners = []
    for tokens, has in zip(parts, present.T, strict=True):
        assert tokens.packing is not None
        owners.append(torch.repeat_interleave(has.nonzero()[:, 0], tokens.packing.lengths))
    sample = torch.cat(owners)
    lengths = sample.bincount(minlength=len(present))
    x = torch.cat([tokens.x for tokens in parts], dim=1)
    order = sample.argsort(stable=True).to(x.device, non_blocking=True)
    return Tokens(x[:, order], packing=Packing(torch.nn.functional.pad(lengths[:, None], (0, 3))))
