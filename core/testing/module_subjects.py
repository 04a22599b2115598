"""Encoders and models that are checked, and what they claim to do. See subjects.py."""

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .claims import ENCODER, MODEL
from .measures import normal, seeded
from .subjects import Subject, a_tensor, some_places

PADDING = 4  # tokens


@dataclass(frozen=True)
class Positions:
    """Learned positions of a grid of patches, which can be resized.

    tables: the names of the parameters, "... n d": those of prefix tokens, then those of the grid row by row.
    grid: rows and columns of the patches of an image of the batch.
    resize: gives the module for another grid, as `resize(module, rows, columns)`.
    """

    tables: Sequence[str]
    grid: tuple[int, int]
    resize: Callable[[nn.Module, int, int], nn.Module]


@dataclass(frozen=True, eq=False)
class ModuleSubject(Subject):
    """What encoders and models have in common.

    factory: makes a module, with random weights drawn from torch's global generator.
    call: calls a module, as `call(module, *inputs) -> Tensor`.
    weights: how many trainable weights a module has, shared ones counted once.
    checkpointed: makes a module that recomputes its activations in the backward pass; if None, torch's own checkpoint
        is put around the whole module.
    adapt: puts an adapter on a module that at first changes nothing, and returns the module.
    merge: merges the adapter into the weights, and returns the module.
    quantise: stores weights in lower precision, before an adapter is put on them, and returns the module.
    ways: other calls that must give the same, by name: of another kernel, with attention weights.
    inference_ways: other calls that must give the same outputs without gradients, as of a kernel that has none.
    cached: the output of parts of the tokens, given one after the other with a cache, as `cached(module, parts)`; the
        tokens are the first input, along its second axis.
    loss: what `overfits-one-batch` minimises, as `loss(module, *inputs)`; the distance to random numbers if None.
    rate: the learning rate for that (Adam's).
    """

    factory: Callable[[], nn.Module]
    _: KW_ONLY
    call: Callable[..., Tensor] | None = None
    weights: int | None = None
    checkpointed: Callable[[], nn.Module] | None = None
    adapt: Callable[[nn.Module], nn.Module] | None = None
    merge: Callable[[nn.Module], nn.Module] | None = None
    quantise: Callable[[nn.Module], nn.Module] | None = None
    ways: Mapping[str, Callable[..., Tensor]] | None = None
    inference_ways: Mapping[str, Callable[..., Tensor]] | None = None
    cached: Callable[[nn.Module, Sequence[Tensor]], Tensor] | None = None
    loss: Callable[..., Tensor] | None = None
    rate: float = 1e-2

    def make(self, seed: int = 0, factory: Callable[[], nn.Module] | None = None, fresh: bool = False) -> nn.Module:
        """A module in eval mode. Unless `fresh`, noise is added to its weights: new ones hardly distinguish tokens."""
        with seeded(seed):
            module = (factory or self.factory)()
            if not fresh:
                with torch.no_grad():
                    for parameter in module.parameters():
                        parameter += 0.1 * torch.randn_like(parameter)
        return module.to(self.device, self.dtype).eval()

    def copy(self, module: nn.Module) -> nn.Module:
        """Another module with the same weights; some that can't be copied can be made and loaded."""
        try:
            return copy.deepcopy(module)
        except Exception:  # foreign code may raise anything
            other = self.make()
            other.load_state_dict(module.state_dict())
            return other

    def inputs(self) -> tuple:
        raise NotImplementedError

    def inputs_of_length(self, length: int) -> Sequence[Any]:
        """What the cost at a length is measured with."""
        raise NotImplementedError

    def run(self, module: nn.Module, *inputs: Any) -> Tensor:
        out = (self.call or _call)(module, *inputs)
        if isinstance(out, tuple):  # several tensors, which differ in their last axis only
            return torch.cat([a_tensor(each) for each in out], dim=-1)
        return a_tensor(out)

    def cast(self, inputs: Sequence[Any], dtype: torch.dtype) -> tuple:
        """The inputs on the device, those that are not whole numbers in a dtype."""
        return tuple(
            i.to(self.device, dtype if i.is_floating_point() else i.dtype) if isinstance(i, Tensor) else i
            for i in inputs
        )

    def run_padded(self, module: nn.Module, left: bool = False) -> tuple[Tensor, Tensor]:
        """The outputs of the same samples with more padding, behind or before them, and without."""
        raise NotImplementedError

    def packed_samples(self) -> list[Tensor]:
        """Samples of different sizes, each without the axis of the batch."""
        raise NotImplementedError

    def run_packed(self, module: nn.Module, samples: list[Tensor]) -> list[Tensor]:
        """The output of each sample, all computed together."""
        raise NotImplementedError

    def run_alone(self, module: nn.Module, sample: Tensor) -> Tensor:
        return self.run(module, sample[None])[0]

    def claims_by_options(self) -> frozenset[str]:
        own = {"weights": self.weights, "adapters": self.adapt, "merge": self.merge, "quantise": self.quantise}
        return _given(**own, ways=self.ways, inference_ways=self.inference_ways, cached=self.cached)


@dataclass(frozen=True, eq=False)
class EncoderSubject(ModuleSubject):
    """A module called as `module(x, mask)`, or `module(x)` if "mask" is not claimed: "b n d" -> "b n d".

    mask: "b n", True = a real token. A core.Encoder is called with Tokens. Lengths are multiples of 4, or 0 or 1.
    reference: computes the same in another way, as `reference(module, x, mask)`.
    packed: the outputs of sequences "n d" of different lengths together, as `packed(module, [x, ...])`.
    """

    kind = "encoder"
    _: KW_ONLY
    dim: int = 16
    batch: int = 2
    length: int = 12
    reference: Callable[..., Tensor] | None = None
    packed: Callable[..., Sequence[Tensor]] | None = None
    cost_lengths: Sequence[int] = (64, 128, 256, 512)

    def default_claims(self) -> frozenset[str]:
        return ENCODER

    def claims_by_options(self) -> frozenset[str]:
        return super().claims_by_options() | _given(reference=self.reference, packing=self.packed)

    def x(self, length: int | None = None, batch: int | None = None, seed: int = 0) -> Float[Tensor, "b n d"]:
        shape = self.batch if batch is None else batch, self.length if length is None else length, self.dim
        return normal(*shape, seed=seed, dtype=self.dtype)

    def places(self) -> list[int]:
        return some_places(self.length)

    def with_many_tokens(self) -> "EncoderSubject":
        """More than two blocks of 64 tokens, and no multiple of a large power of two."""
        return replace(self, length=148)

    def takes_its_length(self) -> bool:
        """Whether there is no error for so many tokens and some padding, as there is of a table of fewer positions."""
        try:
            self.run(self.make(), self.x(self.length + PADDING))
        except (IndexError, RuntimeError, ValueError, AssertionError):
            return False
        return True

    def mask(self, length: int | None = None) -> Bool[Tensor, "b n"]:
        """The first sample has padding at its end."""
        mask = torch.ones(self.batch, self.length if length is None else length, dtype=torch.bool)
        mask[0, max(mask.shape[1] - 4, 1) :] = False
        return mask

    def inputs(self) -> tuple:
        return (self.x(), self.mask()) if "mask" in self.claimed else (self.x(),)

    def inputs_of_length(self, length: int) -> tuple:
        return (self.x(length, batch=1),)

    def run_padded(self, module: nn.Module, left: bool = False) -> tuple[Tensor, Tensor]:
        x, extra, n = self.x(), 100 * self.x(PADDING, seed=1), self.length
        places = torch.arange(n + PADDING)
        mask = (places >= PADDING if left else places < n).expand(self.batch, -1)
        out = self.run(module, torch.cat((extra, x) if left else (x, extra), dim=1), mask)
        return out[:, PADDING:] if left else out[:, :n], self.run(module, x, None)

    def packed_samples(self) -> list[Tensor]:
        return [self.x(n, batch=1, seed=seed)[0] for seed, n in enumerate((self.length, 1, 4, 8))]

    def run_packed(self, module: nn.Module, samples: list[Tensor]) -> list[Tensor]:
        assert self.packed is not None  # which the claim follows from
        return [*self.packed(module, samples)]

    def run(self, module: nn.Module, *inputs: Any) -> Tensor:
        """The outputs of the real tokens; 0 for padding."""
        out = self.raw(module, *inputs)
        return out if len(inputs) < 2 or inputs[1] is None else out.where(inputs[1][..., None], 0)

    def raw(self, module: nn.Module, *inputs: Any) -> Tensor:
        return super().run(module, *inputs)


@dataclass(frozen=True, eq=False)
class ModelSubject(ModuleSubject):
    """A module called as `module(*batch)`; the first axis of each tensor in and out is the batch, of 2 or more.

    How a model is given masks or lengths is its own choice, so these options show what must have no influence:
    padded: the same samples with more padding. Where its outputs are longer, the first ones are compared.
    left: the same samples with their padding before them. The module has one output for each sample.
    emptied: the same batch, where the first sample has padding only.
    altered: the same batch with other values in all places that are masked; NaN where the model accepts it.
    sized: makes a batch of a length, to measure the cost with.
    ragged: samples of different sizes, without the axis of the batch; the module takes a list of them, too.
    positions: how learned positions are resized; the only input are images "b c h w".
    """

    kind = "model"
    batch: Sequence[Any]
    _: KW_ONLY
    padded: Sequence[Any] | None = None
    left: Sequence[Any] | None = None
    emptied: Sequence[Any] | None = None
    altered: Sequence[Any] | None = None
    sized: Callable[[int], Sequence[Any]] | None = None
    ragged: Sequence[Tensor] | None = None
    positions: Positions | None = None

    def default_claims(self) -> frozenset[str]:
        return MODEL

    def claims_by_options(self) -> frozenset[str]:
        own = {"padding": self.padded, "masking": self.altered, "cost": self.sized, "packing": self.ragged}
        own |= {"left": self.left, "emptied": self.emptied, "positions": self.positions}
        return super().claims_by_options() | _given(**own)

    def inputs(self) -> tuple:
        return self.cast(self.batch, self.dtype)

    def run_padded(self, module: nn.Module, left: bool = False) -> tuple[Tensor, Tensor]:
        batch = self.left if left else self.padded
        assert batch is not None  # which the claim follows from
        expected, out = (self.run(module, *each) for each in (self.inputs(), self.cast(batch, self.dtype)))
        return out[tuple(map(slice, expected.shape))], expected

    def packed_samples(self) -> list[Tensor]:
        assert self.ragged is not None  # which the claim follows from
        return [*self.cast(self.ragged, self.dtype)]

    def run_packed(self, module: nn.Module, samples: list[Tensor]) -> list[Tensor]:
        return [*self.run(module, samples)]

    def inputs_of_length(self, length: int) -> Sequence[Any]:
        assert self.sized is not None  # which the claim follows from
        return self.sized(length)


def _given(**options: Any) -> frozenset[str]:
    """The names of the options that are not None."""
    return frozenset(name for name, value in options.items() if value is not None)


def _call(module: nn.Module, *inputs: Any) -> Any:
    if "core.encoder.encoder" in sys.modules:  # else nobody can have made one
        from ..encoder.encoder import Encoder
        from ..encoder.tokens import Tokens

        out = module(Tokens(*inputs)) if isinstance(module, Encoder) else module(*inputs)
        return out.x if isinstance(out, Tokens) else out
    return module(*inputs)
