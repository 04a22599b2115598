"""`core.Encoder` against `nn.TransformerEncoder` and x-transformers' `Encoder` with flash attention, each of the same
weights and mathematics as ours: norm first, GELU, a norm at the end."""

from collections.abc import Iterator

import torch
import x_transformers
from torch import Tensor, nn

from core import Encoder, EncoderConfig, Tokens

from .pair import Pair, compare
from .row import Row, Run, versioned

EPSILON = 1e-5  # of both peers' norms


class Vectors(nn.Module):
    """Our encoder from vectors to vectors."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(Tokens(x)).x


def shape(tiny: bool) -> tuple[dict[str, int], Tensor, str]:
    if tiny:
        return {"dim": 32, "depth": 1, "heads": 2}, torch.randn(2, 16, 32), "tiny"
    return {"dim": 512, "depth": 6, "heads": 8}, torch.randn(8, 512, 512), "512 wide, 6 deep, 512 tokens, batch 8"


def torch_pair(tiny: bool) -> Pair:
    sizes, inputs, what = shape(tiny)
    ours = Encoder(EncoderConfig(**sizes, norm_eps=EPSILON))
    dim = sizes["dim"]
    layer = nn.TransformerEncoderLayer(
        dim, sizes["heads"], 4 * dim, 0.0, "gelu", EPSILON, batch_first=True, norm_first=True
    )
    peer = nn.TransformerEncoder(layer, sizes["depth"], nn.LayerNorm(dim, eps=EPSILON), enable_nested_tensor=False)
    for block, theirs in zip(ours.blocks, peer.layers, strict=True):
        block.attention.qkv.load_state_dict(
            {"weight": theirs.self_attn.in_proj_weight, "bias": theirs.self_attn.in_proj_bias}
        )
        _copy(theirs.self_attn.out_proj, block.attention.out)
        _copy(theirs.norm1, block.attention_norm), _copy(theirs.norm2, block.mlp_norm)
        _copy(theirs.linear1, block.mlp.up), _copy(theirs.linear2, block.mlp.down)
    name = f"nn.TransformerEncoder, {versioned('torch')}"
    return Pair(what=f"Encoder, {what}", peer=name, ours=Vectors(ours), theirs=peer, inputs=inputs)


def x_pair(tiny: bool) -> Pair:
    sizes, inputs, what = shape(tiny)
    ours = Encoder(EncoderConfig(**sizes, norm_eps=EPSILON, norm_bias=False, qkv_bias=False, out_bias=False))
    head = sizes["dim"] // sizes["heads"]
    peer = x_transformers.Encoder(**sizes, attn_dim_head=head, attn_flash=True)
    layers = iter(peer.layers)
    for block, ((norm, *_), attention, _), ((mlp_norm, *_), mlp, _) in zip(ours.blocks, layers, layers, strict=True):
        projections = attention.to_q, attention.to_k, attention.to_v
        block.attention.qkv.load_state_dict({"weight": torch.cat([p.weight for p in projections])})
        _copy(attention.to_out, block.attention.out)
        _copy_gain(norm, block.attention_norm), _copy_gain(mlp_norm, block.mlp_norm)
        _copy(mlp.ff[0][0], block.mlp.up), _copy(mlp.ff[2], block.mlp.down)
    _copy_gain(peer.final_norm, ours.final_norm)
    what = f"Encoder without biases in attention, {what}"
    return Pair(what=what, peer=versioned("x-transformers"), ours=Vectors(ours), theirs=peer, inputs=inputs)


def _copy(theirs: nn.Module, ours: nn.Module) -> None:
    ours.load_state_dict(theirs.state_dict())


def _copy_gain(theirs: nn.Module, ours: nn.LayerNorm) -> None:
    ours.load_state_dict({"weight": theirs.gamma + float(theirs.unit_offset)})


def rows(run: Run) -> Iterator[Row]:
    yield from compare(torch_pair, run, inference=11, training=7)
    yield from compare(x_pair, run, inference=11, training=7)
