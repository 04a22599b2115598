"""The encoder: one stack of blocks for every modality.

Choices, all in `EncoderConfig`: pre- or post-norm; LayerNorm or RMSNorm; plain or gated MLP; layer scale; drop path;
query-key norm; rotary positions on a line or grid; an additive bias; gradient checkpointing. A field typed
`PerLayer` may be a tuple, tiled over the depth: `rotary_theta=(1e5, 1e4, 1e4)` is 1e5, 1e4, 1e4, 1e5, 1e4, 1e4, ...
"""

import copy
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Interval
from jaxtyping import Bool, Float
from pydantic import Strict
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import Attention, Norm, RotaryTable
from .config import BelowOne, Layers, NotNegative, Size, UpToOne, configclass
from .errors import UserError
from .init import constant, init_weights
from .memory import check_room
from .positions import rotary_table
from .sparse import Pattern
from .tokens import Tokens

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "geglu", "swiglu"]
GATED = ("geglu", "swiglu")

Period = Annotated[float, Strict(), Interval(ge=1, le=1e12)]


@configclass
class EncoderConfig:
    dim: Size = 384
    """Width of a token."""
    depth: Layers = 12
    """Number of blocks."""
    heads: Size = 6
    """Attention heads."""
    head_dim: Size | None = None
    """Width of a head; dim / heads if None."""
    mlp_dim: Size | tuple[Size, ...] | None = None
    """Hidden width of the MLP (per layer, tiled); 4 * dim if None. A gated MLP has two of it."""
    activation: Activation | tuple[Activation, ...] = "gelu"
    """Of the MLP (per layer, tiled); geglu and swiglu are gated."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Kind of norm."""
    norm_order: Literal["pre", "post"] = "pre"
    """Norm before each branch (ViT) or after each sum (BERT)."""
    norm_eps: UpToOne = 1e-6
    """Added to the variance."""
    norm_bias: bool = True
    """Whether a LayerNorm has a bias."""
    input_norm: bool = False
    """A norm before the first block (CLIP)."""
    first_norm: bool = True
    """Whether the first block norms what it attends to; not needed behind an input or embedding norm (ModernBERT)."""
    final_norm: bool = True
    """A norm after the last block; post-norm encoders have none."""
    shared_groups: Layers | None = None
    """Blocks that exist; each serves depth / shared_groups successive layers (ALBERT: 1). None: one per layer."""
    qkv_bias: bool = True
    """Bias of the query, key and value projections."""
    out_bias: bool = True
    """Bias of the attention's output projection."""
    mlp_bias: bool = True
    """Bias of the MLP's projections."""
    qk_norm: bool = False
    """Norm each head's queries and keys."""
    layer_scale: NotNegative | None = None
    """Initial gain of each branch, learned per feature; None for no gain."""
    rotary: Literal["1d", "2d"] | None = None
    """Rotary positions over the sequence or over the grid."""
    rotary_theta: Period | tuple[Period, ...] = 10_000.0
    """Longest rotary period, in tokens / 2 pi (per layer, tiled)."""
    rotary_unit: bool = False
    """Rotary coordinates from -1 to 1 over the input instead of counting tokens (DINOv3)."""
    patterns: Pattern | tuple[Pattern | None, ...] | None = None
    """Who attends to whom (per layer, tiled); None for everybody to everybody."""
    dropout: BelowOne = 0.0
    """Of each branch's output."""
    attention_dropout: BelowOne = 0.0
    """Of the attention weights."""
    drop_path: BelowOne = 0.0
    """Chance to skip a branch in the last block, rising linearly from 0 in the first."""
    checkpointing: bool = False
    """Recompute each block in the backward pass instead of keeping its activations."""


def per_layer(value, layer: int):
    """The value of a `PerLayer` setting for one layer."""
    return value[layer % len(value)] if isinstance(value, tuple) else value


def make_norm(config: EncoderConfig, dim: int) -> nn.LayerNorm | nn.RMSNorm:
    if config.norm == "rmsnorm":
        return nn.RMSNorm(dim, eps=config.norm_eps)
    return nn.LayerNorm(dim, eps=config.norm_eps, bias=config.norm_bias)


def gelu(x: Float[Tensor, "..."], inplace: bool = False, approximate: str = "none") -> Float[Tensor, "..."]:
    return (torch.ops.aten.gelu_ if inplace else F.gelu)(x, approximate=approximate)


class MLP(nn.Module):
    """Two projections with an activation between; gated kinds multiply by a second one (Shazeer 2020)."""

    ACTIVATIONS = {
        "gelu": gelu,
        "gelu_tanh": partial(gelu, approximate="tanh"),
        "quick_gelu": lambda x, inplace=False: x * torch.sigmoid(1.702 * x),
        "relu": F.relu,
        "geglu": gelu,
        "swiglu": F.silu,
    }

    def __init__(self, dim: int, hidden: int, activation: Activation = "gelu", bias: bool = True):
        super().__init__()
        self.gated = activation in GATED
        self.activation = self.ACTIVATIONS[activation]
        self.up = nn.Linear(dim, 2 * hidden if self.gated else hidden, bias=bias)
        self.down = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        x = self.up(x)
        if self.gated:
            x, gate = x.chunk(2, dim=-1)
            return self.down(self.activation(x) * gate)
        # A second buffer of this size costs a ViT 8 % of its inference on a CPU.
        kept = x.requires_grad or self.up._forward_hooks or torch.compiler.is_compiling()
        return self.down(self.activation(x, inplace=not kept))


class Branch(nn.Module):
    """What becomes of a branch's output before it is added: dropout, layer scale, drop path (Huang et al. 2016)."""

    def __init__(self, dim: int, dropout: float, scale: float | None, drop_path: float):
        super().__init__()
        self.dropout, self.drop_path = dropout, drop_path
        self.scale = None if scale is None else constant(dim, value=scale)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        if self.scale is not None:
            x = x * self.scale
        if self.drop_path and self.training:
            keep = 1 - self.drop_path
            x = x * x.new_empty(x.shape[0], 1, 1).bernoulli_(keep).div_(keep)
        return x


class Turn:
    """Which of the layers that it serves a block computes."""

    now = 0


class Block(nn.Module):
    """Attention and MLP, each added to what came in."""

    def __init__(self, config: EncoderConfig, layer: int):
        super().__init__()
        norm: Norm = partial(make_norm, config)
        drop_path = config.drop_path * layer / max(config.depth - 1, 1)
        self.pre_norm = config.norm_order == "pre"
        self.span, self.turn = config.depth // (config.shared_groups or config.depth), Turn()
        self.attention_norm = norm(config.dim) if layer or config.first_norm else nn.Identity()
        self.attention = Attention(
            config.dim,
            config.heads,
            head_dim=config.head_dim,
            bias=config.qkv_bias,
            out_bias=config.out_bias,
            qk_norm=norm if config.qk_norm else None,
            dropout=config.attention_dropout,
        )
        self.attention_branch = Branch(config.dim, config.dropout, config.layer_scale, drop_path)
        self.mlp_norm = norm(config.dim)
        hidden = per_layer(config.mlp_dim, layer) or 4 * config.dim
        self.mlp = MLP(config.dim, hidden, per_layer(config.activation, layer), config.mlp_bias)
        self.mlp_branch = Branch(config.dim, config.dropout, config.layer_scale, drop_path)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "b n"] | None = None,
        bias: Float[Tensor, "#b #h #n #n"] | None = None,
        rotary: RotaryTable | None = None,
        pattern: Pattern | None = None,
        prefix: int = 0,
        grid: tuple[int, int] | None = None,
        turn: int = 0,
    ) -> Float[Tensor, "b n d"]:
        """turn: which of the block's layers this is."""
        self.turn.now = turn
        how = {"mask": mask, "bias": bias, "rotary": rotary, "pattern": pattern}
        how |= {"prefix": prefix, "grid": grid}
        if self.pre_norm:
            x = x + self.attention_branch(self.attention(self.attention_norm(x), **how))
            return x + self.mlp_branch(self.mlp(self.mlp_norm(x)))
        x = self.attention_norm(x + self.attention_branch(self.attention(x, **how)))
        return self.mlp_norm(x + self.mlp_branch(self.mlp(x)))


class Encoder(nn.Module):
    """A stack of blocks: Tokens in, Tokens out. Padding comes out as 0."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        if config.rotary_unit and config.rotary == "1d":
            # A sequence's length is that of the longest in its batch: padding would move every token.
            raise UserError("EncoderConfig: rotary_unit=True needs rotary='2d'.")
        self.input_norm = make_norm(config, config.dim) if config.input_norm else nn.Identity()
        groups = config.shared_groups or config.depth
        if config.depth % groups:
            raise UserError(f"EncoderConfig: {config.depth} layers cannot be shared out to {groups} groups evenly.")
        self.span = config.depth // groups
        size = 4 * sum(_weights(config, group * self.span) for group in range(groups))
        check_room(size, "An encoder of this shape", "choose a smaller dim, depth or mlp_dim")
        self.blocks = nn.ModuleList(Block(config, group * self.span) for group in range(groups))
        has_final_norm = config.final_norm and config.norm_order == "pre"
        self.final_norm = make_norm(config, config.dim) if has_final_norm else nn.Identity()
        init_weights(self)

    def forward(self, tokens: Tokens, bias: Float[Tensor, "#b #h #n #n"] | None = None) -> Tokens:
        """bias: added to the attention logits of every block (pairs, distances)."""
        real = None if tokens.mask is None else tokens.mask[..., None]
        x = tokens.x if real is None else tokens.x.where(real, 0)  # NaN in padding stops here
        x = self.input_norm(x)
        rotary = self.rotary_tables(tokens)
        for layer in range(self.config.depth):
            block = self.blocks[layer // self.span]
            pattern = per_layer(self.config.patterns, layer)
            args = (x, tokens.mask, bias, rotary[layer], pattern, tokens.prefix, tokens.grid, layer % self.span)
            recompute = self.config.checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, *args, use_reentrant=False) if recompute else block(*args)
        x = self.final_norm(x)
        return tokens.with_x(x if real is None else x.where(real, 0))

    def rotary_tables(self, tokens: Tokens) -> list[RotaryTable | None]:
        """One table per layer; layers of equal theta share it."""
        config = self.config
        if config.rotary is None:
            return [None] * config.depth
        if config.rotary == "2d" and tokens.grid is None:
            raise UserError("Encoder: rotary='2d' needs tokens with a grid; use rotary='1d' for sequences.")
        size = tokens.grid if config.rotary == "2d" else tokens.x.shape[1] - tokens.prefix
        thetas = [per_layer(config.rotary_theta, layer) for layer in range(config.depth)]
        tables = {
            theta: rotary_table(
                config.head_dim or config.dim // config.heads,
                size,
                prefix=tokens.prefix,
                theta=theta,
                unit=config.rotary_unit,
                device=tokens.x.device,
            )
            for theta in set(thetas)
        }
        return [tables[theta] for theta in thetas]


def _weights(config: EncoderConfig, layer: int) -> int:
    """How many numbers the projections of a block consist of."""
    inner = config.heads * (config.head_dim or config.dim // config.heads)
    gated = per_layer(config.activation, layer) in GATED
    mlp = (3 if gated else 2) * (per_layer(config.mlp_dim, layer) or 4 * config.dim)
    return config.dim * (4 * inner + mlp)


def unshare(model: nn.Module) -> nn.Module:
    """Give each layer weights of its own, at first what it shared; the model itself, changed. Outputs stay equal."""
    for encoder in _encoders(model, "unshare"):
        blocks = []
        for layer in range(encoder.config.depth):
            block = copy.deepcopy(encoder.blocks[layer // encoder.span])
            for module in block.modules():
                if hasattr(module, "only_layer"):
                    module.only_layer(layer % encoder.span)
            block.span = 1
            blocks.append(block)
        _regroup(encoder, blocks, None)
    return _configured(model)


@torch.no_grad()
def share(model: nn.Module, groups: int = 1) -> nn.Module:
    """Let each group of successive layers share one block, the mean of theirs (ALBERT); the model itself, changed."""
    if any(hasattr(module, "adapters") for module in model.modules()):
        raise UserError("share: merge or remove the adapters first.")
    for encoder in _encoders(unshare(model), "share"):
        depth = encoder.config.depth
        if groups < 1 or depth % groups:
            raise UserError(f"share: {depth} layers cannot be shared out to {groups} groups evenly.")
        blocks = []
        for members in zip(*[iter(encoder.blocks)] * (depth // groups), strict=True):
            shapes = [{name: p.shape for name, p in block.named_parameters()} for block in members]
            if any(other != shapes[0] for other in shapes):
                raise UserError("share: layers of different shapes cannot share weights.")
            for parameters in zip(*(block.parameters() for block in members), strict=True):
                parameters[0].copy_(torch.stack(parameters).mean(dim=0))
            members[0].span = depth // groups
            blocks.append(members[0])
        _regroup(encoder, blocks, groups)
    return _configured(model)


def _regroup(encoder: Encoder, blocks: list[Block], groups: int | None) -> None:
    encoder.blocks = nn.ModuleList(blocks)
    encoder.config = replace(encoder.config, shared_groups=groups)
    encoder.span = encoder.config.depth // len(blocks)


def sparsify(model: nn.Module, patterns: Pattern | str | tuple[Pattern | str | None, ...] | None) -> nn.Module:
    """Let a model attend by patterns (per layer, tiled), its weights as they are; the model itself, changed."""
    parsed = tuple(Pattern.parse(p) if isinstance(p, str) else p for p in _tuple(patterns))
    for encoder in _encoders(model, "sparsify"):
        encoder.config = replace(encoder.config, patterns=parsed if len(parsed) > 1 else parsed[0])
    return _configured(model)


def _encoders(model: nn.Module, purpose: str) -> list[Encoder]:
    encoders = [module for module in model.modules() if isinstance(module, Encoder)]
    if not encoders:
        raise UserError(
            f"{purpose}: {type(model).__name__} has no core.Encoder; convert it first (from_timm, from_hf)."
        )
    return encoders


def _configured(model: nn.Module) -> nn.Module:
    """The model, its config told of what became of its encoder."""
    encoder = next(module for module in model.modules() if isinstance(module, Encoder))
    if model is not encoder:
        model.config = replace(model.config, encoder=encoder.config)
    return model


def _tuple(value) -> tuple:
    return value if isinstance(value, tuple) else (value,)
