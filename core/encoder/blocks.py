"""A block of the encoder: attention and an MLP, each a branch that is added to its input."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..attention.module import Attention, Norm
from ..attention.packing import Packing
from ..attention.relation import Relation
from ..private_torch import forward_hooks
from ..scoped import Scoped
from .config import GATED, Activation, EncoderConfig, head_dim, per_layer
from .init import constant
from .positions import LearnedRotary
from .relative import DistanceGate, RelativeBias
from .residual import add, add_and_norm, normed_sum


def make_norm(config: EncoderConfig, dim: int) -> nn.LayerNorm | nn.RMSNorm:
    if config.norm == "rmsnorm":
        return nn.RMSNorm(dim, eps=config.norm_eps)
    return nn.LayerNorm(dim, eps=config.norm_eps, bias=config.norm_bias)


def gelu(x: Float[Tensor, "..."], inplace: bool = False, approximate: str = "none") -> Float[Tensor, "..."]:
    return (torch.ops.aten.gelu_ if inplace else F.gelu)(x, approximate=approximate)


class MLP(nn.Module):
    """Two projections with an activation between; gated kinds multiply by a second one (Shazeer 2020).

    inner_norm: makes the norm before the second projection, or None.
    up_bias: whether the first projection has a bias, if `bias`.
    """

    input_projection = "up"  # what alone reads the input (see residual.py)
    ACTIVATIONS = {
        "gelu": gelu,
        "gelu_tanh": partial(gelu, approximate="tanh"),
        "quick_gelu": lambda x, inplace=False: x * torch.sigmoid(1.702 * x),
        "relu": F.relu,
        "geglu": gelu,
        "swiglu": F.silu,
    }

    def __init__(
        self,
        dim: int,
        hidden: int,
        activation: Activation = "gelu",
        bias: bool = True,
        inner_norm: Norm | None = None,
        up_bias: bool = True,
    ):
        super().__init__()
        self.gated = activation in GATED
        self.activation = self.ACTIVATIONS[activation]
        self.up = nn.Linear(dim, 2 * hidden if self.gated else hidden, bias=bias and up_bias)
        self.inner_norm = inner_norm(hidden) if inner_norm else nn.Identity()
        self.down = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        x = self.up(x)
        if self.gated:
            x, gate = x.chunk(2, dim=-1)
            return self.down(self.inner_norm(self.activation(x) * gate))
        # A second buffer of this size costs a ViT 8 % of its inference on a CPU.
        kept = x.requires_grad or forward_hooks(self.up) or torch.compiler.is_compiling()
        return self.down(self.inner_norm(self.activation(x, inplace=not kept)))


class Branch(nn.Module):
    """Dropout, layer scale and drop path (Huang et al. 2016) of a branch's output, before it is added."""

    def __init__(self, dim: int, dropout: float, scale: float | None, drop_path: float):
        super().__init__()
        self.dropout, self.drop_path = dropout, drop_path
        self.scale = None if scale is None else constant(dim, value=scale)

    def forward(self, x: Float[Tensor, "b n d"], packing: Packing | None = None) -> Float[Tensor, "b n d"]:
        """packing: of several sequences in a row; drop path drops whole sequences."""
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        if self.scale is not None:
            x = x * self.scale
        if self.drop_path and self.training:
            keep = 1 - self.drop_path
            count = x.shape[0] if packing is None else len(packing.places)
            kept = x.new_empty(count, 1, 1).bernoulli_(keep).div_(keep)
            if packing is not None:
                kept = kept[packing.tokens_on(x.device, x.shape[1]).sequence].transpose(0, 1)
            x = x * kept
        return x


SHARED_LAYER: Scoped[int] = Scoped("which of the layers that share a block is computed")


class Block(nn.Module):
    """Attention and MLP, each added to its input."""

    def __init__(self, config: EncoderConfig, layer: int):
        super().__init__()
        norm: Norm = partial(make_norm, config)
        drop_path = config.drop_path * layer / max(config.depth - 1, 1)
        self.norm_order, self.parallel = config.norm_order, config.parallel
        self.span = config.depth // (config.shared_groups or config.depth)
        self.attention_norm = norm(config.dim) if layer or config.first_norm else nn.Identity()
        self.attention = Attention(
            config.dim,
            config.heads,
            kv_heads=per_layer(config.kv_heads, layer),
            head_dim=config.head_dim,
            bias=config.qkv_bias,
            out_bias=config.out_bias,
            qk_norm=norm if config.qk_norm else None,
            qk_norm_whole=config.qk_norm_whole,
            inner_norm=norm if config.attention_inner_norm else None,
            dropout=config.attention_dropout,
        )
        grid = None if config.relative_bias_shared else config.relative_bias
        self.relative_bias = None if grid is None else RelativeBias(config.heads, grid)
        self.distance_gate = DistanceGate(config.dim, config.heads) if config.distance_gate else None
        theta = per_layer(config.rotary_theta, layer)
        self.rotary = LearnedRotary(config.heads, head_dim(config), theta) if config.rotary_learned else None
        self.attention_branch = Branch(config.dim, config.dropout, config.layer_scale, drop_path)
        self.mlp_norm = nn.Identity() if config.parallel else norm(config.dim)
        hidden = per_layer(config.mlp_dim, layer) or 4 * config.dim
        inner_norm = norm if config.mlp_inner_norm else None
        self.mlp = MLP(
            config.dim, hidden, per_layer(config.activation, layer), config.mlp_bias, inner_norm, config.mlp_up_bias
        )
        self.mlp_branch = Branch(config.dim, config.dropout, config.layer_scale, drop_path)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        relation: Relation | None = None,
        rotary: Any = None,
        layer: int = 0,
        distances: Any = None,
    ) -> Float[Tensor, "b n d"]:
        """relation: as for `Attention`. rotary: too, or the tokens' coordinates if the block has frequencies of its
        own. layer: which of the layers that share the block is computed. distances: biases that the block has a gate
        for, or relative positions for `Attention`."""
        packing = None if relation is None else relation.packing
        if self.relative_bias is not None:
            relation = self.relative_bias(relation or Relation(), x.shape[1])
        if self.rotary is not None:
            rotary = self.rotary(rotary)
        with SHARED_LAYER.set(layer):
            given = x
            if self.norm_order == "pre":
                readers = self.attention, self.distance_gate, self.mlp if self.parallel else None
                x, given = add_and_norm(x, None, self.attention_norm, [part for part in readers if part is not None])
            positions = distances
            if self.distance_gate is not None:
                relation, positions = self.distance_gate(given, relation or Relation(), distances), None
            attended = self.attention(given, relation=relation, rotary=rotary, positions=positions)
            if self.norm_order == "pre":
                attended = self.attention_branch(attended, packing)
                if self.parallel:
                    x = add(x, attended)
                else:
                    x, given = add_and_norm(x, attended, self.mlp_norm, [self.mlp])
                return add(x, self.mlp_branch(self.mlp(given), packing))
            if self.norm_order == "res_post":
                x = add(x, self.attention_branch(self.attention_norm(attended), packing))
                return add(x, self.mlp_branch(self.mlp_norm(self.mlp(x)), packing))
            x, given = normed_sum(x, self.attention_branch(attended, packing), self.attention_norm, [self.mlp])
            return normed_sum(x, self.mlp_branch(self.mlp(given), packing), self.mlp_norm)[0]
