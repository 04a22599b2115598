"""What masked objectives share: the tokens left of a packed row, and a light decoder that fills in the others."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..attention.packing import Packing, Selection
from ..encoder.config import EncoderConfig
from ..encoder.encoder import Encoder
from ..encoder.init import init_weights, learned
from ..encoder.layers import layer_groups
from ..encoder.positions import sincos_positions, sincos_positions_of_row
from ..encoder.stem import ConvolutionalStem
from ..encoder.tokens import Tokens
from ..errors import UserError


def require_separate_patches(model: object) -> None:
    """Refuse a model whose tokens see more than their own patches, so that masking them would hide little."""
    if isinstance(model, nn.Module) and any(isinstance(module, ConvolutionalStem) for module in model.modules()):
        raise UserError(
            f"The convolutional stem of this {type(model).__name__} shows each token the pixels around its patch, so "
            "that masking it hides little: pre-train a model without one (leave out --model.stem)."
        )


def freeze_output(model: Any) -> None:
    """Freeze what comes after the model's encoder (pooling, norms, heads): masked pre-training does not use it."""
    of_encoder = set(model.encoder.parameters())
    for layer in layer_groups(model):
        for parameter in layer.parameters.values() if layer.name == "output" else ():
            parameter.requires_grad = parameter.requires_grad and parameter in of_encoder


def body_packing(packing: Packing) -> Packing:
    """Where the tokens of a row would lie without prefix tokens."""
    lengths, prefixes, rows, columns = packing.places.unbind(dim=1)
    return Packing(torch.stack([lengths - prefixes, 0 * prefixes, rows, columns], dim=1))


def body_index(packing: Packing, device: torch.device) -> Int[Tensor, "body"]:
    """Where the tokens of a row are that are no prefix tokens. What lies where is computed on the CPU: a device is not
    asked, so that nothing waits for it."""
    return packing.tokens().in_body.nonzero()[:, 0].to(device, non_blocking=True)


def repeated(packing: Packing, times: int) -> tuple[Packing, Int[Tensor, "n"]]:
    """A row that has each sequence so many times, and for each of its tokens the token of the row that it repeats."""
    whole = Packing(packing.places.repeat_interleave(times, dim=0))
    within = torch.arange(whole.total) - whole.starts.repeat_interleave(whole.lengths)
    return whole, packing.starts.repeat_interleave(times).repeat_interleave(whole.lengths) + within


def take_visible(
    tokens: Tokens, masked: Bool[Tensor, "body"], counts: Int[Tensor, "s"], whole: Packing, source: Int[Tensor, "n"]
) -> Tokens:
    """The tokens that are not masked, each with its position in its whole sequence.

    tokens: of a packed row. masked: of each sequence's body so many as `counts` says. whole, source: `repeated`.
    """
    lengths, prefixes = whole.lengths, whole.prefixes
    hidden = masked.new_zeros(len(source)).index_copy(0, body_index(whole, masked.device), masked)
    visible = hidden.int().argsort(stable=True)[: len(source) - int(counts.sum())]
    left = Packing(torch.stack([lengths - counts, prefixes, 0 * counts, 0 * counts], dim=1))
    x = tokens.x.index_select(1, source.to(visible.device, non_blocking=True)[visible])
    return Tokens(x, packing=left, selection=Selection(whole, visible))


class MaskDecoder(nn.Module):
    """A narrow encoder over the tokens that were left and mask tokens in the places of the others, with fixed sines and
    cosines as positions (He et al. 2022, section 3)."""

    def __init__(self, width: int, config: EncoderConfig):
        """width: of the tokens that are decoded."""
        super().__init__()
        self.embed = nn.Linear(width, config.dim)
        self.mask_token = learned(config.dim)
        self.encoder = Encoder(config)
        init_weights(self.embed)

    def forward(self, encoded: Tokens) -> Tokens:
        """The whole row, decoded. encoded: what an encoder made of `take_visible`."""
        assert encoded.selection is not None
        whole, index = encoded.selection.whole, encoded.selection.index
        x = self.embed(encoded.x)
        everywhere = self.mask_token.to(x.dtype).expand(1, whole.total, -1).index_copy(1, index, x)
        row = Tokens(everywhere, packing=whole)
        positions = sincos_positions_of_row(x.shape[2], row.places)
        return self.encoder(row.with_x(everywhere + positions.to(x.dtype)))

    def batch(self, encoded: Float[Tensor, "b m d"], visible: Int[Tensor, "b m"], tokens: Tokens) -> Tokens:
        """The same of samples of one grid, one in each row. visible: where the encoded tokens are among `tokens`."""
        assert tokens.grid is not None and tokens.mask is None
        x = self.embed(encoded)
        everywhere = self.mask_token.to(x.dtype).expand(*tokens.x.shape[:2], -1)
        everywhere = everywhere.scatter(1, visible[..., None].expand(-1, -1, x.shape[2]), x)
        positions = sincos_positions(x.shape[2], tokens.grid).to(x.device, x.dtype)
        prefix = positions.new_zeros(tokens.prefix, x.shape[2])
        return self.encoder(tokens.with_x(everywhere + torch.cat([prefix, positions])))
