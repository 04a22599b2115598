"""The kinds of adapters: their configurations, and what they compute."""

import math
from collections.abc import Mapping
from itertools import count
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..attention.packing import Packing
from ..config import BelowOne, Positive, Size, configclass
from ..encoder.blocks import SHARED_LAYER, Block
from ..encoder.init import constant, learned
from ..encoder.tokens import Tokens
from ..errors import UserError

Role = Literal["q", "k", "v", "out", "mlp_in", "mlp_out"]
ROLES: tuple[Role, ...] = ("q", "k", "v", "out", "mlp_in", "mlp_out")


@configclass
class LoRA:
    """A product of two low-rank matrices, added to the weight of a projection (Hu et al. 2022, section 4.1)."""

    rank: Size = 8
    """Rank of the two matrices."""
    alpha: Positive = 16.0
    """The product is multiplied by alpha / rank."""
    dropout: BelowOne = 0.0
    """Dropout on the input of the product."""
    roles: tuple[Role, ...] = ("q", "v")
    """Which projections it is on (q, k, v, out, mlp_in, mlp_out); each part of a fused one has its own."""
    dora: bool = False
    """Also learn a magnitude for each output (Liu et al. 2024, equation 5)."""
    rslora: bool = False
    """Multiply by alpha / square root of rank instead (Kalajdzievski 2023)."""

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@configclass
class Bottleneck:
    """A narrow MLP behind each layer's attention and MLP (Houlsby et al. 2019, section 2.1)."""

    width: Size = 64
    """Width of its hidden layer."""
    parallel: bool = False
    """Parallel to the MLP, with the same input, instead (He et al. 2022, section 3.3)."""


@configclass
class Prompt:
    """Learned tokens before all others (Lester et al. 2021; for images Jia et al. 2022, section 3.2)."""

    tokens: Size = 10
    """Number of tokens."""


Spec = LoRA | Bottleneck | Prompt
NUMBERS = count()  # which adapter was added first
KINDS: dict[str, type] = {kind.__name__: kind for kind in (LoRA, Bottleneck, Prompt)}


def adapter_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of an adapter on weights of a dtype: in half precision, small updates would be rounded away."""
    return torch.promote_types(dtype, torch.float32)


def _in_dtype_of(weight: Tensor, x: Tensor) -> Tensor:
    """x in the dtype of an adapter's weight; under autocast, torch casts it itself."""
    return x if torch.is_autocast_enabled(x.device.type) else x.to(weight.dtype)


class Adapter(nn.Module):
    """Changes the output of the module that it is on, its host."""

    def __init__(self, spec: Spec):
        super().__init__()
        self.spec, self.enabled, self.merged, self.strength = spec, True, False, 1.0
        self.number = next(NUMBERS)

    def change_input(self, x: Any) -> Any:
        return x

    def change_output(self, host: Any, x: Any, out: Any) -> Any:
        raise NotImplementedError


class LoRAAdapter(Adapter):
    """LoRA on a linear layer, or on some parts of its outputs; in a shared block, one for each layer that uses it.

    parts: how many outputs of each role the layer has, in order. block: the block that it is in, if any.
    """

    spec: LoRA

    def __init__(self, spec: LoRA, host: nn.Linear, parts: Mapping[Role, int], block: Block | None):
        super().__init__(spec)
        self.parts = dict(parts)
        self.num_layers = block.span if block else 1
        like = {"dtype": adapter_dtype(host.weight.dtype), "device": host.weight.device}
        self.down, self.up, self.gain = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        for role, weight in zip(parts, host.weight.detach().split(list(parts.values())), strict=True):
            if role not in spec.roles:
                continue
            widest = min(weight.shape)
            if not 1 <= spec.rank <= widest:
                raise UserError(f"LoRA: the rank must be from 1 to {widest}, the width of {role!r}, not {spec.rank}.")
            down = torch.empty(self.num_layers, spec.rank, weight.shape[1], **like)
            for matrix in down:
                nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
            self.down[role] = nn.Parameter(down)
            self.up[role] = nn.Parameter(torch.zeros(self.num_layers, len(weight), spec.rank, **like))
            if spec.dora:
                self.gain[role] = constant(self.num_layers, len(weight), value=0.0)
                self.gain[role].data = weight.to(like["dtype"]).norm(dim=1).expand(self.num_layers, -1).clone()

    @torch.no_grad()
    def only_layer(self, layer: int) -> None:
        """Keep the weights for one of the layers, which no longer share their block."""
        for parameter in self.parameters():
            parameter.data = parameter.data[layer : layer + 1].clone()
        self.num_layers = 1

    @property
    def layer(self) -> int:
        return (SHARED_LAYER.get() or 0) if self.num_layers > 1 else 0

    def matrices(self) -> tuple[Float[Tensor, "r i"], Float[Tensor, "o r"]]:
        """The two matrices for all parts at once; an output has weights of 0 for the ranks of other parts."""
        layer, rank = self.layer, self.spec.rank
        ups, offset = [], 0
        for role, size in self.parts.items():
            if role in self.up:
                up = self.up[role][layer] * self.spec.scale
                ups.append(F.pad(up, (offset, (len(self.up) - 1) * rank - offset)))
                offset += rank
            else:
                ups.append(next(iter(self.up.values())).new_zeros(size, len(self.up) * rank))
        return torch.cat([down[layer] for down in self.down.values()]), torch.cat(ups)

    def gains(self, weight: Float[Tensor, "o i"]) -> Float[Tensor, "o"]:
        """DoRA's factor on each output of the changed layer: the learned norm over the actual one."""
        gains = []
        for role, part in zip(self.parts, weight.split(list(self.parts.values())), strict=True):
            ones = part.new_ones(len(part))
            # The norm is treated as a constant (section 4.3), which saves much work and changes the gradient little.
            gains.append(self.gain[role][self.layer] / part.detach().norm(dim=1) if role in self.gain else ones)
        return torch.cat(gains)

    def change_output(
        self, host: nn.Linear, x: Float[Tensor, "*b i"], out: Float[Tensor, "*b o"]
    ) -> Float[Tensor, "*b o"]:
        down, up = self.matrices()
        x = _in_dtype_of(down, x)
        if self.spec.dropout and self.training:
            x = F.dropout(x, self.spec.dropout)
        added = F.linear(F.linear(x, down), up)
        if self.spec.dora:
            gain = self.gains(host.weight + up @ down)
            plain = out if host.bias is None else out - host.bias
            added = (gain - 1) * plain + gain * added
        return torch.add(out, added, alpha=self.strength).to(out.dtype)

    @torch.no_grad()
    def merge(self, weight: nn.Parameter) -> None:
        down, up = self.matrices()
        # The factors of the weight, and of what is added to it; unmerge cannot compute them from the merged weight.
        gain = self.gains(weight + up @ down)[:, None] if self.spec.dora else 1.0
        self.factors = 1 + self.strength * (gain - 1), self.strength * gain
        weight.copy_(weight * self.factors[0] + self.factors[1] * (up @ down))  # rounded once

    @torch.no_grad()
    def unmerge(self, weight: nn.Parameter) -> None:
        down, up = self.matrices()
        weight.copy_((weight - self.factors[1] * (up @ down)) / self.factors[0])


class BottleneckAdapter(Adapter):
    """A bottleneck behind a layer, whose input is the layer's output; or parallel to it, with the same input."""

    spec: Bottleneck

    def __init__(self, spec: Bottleneck, dim: int, like: Tensor):
        super().__init__(spec)
        kind = {"dtype": adapter_dtype(like.dtype), "device": like.device}
        self.down, self.up = nn.Linear(dim, spec.width, **kind), nn.Linear(spec.width, dim, **kind)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def change_output(
        self, host: nn.Module, x: Float[Tensor, "*b i"], out: Float[Tensor, "*b o"]
    ) -> Float[Tensor, "*b o"]:
        inputs = _in_dtype_of(self.down.weight, x if self.spec.parallel else out)
        return (out + self.strength * self.up(F.gelu(self.down(inputs)))).to(out.dtype)


class PromptAdapter(Adapter):
    """Learned tokens that are put before the encoder's tokens, and removed from its output."""

    def __init__(self, spec: Prompt, dim: int, like: Tensor):
        super().__init__(spec)
        self.tokens = learned(spec.tokens, dim)
        self.tokens.data = self.tokens.to(like.device, adapter_dtype(like.dtype))

    def change_input(self, x: Tokens) -> Tokens:
        if x.packing is not None:
            return self._before_each_sequence(x, x.packing)
        batch, new = x.x.shape[0], len(self.tokens)  # len(x.x) would fix the batch size of an export
        longer = torch.cat([self.strength * self.tokens.to(x.x.dtype).expand(batch, -1, -1), x.x], dim=1)
        mask = None if x.mask is None else F.pad(x.mask, (new, 0), value=True)
        return Tokens(longer, mask=mask, grid=x.grid, prefix=x.prefix + new)

    def change_output(self, host: Any, x: Tokens, out: Tokens) -> Tokens:
        new = len(self.tokens)
        if out.packing is not None:
            number = out.places.position + out.packing.prefixes.to(out.x.device)[out.places.sequence]
            return Tokens(out.x[:, number >= new], packing=Packing(out.packing.places - torch.tensor([new, new, 0, 0])))
        mask = None if out.mask is None else out.mask[:, new:]
        return Tokens(out.x[:, new:], mask=mask, grid=out.grid, prefix=out.prefix - new)

    def _before_each_sequence(self, x: Tokens, packing: Packing) -> Tokens:
        new = len(self.tokens)
        longer = Packing(packing.places + torch.tensor([new, new, 0, 0]))
        at = longer.tokens(x.x.shape[1] + new * len(packing.places))
        number = at.position + longer.prefixes[at.sequence]  # of each token in its sequence
        old = (number >= new).to(x.x.device)
        row = (self.strength * self.tokens.to(x.x.dtype))[number.clamp(max=new - 1).to(x.x.device)]
        row = row.index_put([old.nonzero()[:, 0]], x.x[0])
        return Tokens(row[None], packing=longer)
