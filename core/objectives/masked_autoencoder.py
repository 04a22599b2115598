"""The masked autoencoder: a model whose encoder sees the unmasked patches, and a decoder that predicts the masked ones.

He et al. 2022 for images, Huang et al. 2022 for spectrograms. A step costs a fraction of a supervised one. (Masked
tokens of a vocabulary are in masked_tokens.py.)
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..config import BelowOne, Layers, Natural, Size, configclass
from ..encoder.config import EncoderConfig
from ..encoder.encoder import Encoder
from ..encoder.init import init_weights, learned
from ..encoder.positions import sincos_positions
from ..encoder.tokens import Tokens
from ..errors import UserError
from .patch_masking import mask_patches


@configclass
class MaskedConfig:
    ratio: BelowOne = 0.0
    """Ratio of patches that are masked; 0 to learn classes instead."""
    block: tuple[Natural, Natural] = (1, 1)
    """Size of the blocks of patches that are masked together, (rows, columns); 0 for all there are: 0 2 masks stretches
    of time of a spectrogram, 1 0 bands of frequency."""
    normalise: bool = True
    """Predict each patch normalised: less its mean, over its standard deviation."""
    dim: Size = 64
    """Width of the decoder."""
    depth: Layers = 1
    """Layers of the decoder."""
    heads: Size = 4
    """Attention heads of the decoder."""


def check_full_tuning(tune: str) -> None:
    """A masked autoencoder is trained as a whole: its decoder is new."""
    if tune != "full":
        raise UserError(f"--tune {tune}: masked autoencoding trains all of the model; leave out --tune.")


@runtime_checkable
class PatchModel(Protocol):
    """What a model needs so that it can be pre-trained as a masked autoencoder."""

    encoder: Encoder

    def tokens(self, *inputs: Any) -> Tokens: ...

    def patches(self, *inputs: Any) -> Float[Tensor, "b n p"]:
        """The values that each token of the body was made from."""
        ...


class MaskedPrediction(NamedTuple):
    """The patches of a batch, what the model predicts for them, and which were masked."""

    target: Float[Tensor, "b n p"]
    predicted: Float[Tensor, "b n p"]
    masked: Bool[Tensor, "b n"]


class MaskedAutoencoder(nn.Module):
    """A model with a light decoder behind its encoder; `model` is what is kept after pre-training."""

    def __init__(self, model: PatchModel, config: MaskedConfig, patch_values: int):
        """patch_values: how many values a patch has."""
        super().__init__()
        encoder = model.encoder.config
        if encoder.rotary or encoder.patterns:
            raise UserError(
                "Masked autoencoding leaves gaps between the tokens, where neither rotary positions nor patterns hold: "
                "leave out --model.rotary and --model.patterns."
            )
        self.model, self.config = model, config
        self.decoder_embed = nn.Linear(encoder.dim, config.dim)
        self.mask_token = learned(config.dim)
        self.decoder = Encoder(
            EncoderConfig(dim=config.dim, depth=config.depth, heads=config.heads, norm_eps=encoder.norm_eps)
        )
        self.head = nn.Linear(config.dim, patch_values)
        for part in (self.decoder_embed, self.head):
            init_weights(part)

    def forward(self, *inputs: Any) -> MaskedPrediction:
        """inputs: the model's, and last the noise "b rows columns" (see `WithMaskNoise`): the patches with the least
        noise are masked."""
        *model_inputs, noise = inputs
        tokens = self.model.tokens(*model_inputs)
        assert tokens.grid is not None  # patches lie on a grid
        rows, columns = tokens.grid
        masked = mask_patches(noise[:, :rows, :columns].flatten(1), tokens.body_mask, self.config.ratio)
        target = self.model.patches(*model_inputs).float()
        if self.config.normalise:
            mean, deviation = _mean_and_deviation(target)
            target = (target - mean) / deviation
        return MaskedPrediction(target, self.head(self.decode(tokens, masked)).float(), masked)

    def decode(self, tokens: Tokens, masked: Bool[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        """Encode the tokens that are not masked; the decoder's outputs for all of them."""
        assert tokens.grid is not None
        visible = ~masked if tokens.body_mask is None else ~masked & tokens.body_mask
        longest = int(visible.sum(dim=1).max())
        indices = (~visible).int().argsort(dim=1, stable=True)[:, :longest, None]  # of visible tokens, then of padding
        body = tokens.body.gather(1, indices.expand(-1, -1, tokens.x.shape[2]))
        real = visible.gather(1, indices[..., 0])
        x = torch.cat([tokens.x[:, : tokens.prefix], body], dim=1)
        padding_mask = F.pad(real, (tokens.prefix, 0), value=True)
        encoded = self.decoder_embed(self.model.encoder(Tokens(x, mask=padding_mask, prefix=tokens.prefix)).x)
        mask_token = self.mask_token.to(encoded.dtype)
        encoded_body = encoded[:, tokens.prefix :].where(real[..., None], mask_token)
        body = mask_token.expand(*masked.shape, -1)
        body = body.scatter(1, indices.expand(-1, -1, self.config.dim), encoded_body)
        body = body + sincos_positions(self.config.dim, tokens.grid).to(body)
        x = torch.cat([encoded[:, : tokens.prefix], body], dim=1)
        return self.decoder(Tokens(x, mask=tokens.mask, grid=tokens.grid, prefix=tokens.prefix)).body

    def reconstruct(self, prediction: MaskedPrediction, patches: Float[Tensor, "b n p"]) -> Float[Tensor, "b n p"]:
        """The patches, with the prediction in place of those masked. With `normalise` the model predicts neither mean
        nor standard deviation of a patch: those of `patches` are used."""
        predicted = prediction.predicted
        if self.config.normalise:
            mean, deviation = _mean_and_deviation(patches)
            predicted = predicted * deviation + mean
        return patches.where(~prediction.masked[..., None], predicted)


def _mean_and_deviation(patches: Float[Tensor, "b n p"]) -> tuple[Float[Tensor, "b n 1"], Float[Tensor, "b n 1"]]:
    return patches.mean(dim=2, keepdim=True), (patches.var(dim=2, keepdim=True) + 1e-6).sqrt()


def unpatch(
    patches: Float[Tensor, "b n p"], size: tuple[int, int], patch_size: tuple[int, int], stride: tuple[int, int]
) -> Float[Tensor, "b c h w"]:
    """The image that the patches were cut from; where they overlap, their mean."""
    ones = torch.ones_like(patches)
    total, count = (F.fold(x.mT, tuple(size), patch_size, stride=stride) for x in (patches, ones))
    return total / count
