"""What is checked: an attention, an encoder or a model, and what it claims to do."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..attention.reference import attend_reference
from ..encoder.encoder import Encoder
from ..encoder.tokens import Tokens
from ..errors import UserError
from ..sparse import Local
from .claims import ATTENTION, BY_PARAMETER, CLAIMS, ENCODER, MODEL, unknown
from .measures import normal, seeded

EVERYTHING = Local(1 << 20)  # a pattern that keeps all pairs


@dataclass(frozen=True, eq=False)
class Subject:
    """What all subjects have in common.

    claims: what the subject claims to do (`CLAIMS` lists the words), instead of the default; the result of a check that
        needs another claim is "not claimed".
    expected_failures: ids of checks that are known to fail, and why; they must still fail.
    compiler: the backend of torch.compile; "inductor" is the whole compiler, and slow.
    cost: the claimed exponent of work and memory in the length, fitted over `cost_lengths`.
    timed: also measure the cost by the clock.
    """

    kind = ""
    _: KW_ONLY
    name: str = ""
    claims: Collection[str] | None = None
    expected_failures: Mapping[str, str] = field(default_factory=dict)
    compiler: str = "aot_eager"
    cost: float = 2.0
    cost_lengths: Sequence[int] = (128, 256, 512, 1024)
    timed: bool = False

    def __post_init__(self):
        for claim in self.claims or ():
            if claim not in CLAIMS[self.kind]:
                raise UserError(unknown("claim", claim, CLAIMS[self.kind]))

    @cached_property
    def claimed(self) -> frozenset[str]:
        """All claims: those of `claims` or the default ones, and those that options make."""
        claims = self.default_claims() if self.claims is None else frozenset(self.claims)
        return claims | self.claims_by_options()

    def default_claims(self) -> frozenset[str]:
        raise NotImplementedError

    def claims_by_options(self) -> frozenset[str]:
        """Claims that an option makes, which says how the claim is checked."""
        return frozenset()

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if "double" in self.claimed else torch.float32

    @property
    def tolerance(self) -> float:
        """The tolerance for results that should be equal except for rounding."""
        return 1e-9 if "double" in self.claimed else 1e-4

    def hint(self) -> str:
        """The likely cause of an error."""
        return ""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class AttentionSubject(Subject):
    """A function of q, k, v "b h n c", and of the options it claims: mask, bias, dropout, scale, pattern.

    mask: boolean, True = may be attended: "b m", and if "pairs" is claimed "b h n m" too, each axis full or 1.
    allowed: gives for a length the pairs that it attends to at all (a window); if None, all pairs, or if "causal" is
        claimed, each token and those before it.
    """

    kind = "attention"
    attention: Callable[..., Tensor]
    _: KW_ONLY
    allowed: Callable[[int], Bool[Tensor, "n n"]] | None = None
    batch: int = 2
    heads: int = 3
    head_dim: int = 8
    length: int = 12

    def __post_init__(self):
        super().__post_init__()
        if self.allowed is not None and not callable(self.allowed):
            kind = type(self.allowed).__name__
            raise UserError(f"allowed is a function of the length, as in lambda n: mask_of(n), not a {kind}.")

    def hint(self) -> str:
        if "cross" not in self.claimed or not self._takes(self.length) or self._takes(self.length - 1):
            return ""
        return " (it takes only as many queries as keys: do not claim 'cross')"

    def _takes(self, queries: int) -> bool:
        try:
            self.attention(*self.inputs(queries, self.length))
        except Exception:  # foreign code may raise anything
            return False
        return True

    def default_claims(self) -> frozenset[str]:
        return ATTENTION.union(*(BY_PARAMETER.get(name, ()) for name in parameters(self.attention)))

    def __call__(self, *qkv: Tensor, **options: Any) -> Tensor:
        return self.attention(*qkv, **options)

    def inputs(
        self, n: int | None = None, m: int | None = None, *, seed: int = 0, dtype=None, learns: bool = False, **sizes
    ) -> list[Tensor]:
        """Queries, keys, values; of equal length unless "cross" is claimed."""
        m = self.length if m is None else m
        n = (max(m - 3, 1) if "cross" in self.claimed else m) if n is None else n
        b, c = sizes.get("batch", self.batch), sizes.get("head_dim", self.head_dim)
        shapes = [(b, self.heads, length, c) for length in (n, m, m)]
        made = (normal(*shape, seed=seed + i, dtype=dtype or self.dtype) for i, shape in enumerate(shapes))
        return [tensor.requires_grad_(learns) for tensor in made]

    def mask(self, m: int | None = None) -> Bool[Tensor, "b m"]:
        """Every fourth key is masked out, and in the first sample the last four too."""
        m = self.length if m is None else m
        mask = torch.ones(self.batch, m, dtype=torch.bool)
        mask[:, 2::4] = False
        mask[0, max(m - 4, 1) :] = False
        return mask

    def places(self) -> list[int]:
        return some_places(self.length)

    def options(self, n: int, m: int, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """A mask and a bias, each if it is claimed."""
        options: dict[str, Tensor] = {"mask": self.mask(m)} if "mask" in self.claimed else {}
        if "bias" in self.claimed:
            options["bias"] = normal(1, self.heads, n, m, seed=7, dtype=dtype or self.dtype)
        return options

    def pairs(self, n: int, m: int, mask: Tensor | None = None) -> Bool[Tensor, "#b #h n m"]:
        """The pairs that attend: those of the subject itself that the mask allows."""
        if self.allowed is not None:
            pairs = self.allowed(m)[:n]
        else:
            pairs = torch.ones(n, m, dtype=torch.bool).tril(0 if "causal" in self.claimed else m)
        if mask is None:
            return pairs[None, None]
        return pairs & (mask[:, None, None] if mask.ndim == 2 else mask)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, mask=None, bias=None, scale=None) -> Tensor:
        return attend_reference(q, k, v, self.pairs(q.shape[2], k.shape[2], mask), bias, scale)


@dataclass(frozen=True, eq=False)
class ModuleSubject(Subject):
    """What encoders and models have in common.

    factory: makes a module, with random weights drawn from torch's global generator.
    call: calls a module, as `call(module, *inputs) -> Tensor`.
    weights: how many trainable weights a module has, shared ones counted once.
    checkpointed: makes a module that recomputes its activations in the backward pass; if None, torch's own checkpoint
        is put around the whole module.
    adapt: puts an adapter on a module that at first changes nothing, and returns the module.
    loss: what `overfits-one-batch` minimises, as `loss(module, *inputs)`; the distance to random numbers if None.
    rate: the learning rate for that (Adam's).
    """

    factory: Callable[[], nn.Module]
    _: KW_ONLY
    call: Callable[..., Tensor] | None = None
    weights: int | None = None
    checkpointed: Callable[[], nn.Module] | None = None
    adapt: Callable[[nn.Module], nn.Module] | None = None
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
        return module.to(self.dtype).eval()

    def inputs(self) -> tuple:
        raise NotImplementedError

    def inputs_of_length(self, length: int) -> Sequence[Any]:
        """What the cost at a length is measured with."""
        raise NotImplementedError

    def run(self, module: nn.Module, *inputs: Any) -> Tensor:
        out = (self.call or _call)(module, *inputs)
        if isinstance(out, tuple):  # several tensors, which differ in their last axis only
            return torch.cat(out, dim=-1)
        return out

    def cast(self, inputs: Sequence[Any], dtype: torch.dtype) -> tuple:
        return tuple(i.to(dtype) if isinstance(i, Tensor) and i.is_floating_point() else i for i in inputs)

    def packed_samples(self) -> list[Tensor]:
        """Samples of different sizes, each without the axis of the batch."""
        raise NotImplementedError

    def run_packed(self, module: nn.Module, samples: list[Tensor]) -> list[Tensor]:
        """The output of each sample, all computed together."""
        raise NotImplementedError

    def run_alone(self, module: nn.Module, sample: Tensor) -> Tensor:
        return self.run(module, sample[None])[0]

    def claims_by_options(self) -> frozenset[str]:
        return _given(weights=self.weights, adapters=self.adapt)


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
    length: int = 12
    reference: Callable[..., Tensor] | None = None
    packed: Callable[..., Sequence[Tensor]] | None = None
    cost_lengths: Sequence[int] = (64, 128, 256, 512)

    def default_claims(self) -> frozenset[str]:
        return ENCODER

    def claims_by_options(self) -> frozenset[str]:
        return super().claims_by_options() | _given(reference=self.reference, packing=self.packed)

    def x(self, length: int | None = None, batch: int = 2, seed: int = 0) -> Float[Tensor, "b n d"]:
        return normal(batch, self.length if length is None else length, self.dim, seed=seed, dtype=self.dtype)

    def places(self) -> list[int]:
        return some_places(self.length)

    def mask(self, length: int | None = None) -> Bool[Tensor, "2 n"]:
        """The first of two samples has padding at its end."""
        mask = torch.ones(2, self.length if length is None else length, dtype=torch.bool)
        mask[0, -4:] = False
        return mask

    def inputs(self) -> tuple:
        return (self.x(), self.mask()) if "mask" in self.claimed else (self.x(),)

    def inputs_of_length(self, length: int) -> tuple:
        return (self.x(length, batch=1),)

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
    altered: the same batch with other values in all places that are masked; NaN where the model accepts it.
    sized: makes a batch of a length, to measure the cost with.
    ragged: samples of different sizes, without the axis of the batch; the module takes a list of them, too.
    """

    kind = "model"
    batch: Sequence[Any]
    _: KW_ONLY
    padded: Sequence[Any] | None = None
    altered: Sequence[Any] | None = None
    sized: Callable[[int], Sequence[Any]] | None = None
    ragged: Sequence[Tensor] | None = None

    def default_claims(self) -> frozenset[str]:
        return MODEL

    def claims_by_options(self) -> frozenset[str]:
        own = {"padding": self.padded, "masking": self.altered, "cost": self.sized, "packing": self.ragged}
        return super().claims_by_options() | _given(**own)

    def inputs(self) -> tuple:
        return self.cast(self.batch, self.dtype)

    def packed_samples(self) -> list[Tensor]:
        assert self.ragged is not None  # which the claim follows from
        return [*self.cast(self.ragged, self.dtype)]

    def run_packed(self, module: nn.Module, samples: list[Tensor]) -> list[Tensor]:
        return [*self.run(module, samples)]

    def inputs_of_length(self, length: int) -> Sequence[Any]:
        assert self.sized is not None  # which the claim follows from
        return self.sized(length)


def some_places(length: int) -> list[int]:
    """Up to a dozen places from the second token to the last."""
    return sorted({1 + round(i * (length - 2) / 11) for i in range(12)})


def _given(**options: Any) -> frozenset[str]:
    """The names of the options that are not None."""
    return frozenset(name for name, value in options.items() if value is not None)


def _call(module: nn.Module, *inputs: Any) -> Any:
    if isinstance(module, Encoder):
        inputs = (Tokens(*inputs),)
    out = module(*inputs)
    return out.x if isinstance(out, Tokens) else out


def parameters(function: Callable) -> dict[str, inspect.Parameter]:
    """A function's parameters by name; none if they are not known."""
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return {}
