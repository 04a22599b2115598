"""The masked autoencoder: a model whose encoder sees the unmasked patches, and a decoder that predicts the masked ones.

He et al. 2022 for images, Huang et al. 2022 for spectrograms. A step costs a fraction of a supervised one. Samples of
different sizes lie in one row, without padding: what is visible, for the encoder, and all patches, for the decoder.
(Masked tokens of a vocabulary are in masked_tokens.py.)
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..attention.packing import Packing
from ..config import BelowOne, Layers, Natural, Size, configclass
from ..encoder.config import EncoderConfig
from ..encoder.encoder import Encoder
from ..encoder.init import init_weights, learned
from ..encoder.pack import pack
from ..encoder.positions import sincos_positions, sincos_positions_of_row
from ..encoder.tokens import Tokens
from ..errors import UserError
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
        noise are masked. A sample of a smaller grid takes the noise of its first rows and columns."""
        *model_inputs, noise = inputs
        tokens, ratio = self.model.tokens(*model_inputs), self.config.ratio
        target = at_least_fp32(self.model.patches(*model_inputs))
        if self.config.normalise:
            mean, deviation = _mean_and_deviation(target)
            target = (target - mean) / deviation
        if tokens.packing is not None:
            patches = _packing_of_patches(tokens.packing)
            masked = mask_packed_patches(noise, patches, ratio)[None]
            return MaskedPrediction(target, self.predict(tokens, masked), masked, patches)
        assert tokens.grid is not None  # patches lie on a grid
        real = tokens.body_mask
        masked = mask_patches(noise_of_grid(noise, tokens.count, tokens.grid).flatten(1), real, ratio)
        if real is None:
            return MaskedPrediction(target, self.predict(tokens, masked), masked)
        predicted = self.predict(pack(tokens), masked[real][None])
        return MaskedPrediction(target, torch.zeros_like(target).masked_scatter(real[..., None], predicted), masked)

    def predict(self, tokens: Tokens, masked: Bool[Tensor, "b n"]) -> Float[Tensor, "b n p"]:
        """Predictions for all patches, from the tokens that are not masked.

        tokens: samples of one size, one in each row, or of any sizes in a packed row. masked: of each sample as many
        patches as the mask ratio says.
        """
        decoded = self._decode_row(tokens, masked) if tokens.packing is not None else self._decode_batch(tokens, masked)
        return at_least_fp32(self.head(decoded))

    def _decode_batch(self, tokens: Tokens, masked: Bool[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        assert tokens.grid is not None and tokens.mask is None
        visible = _visible(F.pad(masked, (tokens.prefix, 0)), int(count_masked(masked.shape[1], self.config.ratio)))
        encoded = self.model.encoder(Tokens(_take(tokens.x, visible), prefix=tokens.prefix))
        positions = F.pad(sincos_positions(self.config.dim, tokens.grid), (0, 0, tokens.prefix, 0))
        x = self._with_mask_tokens(encoded, visible, tokens) + positions.to(tokens.x.device, encoded.x.dtype)
        return self.decoder(tokens.with_x(x)).body

    def _decode_row(self, tokens: Tokens, masked: Bool[Tensor, "1 n"]) -> Float[Tensor, "1 n d"]:
        packing = tokens.packing
        assert packing is not None
        lengths, prefixes = packing.lengths, packing.prefixes
        counts = count_masked(lengths - prefixes, self.config.ratio)
        visible_packing = Packing(torch.stack([lengths - counts, prefixes, 0 * counts, 0 * counts], dim=1))
        # The places are computed on the CPU: a device is not asked where they are.
        body = packing.tokens(tokens.x.shape[1]).in_body.nonzero()[:, 0].to(masked.device, non_blocking=True)
        hidden = masked.new_zeros(tokens.x.shape[:2]).index_copy(1, body, masked)
        visible = _visible(hidden, int(counts.sum()))
        encoded = self.model.encoder(Tokens(_take(tokens.x, visible), packing=visible_packing))
        positions = sincos_positions_of_row(self.config.dim, tokens.places)
        x = self._with_mask_tokens(encoded, visible, tokens) + positions.to(encoded.x.dtype)
        return self.decoder(tokens.with_x(x)).x.index_select(1, body)

    def _with_mask_tokens(self, encoded: Tokens, visible: Int[Tensor, "b m"], tokens: Tokens) -> Float[Tensor, "b n d"]:
        """The decoder's tokens: those that were encoded, in their places, and mask tokens in all other places."""
        x = self.decoder_embed(encoded.x)
        mask_tokens = self.mask_token.to(x.dtype).expand(*tokens.x.shape[:2], -1)
        return mask_tokens.scatter(1, visible[..., None].expand(-1, -1, self.config.dim), x)

    def reconstruct(self, prediction: MaskedPrediction, patches: Float[Tensor, "b n p"]) -> Float[Tensor, "b n p"]:
        """The patches, with the prediction in place of those masked. With `normalise` the model predicts neither mean
        nor standard deviation of a patch: those of `patches` are used."""
        predicted = prediction.predicted
        if self.config.normalise:
            mean, deviation = _mean_and_deviation(patches)
            predicted = predicted * deviation + mean
        return patches.where(~prediction.masked[..., None], predicted)


def _packing_of_patches(packing: Packing) -> Packing:
    """Where the patches lie that the tokens of a row were made from."""
    packing.require_grids("Masked autoencoding")
    lengths, prefixes, rows, columns = packing.places.unbind(dim=1)
    return Packing(torch.stack([lengths - prefixes, 0 * prefixes, rows, columns], dim=1))


def _visible(hidden: Bool[Tensor, "b n"], count: int) -> Int[Tensor, "b m"]:
    """The places of the tokens that are not hidden; count: how many of each row are."""
    return hidden.int().argsort(dim=1, stable=True)[:, : hidden.shape[1] - count]


def _take(x: Float[Tensor, "b n d"], places: Int[Tensor, "b m"]) -> Float[Tensor, "b m d"]:
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))


def _mean_and_deviation(patches: Float[Tensor, "b n p"]) -> tuple[Float[Tensor, "b n 1"], Float[Tensor, "b n 1"]]:
    return patches.mean(dim=2, keepdim=True), (patches.var(dim=2, keepdim=True) + 1e-6).sqrt()


def unpatch(
    patches: Float[Tensor, "b n p"], size: tuple[int, int], patch_size: tuple[int, int], stride: tuple[int, int]
) -> Float[Tensor, "b c h w"]:
    """The image that the patches were cut from; where they overlap, their mean."""
    ones = torch.ones_like(patches)
    total, count = (F.fold(x.mT, tuple(size), patch_size, stride=stride) for x in (patches, ones))
    return total / count
