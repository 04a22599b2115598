"""The kinds of adapters: what each is told, and what it computes."""

import math
from collections.abc import Mapping
from itertools import count
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..config import BelowOne, Positive, Size, configclass
from ..encoder.blocks import MLP, SHARED_LAYER, Block
from ..encoder.encoder import Encoder
from ..encoder.init import constant, learned
from ..encoder.tokens import Tokens
from ..errors import UserError

Role = Literal["q", "k", "v", "out", "mlp_in", "mlp_out"]
ROLES: tuple[Role, ...] = ("q", "k", "v", "out", "mlp_in", "mlp_out")


@configclass
class LoRA:
    """A product of two thin matrices, added to a projection (Hu et al. 2022, section 4.1)."""

    rank: Size = 8
    """Inner width of the product."""
    alpha: Positive = 16.0
    """The product is multiplied by alpha / rank."""
    dropout: BelowOne = 0.0
    """Of what the product is applied to."""
    roles: tuple[Role, ...] = ("q", "v")
    """Which projections (q, k, v, out, mlp_in, mlp_out); the parts of a fused one each by itself."""
    dora: bool = False
    """Learn a gain for each output beside it (Liu et al. 2024, equation 5)."""
    rslora: bool = False
    """Multiply by alpha / root of rank instead (Kalajdzievski 2023)."""

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@configclass
class Bottleneck:
    """A narrow MLP behind each layer's attention and MLP (Houlsby et al. 2019, section 2.1)."""

    width: Size = 64
    """Of its hidden layer."""
    parallel: bool = False
    """Beside the MLP, fed what the MLP is fed, instead (He et al. 2022, section 3.3)."""


@configclass
class Prompt:
    """Learned tokens in front of all others (Lester et al. 2021; in pictures Jia et al. 2022, section 3.2)."""

    tokens: Size = 10
    """How many."""


Spec = LoRA | Bottleneck | Prompt
NUMBERS = count()  # tell what was added first
KINDS: dict[str, type] = {kind.__name__: kind for kind in (LoRA, Bottleneck, Prompt)}


def full(dtype: torch.dtype) -> torch.dtype:
    """Of adapters, whatever the model's is: small updates of numbers of half precision round to nothing."""
    return torch.promote_types(dtype, torch.float32)


def _as_wide_as(weight: Tensor, x: Tensor) -> Tensor:
    """x for a product with an adapter's weight; autocast sees to it itself."""
    return x if torch.is_autocast_enabled(x.device.type) else x.to(weight.dtype)


# --- What they compute ------------------------------------------------------------------------------------------------


class Adapter(nn.Module):
    """Changes the output of the module it hangs on."""

    def __init__(self, spec: Spec):
        super().__init__()
        self.spec, self.enabled, self.merged, self.strength = spec, True, False, 1.0
        self.number = next(NUMBERS)

    def change(self, host: nn.Module, x: Any, out: Any) -> Any:
        raise NotImplementedError


class LowRank(Adapter):
    """LoRA on a linear layer, or on some parts of its outputs; on a shared block, one for each layer it serves.

    parts: how many outputs of each role the layer has, in order. block: the one that it is in, if any.
    """

    def __init__(self, spec: LoRA, host: nn.Linear, parts: Mapping[Role, int], block: Block | None):
        super().__init__(spec)
        self.parts = dict(parts)
        self.layers = block.span if block else 1
        like = {"dtype": full(host.weight.dtype), "device": host.weight.device}
        self.down, self.up, self.gain = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        for role, weight in zip(parts, host.weight.detach().split(list(parts.values())), strict=True):
            if role not in spec.roles:
                continue
            widest = min(weight.shape)
            if not 1 <= spec.rank <= widest:
                raise UserError(f"LoRA: the rank must be from 1 to {widest}, the width of {role!r}, not {spec.rank}.")
            down = torch.empty(self.layers, spec.rank, weight.shape[1], **like)
            for matrix in down:
                nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
            self.down[role] = nn.Parameter(down)
            self.up[role] = nn.Parameter(torch.zeros(self.layers, len(weight), spec.rank, **like))
            if spec.dora:
                self.gain[role] = constant(self.layers, len(weight), value=0.0)
                self.gain[role].data = weight.to(like["dtype"]).norm(dim=1).expand(self.layers, -1).clone()

    @torch.no_grad()
    def only_layer(self, layer: int) -> None:
        """Keep what is for one of the layers: they no longer share."""
        for parameter in self.parameters():
            parameter.data = parameter.data[layer : layer + 1].clone()
        self.layers = 1

    @property
    def layer(self) -> int:
        return (SHARED_LAYER.get() or 0) if self.layers > 1 else 0

    def thin(self) -> tuple[Float[Tensor, "r i"], Float[Tensor, "o r"]]:
        """The two matrices for all parts at once: an output takes nothing from what belongs to another part."""
        layer, rank = self.layer, self.spec.rank
        ups, before = [], 0
        for role, size in self.parts.items():
            if role in self.up:
                up = self.up[role][layer] * self.spec.scale
                ups.append(F.pad(up, (before, (len(self.up) - 1) * rank - before)))
                before += rank
            else:
                ups.append(next(iter(self.up.values())).new_zeros(size, len(self.up) * rank))
        return torch.cat([down[layer] for down in self.down.values()]), torch.cat(ups)

    def gains(self, weight: Float[Tensor, "o i"]) -> Float[Tensor, "o"]:
        """DoRA's factor on each output of the layer as changed: learned over actual norm."""
        gains = []
        for role, part in zip(self.parts, weight.split(list(self.parts.values())), strict=True):
            ones = part.new_ones(len(part))
            # The norm counts as a constant (section 4.3): all but its gradient's small share for much less work.
            gains.append(self.gain[role][self.layer] / part.detach().norm(dim=1) if role in self.gain else ones)
        return torch.cat(gains)

    def change(self, host: nn.Linear, x: Float[Tensor, "*b i"], out: Float[Tensor, "*b o"]) -> Float[Tensor, "*b o"]:
        down, up = self.thin()
        x = _as_wide_as(down, x)
        if self.spec.dropout and self.training:
            x = F.dropout(x, self.spec.dropout)
        added = F.linear(F.linear(x, down), up)
        if self.spec.dora:
            gain = self.gains(host.weight + up @ down)
            plain = out if host.bias is None else out - host.bias
            added = (gain - 1) * plain + gain * added
        return (out + self.strength * added).to(out.dtype)

    @torch.no_grad()
    def merge(self, weight: nn.Parameter) -> None:
        down, up = self.thin()
        # Of the weight itself, and of what is added to it; not to be told from the weight once they are in it.
        gain = self.gains(weight + up @ down)[:, None] if self.spec.dora else 1.0
        self.factors = 1 + self.strength * (gain - 1), self.strength * gain
        weight.copy_(weight * self.factors[0] + self.factors[1] * (up @ down))  # rounded once

    @torch.no_grad()
    def unmerge(self, weight: nn.Parameter) -> None:
        down, up = self.thin()
        weight.copy_((weight - self.factors[1] * (up @ down)) / self.factors[0])


class Narrow(Adapter):
    """A bottleneck behind a layer, fed its output; or beside it, fed its input."""

    def __init__(self, spec: Bottleneck, host: nn.Module, dim: int, like: Tensor):
        super().__init__(spec)
        self.beside = isinstance(host, MLP)
        kind = {"dtype": full(like.dtype), "device": like.device}
        self.down, self.up = nn.Linear(dim, spec.width, **kind), nn.Linear(spec.width, dim, **kind)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def change(self, host: nn.Module, x: Float[Tensor, "*b i"], out: Float[Tensor, "*b o"]) -> Float[Tensor, "*b o"]:
        given = _as_wide_as(self.down.weight, x if self.beside else out)
        return (out + self.strength * self.up(F.gelu(self.down(given)))).to(out.dtype)


class PromptTokens(Adapter):
    """Learned tokens that the encoder sees before the others, and nobody after it."""

    def __init__(self, spec: Prompt, dim: int, like: Tensor):
        super().__init__(spec)
        self.tokens = learned(spec.tokens, dim)
        self.tokens.data = self.tokens.to(like.device, full(like.dtype))

    def before(self, tokens: Tokens) -> Tokens:
        size, new = tokens.x.shape[0], len(self.tokens)  # len() would fix the batch that is exported
        x = torch.cat([self.strength * self.tokens.to(tokens.x.dtype).expand(size, -1, -1), tokens.x], dim=1)
        mask = None if tokens.mask is None else F.pad(tokens.mask, (new, 0), value=True)
        return Tokens(x, mask=mask, grid=tokens.grid, prefix=tokens.prefix + new)

    def change(self, host: Encoder, x: Tokens, out: Tokens) -> Tokens:
        new = len(self.tokens)
        mask = None if out.mask is None else out.mask[:, new:]
        return Tokens(out.x[:, new:], mask=mask, grid=out.grid, prefix=out.prefix - new)
