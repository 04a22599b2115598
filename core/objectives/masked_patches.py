"""Masked autoencoding of whatever is cut into patches: hide most, encode the rest, predict what was hidden.

He et al. 2022 for pictures, Huang et al. 2022 for spectrograms. The encoder sees only what is left, so that a step
costs a fraction of a supervised one. (Hidden words are `MaskedTokens`, in objectives.py.)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..config import BelowOne, Layers, Natural, Size, configclass
from ..encoder.config import EncoderConfig
from ..encoder.encoder import Encoder
from ..encoder.init import init_weights, learned
from ..encoder.positions import sincos_positions
from ..encoder.tokens import Tokens
from ..errors import UserError
from .objective import Batch


@configclass
class MaskedConfig:
    share: BelowOne = 0.0
    """Of the patches that is hidden; 0 to learn classes instead."""
    block: tuple[Natural, Natural] = (1, 1)
    """Patches hidden together, (down, across); 0 for all there are: 0 2 hides stretches of time of a spectrogram, 1 0
    bands of frequency."""
    normalise: bool = True
    """Predict each patch less its mean, over its standard deviation."""
    dim: Size = 64
    """Width of the decoder."""
    depth: Layers = 1
    """Its layers."""
    heads: Size = 4
    """Its attention heads."""


def check_whole(tune: str) -> None:
    """What is to fill in hidden patches is trained whole: its decoder is new."""
    if tune != "full":
        raise UserError(f"--tune {tune}: masked autoencoding trains all of the model; leave out --tune.")


class Patched(Protocol):
    """What a model needs to be pre-trained so."""

    encoder: Encoder

    def tokens(self, *inputs: Any) -> Tokens: ...

    def patches(self, *inputs: Any) -> Float[Tensor, "b n p"]:
        """What each token of the body was made from."""


class Told(NamedTuple):
    """Of the patches of a batch: what they are, what they were told to be, and which were hidden."""

    truth: Float[Tensor, "b n p"]
    predicted: Float[Tensor, "b n p"]
    hidden: Bool[Tensor, "b n"]


class MaskedAutoencoder(nn.Module):
    """A model with a light decoder behind its encoder; `model` is what is kept."""

    def __init__(self, model: nn.Module, config: MaskedConfig, patch: int):
        """patch: numbers in a patch."""
        super().__init__()
        encoder = model.encoder.config
        if encoder.rotary or encoder.patterns:
            raise UserError(
                "Masked autoencoding leaves gaps between the tokens, where neither rotary positions nor patterns hold: "
                "leave out --model.rotary and --model.patterns."
            )
        self.model, self.config = model, config
        self.narrow = nn.Linear(encoder.dim, config.dim)
        self.gap = learned(config.dim)
        self.decoder = Encoder(
            EncoderConfig(dim=config.dim, depth=config.depth, heads=config.heads, norm_eps=encoder.norm_eps)
        )
        self.head = nn.Linear(config.dim, patch)
        for part in (self.narrow, self.head):
            init_weights(part)

    def forward(self, *inputs: Any) -> Told:
        """The model's inputs, and last a number for each patch (see `Noisy`): those of the least are hidden."""
        *inputs, noise = inputs
        tokens = self.model.tokens(*inputs)
        noise = noise[:, : tokens.grid[0], : tokens.grid[1]].flatten(1)
        hidden = hide(noise, tokens.body_mask, self.config.share)
        truth = self.model.patches(*inputs).float()
        if self.config.normalise:
            truth = (truth - truth.mean(dim=2, keepdim=True)) / (truth.var(dim=2, keepdim=True) + 1e-6).sqrt()
        return Told(truth, self.head(self.decode(tokens, hidden)).float(), hidden)

    def decode(self, tokens: Tokens, hidden: Bool[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        kept = ~hidden if tokens.body_mask is None else ~hidden & tokens.body_mask
        seen = int(kept.sum(dim=1).max())
        places = (~kept).int().argsort(dim=1, stable=True)[:, :seen, None]  # of those kept, then of padding
        known = tokens.body.gather(1, places.expand(-1, -1, tokens.x.shape[2]))
        real = kept.gather(1, places[..., 0])
        x = torch.cat([tokens.x[:, : tokens.prefix], known], dim=1)
        mask = F.pad(real, (tokens.prefix, 0), value=True)
        encoded = self.narrow(self.model.encoder(Tokens(x, mask=mask, prefix=tokens.prefix)).x)
        gap = self.gap.to(encoded.dtype)
        known = encoded[:, tokens.prefix :].where(real[..., None], gap)
        body = gap.expand(*hidden.shape, -1).scatter(1, places.expand(-1, -1, self.config.dim), known)
        body = body + sincos_positions(self.config.dim, tokens.grid).to(body)
        x = torch.cat([encoded[:, : tokens.prefix], body], dim=1)
        return self.decoder(Tokens(x, mask=tokens.mask, grid=tokens.grid, prefix=tokens.prefix)).body

    def in_picture(self, told: Told, patches: Float[Tensor, "b n p"]) -> Float[Tensor, "b n p"]:
        """The patches, those hidden as they were told to be. (Means and deviations that are not told are true.)"""
        made = told.predicted
        if self.config.normalise:
            made = made * (patches.var(dim=2, keepdim=True) + 1e-6).sqrt() + patches.mean(dim=2, keepdim=True)
        return patches.where(~told.hidden[..., None], made)


def unpatch(
    patches: Float[Tensor, "b n p"], size: tuple[int, int], patch_size: tuple[int, int], stride: tuple[int, int]
) -> Float[Tensor, "b c h w"]:
    """Patches back in their places; where they overlap, their mean."""
    ones = torch.ones_like(patches)
    total, count = (F.fold(x.mT, tuple(size), patch_size, stride=stride) for x in (patches, ones))
    return total / count


def hide(noise: Float[Tensor, "b n"], real: Bool[Tensor, "b n"] | None, share: float) -> Bool[Tensor, "b n"]:
    """The share of each sample's real patches that has the least noise; at least one, and of several not all."""
    if real is None:
        real = torch.ones_like(noise, dtype=torch.bool)
    rank = noise.where(real, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
    most = real.sum(dim=1)
    count = (share * most).round().clamp(min=1).minimum((most - 1).clamp(min=1))
    return (rank < count[:, None]) & real


class Noisy(Dataset):
    """Samples (inputs ..., target) with a number from 0 to 1 for each patch, by which it is hidden.

    Patches of a block have the same one; where blocks begin is random. fixed: each sample has the same ones always, as
    is fit for a test set.
    """

    def __init__(self, data: Dataset, grid: tuple[int, int], block: tuple[int, int], fixed: bool):
        self.data, self.grid, self.fixed = data, grid, fixed
        self.block = tuple(size or whole for size, whole in zip(block, grid, strict=True))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple:
        generator = np.random.default_rng(index) if self.fixed else np.random.default_rng(np.random.randint(2**31))
        return self.data[index], block_noise(generator, self.grid, self.block)


def block_noise(
    generator: np.random.Generator, grid: tuple[int, int], block: tuple[int, int]
) -> Float[Tensor, "rows columns"]:
    starts = [int(generator.integers(size)) for size in block]
    coarse = generator.random([-(-(n + start) // size) for n, start, size in zip(grid, starts, block, strict=True)])
    fine = coarse.repeat(block[0], axis=0).repeat(block[1], axis=1)
    return torch.from_numpy(fine[starts[0] :, starts[1] :][: grid[0], : grid[1]].astype(np.float32))


def collate_noisy(collate: Callable[[list], Batch], samples: Sequence[tuple]) -> Batch:
    """collate: of the samples without the noise."""
    inputs, targets = collate([sample for sample, _ in samples])
    return Batch((*inputs, torch.stack([noise for _, noise in samples])), torch.zeros(len(targets)))


@dataclass(frozen=True)
class MaskedPatches:
    """Predict hidden patches by squared error, averaged over each sample's."""

    primary = "loss"
    percent = False

    def count(self, batch: Batch) -> Int[Tensor, ""]:
        return torch.tensor(len(batch.targets))

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        return self.errors(model(*batch.inputs))[0].sum()

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Shaped[Tensor, "b ..."]]:
        loss, blind = self.errors(model(*batch.inputs))
        return {"loss": loss, "blind": blind}

    def metrics(self, results: Mapping[str, Shaped[Tensor, "b ..."]]) -> dict[str, float]:
        """loss: mean squared error. explained: the share that it is less by than that of telling 0 (with `normalise`:
        each patch's mean)."""
        loss, blind = (results[name].mean().item() for name in ("loss", "blind"))
        return {"loss": loss, "explained": 1 - loss / max(blind, 1e-12)}

    def errors(self, told: Told) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """Of the predictions, and of 0."""
        hidden = told.hidden / told.hidden.sum(dim=1, keepdim=True).clamp(min=1)
        return tuple(
            (error.square().mean(dim=2) * hidden).sum(dim=1) for error in (told.predicted - told.truth, told.truth)
        )
