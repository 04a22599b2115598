"""Models beside which ragged batches are measured: peers as ours are called, and ours with padding."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from core import Tokens
from core.encoder.pack import pad
from core.objectives import MaskedAutoencoder


class NaFlex(nn.Module):
    """timm's NaFlexVit on images, padded to the one with the most patches."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, patches: Tensor, coordinates: Tensor, real: Tensor) -> Tensor:
        return self.model(patches, patch_coord=coordinates, patch_valid=real)


def naflex_batch(images: Sequence[Float[Tensor, "3 h w"]], patch: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Patches (rows, columns, channels), where they are, and which are not padding."""
    cut = [
        F.unfold(image[None], patch, stride=patch)[0].T.unflatten(1, (3, patch * patch)).mT.flatten(1)
        for image in images
    ]
    at = [
        torch.cartesian_prod(torch.arange(image.shape[1] // patch), torch.arange(image.shape[2] // patch))
        for image in images
    ]
    pad_all = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    return pad_all(cut), pad_all(at), pad_all([torch.ones(len(each), dtype=torch.bool) for each in cut])


class FromFrames(nn.Module):
    """Our AST from normalised features on: of clips one behind the other, or padded."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, features: Tensor, frames: Int[Tensor, "clips"]) -> Tensor:
        embed = self.model.embed
        tokens = embed.row(features, frames) if features.ndim == 2 else embed(features, frames)
        return self.model.head(self.model.pooled(self.model.encoder(tokens)))


class PaddedAutoencoder(MaskedAutoencoder):
    """A masked autoencoder that pads the visible patches of a batch to the longest sample, and all patches likewise."""

    def predict(self, tokens: Tokens, masked: Tensor) -> Tensor:
        packing = tokens.packing
        assert packing is not None
        all_tokens, prefix = pad(tokens), packing.places[0, 1]
        body = tokens.places.in_body
        hidden = torch.zeros_like(body).masked_scatter(body, masked[0])
        marks = pad(Tokens(hidden[None, :, None].float(), packing=packing)).x[..., 0] > 0
        real = torch.ones_like(marks) if all_tokens.mask is None else all_tokens.mask
        visible = real & ~marks
        longest = int(visible.sum(dim=1).max())
        index = (~visible).int().argsort(dim=1, stable=True)[:, :longest, None]
        kept = visible.gather(1, index[..., 0])
        x = all_tokens.x.gather(1, index.expand(-1, -1, tokens.x.shape[2]))
        encoded = self.decoder.embed(self.model.encoder(Tokens(x, mask=kept, prefix=int(prefix))).x)
        encoded = encoded.where(kept[..., None], self.decoder.mask_token)
        row = self.decoder.mask_token.expand(*real.shape, -1).scatter(
            1, index.expand(-1, -1, encoded.shape[2]), encoded
        )
        decoded = self.decoder.encoder(Tokens(row, mask=real, prefix=int(prefix))).x
        return self.head(decoded[real][None][:, body])


class Loss(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs: object) -> Tensor:
        found = self.model(*inputs)
        return (found.predicted - found.target)[found.masked][None]
