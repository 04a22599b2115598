"""Protein sequences as token ids, in the alphabets of ESM-2 (Lin et al. 2023) and ESM C, or in that of a vocab.txt."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from core import UserError
from core.files import read_text

SPECIALS = ("<cls>", "<pad>", "<eos>", "<unk>", "<mask>")
ESM2 = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>")
ESMC = tuple(token.replace("<null_1>", "|") for token in ESM2)
"""| stands between chains."""


class Framed(NamedTuple):
    """Sequences of a batch, each between <cls> and <eos>."""

    ids: Int[Tensor, "b n"]
    mask: Bool[Tensor, "b n"]


@dataclass(frozen=True)
class Alphabet:
    tokens: tuple[str, ...] = ESM2
    """The tokens; a token's id is its index."""

    def __post_init__(self):
        if absent := [token for token in SPECIALS if token not in self.tokens]:
            raise UserError(f"An alphabet needs {', '.join(SPECIALS)}; this one has no {absent[0]}.")

    @property
    def pad(self) -> int:
        return self.tokens.index("<pad>")

    @property
    def mask(self) -> int:
        return self.tokens.index("<mask>")

    def encode(self, sequences: Sequence[str]) -> Framed:
        """One token id for each letter, that of <unk> for unknown letters; <mask> may stand for a residue."""
        ids_of = {token: index for index, token in enumerate(self.tokens)}
        framed = [["<cls>", *re.findall(r"<\w+>|\S", sequence), "<eos>"] for sequence in sequences]
        length = torch.tensor([len(tokens) for tokens in framed])
        mask = torch.arange(int(length.max())) < length[:, None]
        known = [ids_of.get(token, ids_of["<unk>"]) for tokens in framed for token in tokens]
        ids = torch.full(mask.shape, self.pad).masked_scatter(mask, torch.tensor(known))
        return Framed(ids, mask)


def read_alphabet(path: Path) -> Alphabet:
    """Read a vocab.txt: one token a line."""
    try:
        return Alphabet(tuple(line.strip() for line in read_text(path).splitlines()))
    except UserError as error:
        raise UserError(f"{path} cannot be read as an alphabet: {error}") from None
