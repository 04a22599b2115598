"""The masked autoencoder: a model whose encoder sees the unmasked patches, and a decoder that predicts the masked ones.

He et al. 2022 for images, Huang et al. 2022 for spectrograms. A step costs a fraction of a supervised one. Samples of
different sizes lie in one row, without padding: what is visible, for the encoder, and all patches, for the decoder.
(Masked tokens of a vocabulary are in masked_tokens.py.)
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..attention.packing import Packing
from ..config import BelowOne, Layers, Natural, SettingError, Size, configclass
from ..encoder.config import EncoderConfig
from ..encoder.encoder import Encoder
from ..encoder.init import init_weights
from ..encoder.pack import pack
from ..encoder.tokens import Tokens
from .mask_decoder import (
    MaskDecoder,
    body_index,
    body_packing,
    freeze_output,
    repeated,
    require_separate_patches,
    take_visible,
)
from .objective import at_least_fp32
from .patch_masking import count_masked, mask_packed_patches, mask_patches, noise_of_grid


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


@runtime_checkable
class PatchModel(Protocol):
    """What a model needs so that it can be pre-trained as a masked autoencoder."""

    encoder: Encoder

    def tokens(self, *inputs: Any) -> Tokens: ...

    def patches(self, *inputs: Any) -> Float[Tensor, "b n p"]:
        """The values that each token of the body was made from; "1 n p" of all samples if `tokens` packs them."""
        ...


class MaskedPrediction(NamedTuple):
    """The patches of a batch, what the model predicts for them (0 for padding), and which were masked.

    packing: where the patches of each sample lie, if those of all samples are in one row.
    """

    target: Float[Tensor, "b n p"]
    predicted: Float[Tensor, "b n p"]
    masked: Bool[Tensor, "b n"]
    packing: Packing | None = None


class MaskedAutoencoder(nn.Module):
    """A model with a light decoder behind its encoder; `model` is what is kept after pre-training."""

    def __init__(self, model: PatchModel, config: MaskedConfig, patch_values: int):
        """patch_values: how many values a patch has."""
        super().__init__()
        require_separate_patches(model)
        if config.normalise and patch_values == 1:
            raise SettingError(MaskedConfig, "normalise", "must be False where a patch is one value")
        encoder = model.encoder.config
        self.model, self.config = model, config
        self.decoder = MaskDecoder(
            encoder.dim,
            EncoderConfig(dim=config.dim, depth=config.depth, heads=config.heads, norm_eps=encoder.norm_eps),
        )
        self.head = nn.Linear(config.dim, patch_values)
        # What depends on positions inside the encoder knows those of the tokens that are left of a packed row.
        by_position = (encoder.rotary, encoder.relative_bias, encoder.distance_bias, encoder.disentangled)
        self.in_row = any((*by_position, encoder.patterns))
        init_weights(self.head)

    def freeze_unused(self) -> None:
        """Freeze what is not used, once it is known which parameters are to be trained."""
        freeze_output(self.model)

    def forward(self, *inputs: Any) -> MaskedPrediction:
        """inputs: the model's, and last the noise "b rows columns" (see `WithMaskNoise`): the patches with the least
        noise are masked. A sample of a smaller grid takes the noise of its first rows and columns."""
        *model_inputs, noise = inputs
        tokens, ratio = self.model.tokens(*model_inputs), self.config.ratio
        target = at_least_fp32(self.model.patches(*model_inputs))
        if self.config.normalise:
            mean, deviation = _mean_and_deviation(target)
            target = (target - mean) / deviation
        if tokens.packing is not None:
            patches = body_packing(tokens.packing)
            patches.require_grids("Masked autoencoding")
            masked = mask_packed_patches(noise, patches, count_masked(patches.lengths, ratio))[None]
            return MaskedPrediction(target, self.predict(tokens, masked), masked, patches)
        assert tokens.grid is not None  # patches lie on a grid
        real = tokens.body_mask
        masked = mask_patches(noise_of_grid(noise, tokens.count, tokens.grid).flatten(1), real, ratio)
        if real is None and not self.in_row:
            return MaskedPrediction(target, self.predict(tokens, masked), masked)
        real = torch.ones_like(masked) if real is None else real
        predicted = self.predict(pack(tokens), masked[real][None])
        return MaskedPrediction(target, torch.zeros_like(target).masked_scatter(real[..., None], predicted), masked)

    def predict(self, tokens: Tokens, masked: Bool[Tensor, "b n"]) -> Float[Tensor, "b n p"]:
        """Predictions for all patches, from the tokens that are not masked.

        tokens: samples of one size, one in each row, or of any sizes in a packed row. masked: of each sample as many
        patches as the mask ratio says.
        """
        decoded = self._decode_batch(tokens, masked) if tokens.packing is None else self._decode_row(tokens, masked)
        return at_least_fp32(self.head(decoded))

    def _decode_batch(self, tokens: Tokens, masked: Bool[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        hidden, count = F.pad(masked, (tokens.prefix, 0)), int(count_masked(masked.shape[1], self.config.ratio))
        visible = hidden.int().argsort(dim=1, stable=True)[:, : hidden.shape[1] - count]
        x = tokens.x.gather(1, visible[..., None].expand(-1, -1, tokens.x.shape[2]))
        return self.decoder.batch(self.model.encoder(Tokens(x, prefix=tokens.prefix)).x, visible, tokens).body

    def _decode_row(self, tokens: Tokens, masked: Bool[Tensor, "1 n"]) -> Float[Tensor, "1 n d"]:
        assert tokens.packing is not None
        counts = count_masked(body_packing(tokens.packing).lengths, self.config.ratio)
        visible = take_visible(tokens, masked[0], counts, *repeated(tokens.packing, 1))
        return self.decoder(self.model.encoder(visible)).x.index_select(1, body_index(tokens.packing, tokens.x.device))

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
