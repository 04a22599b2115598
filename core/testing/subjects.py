"""What is checked: an attention, an encoder or a model, and what it claims to do."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from difflib import get_close_matches
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
from .measures import normal, seeded

EVERYTHING = Local(1 << 20)  # a pattern that keeps all pairs

ATTENTION = frozenset({"double", "half", "cross", "equivariant", "empty", "compile", "export", "cost"})
"""Claimed of an attention unless told otherwise, beside what its parameters' names tell."""
BY_PARAMETER = {name: {name} for name in ("bias", "dropout", "scale", "pattern")} | {"mask": {"mask", "pairs"}}
ENCODER = frozenset({"double", "half", "mask", "large", "empty", "checkpointing", "compile", "export", "cost"})
"""Claimed of an encoder unless told otherwise."""
MODEL = frozenset({"double", "half", "empty", "checkpointing", "compile", "export"})
"""Claimed of a model unless told otherwise."""

CLAIMS = {
    "attention": ATTENTION.union(*BY_PARAMETER.values(), {"causal"}),
    "encoder": ENCODER | {"zeros", "equivariant", "causal", "dropout", "sparsify"},
    "model": MODEL | {"large", "dropout", "sparsify"},
}


@dataclass(frozen=True, eq=False)
class Subject:
    """What all subjects tell.

    claims: what it is claimed to do (`CLAIMS` lists the words); a check of anything else is "not claimed".
    expected_failures: checks by id that are known to fail, and why; they must still fail.
    compiler: torch.compile's backend; "inductor" is the whole compiler, and slow.
    timed: let the cost be measured by the clock too.
    """

    kind = ""
    _: KW_ONLY
    name: str = ""
    claims: Collection[str] | None = None
    expected_failures: Mapping[str, str] = field(default_factory=dict)
    compiler: str = "aot_eager"
    timed: bool = False

    def __post_init__(self):
        for claim in self.claims or ():
            if claim not in CLAIMS[self.kind]:
                raise UserError(unknown("claim", claim, CLAIMS[self.kind]))

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if "double" in self.claimed else torch.float32

    @property
    def tolerance(self) -> float:
        """For what should be equal but for rounding."""
        return 1e-9 if "double" in self.claimed else 1e-4

    @property
    def hint(self) -> str:
        """What may be the cause if it raises an error."""
        return ""

    def __str__(self) -> str:
        return self.name


def unknown(what: str, name: str, known: Collection[str]) -> str:
    near = get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(known))}."
    return f"There is no {what} {name!r}; {hint}"


@dataclass(frozen=True, eq=False)
class AttentionSubject(Subject):
    """A function of q, k, v "b h n c", and of the options it claims: mask, bias, dropout, scale, pattern.

    mask: boolean, True = may be attended: "b m", and if "pairs" is claimed "b h n m" too, each axis full or 1.
    allowed: of a length, which pairs it attends to at all (a window); all if None, those before if "causal" is claimed.
    cost: the claimed exponent of work and memory in the length, fitted over `cost_lengths`.
    """

    kind = "attention"
    attention: Callable[..., Tensor]
    _: KW_ONLY
    allowed: Callable[[int], Bool[Tensor, "n n"]] | None = None
    batch: int = 2
    heads: int = 3
    head_dim: int = 8
    length: int = 12
    cost: float = 2.0
    cost_lengths: Sequence[int] = (128, 256, 512, 1024)

    def __post_init__(self):
        super().__post_init__()
        if self.allowed is not None and not callable(self.allowed):
            kind = type(self.allowed).__name__
            raise UserError(f"allowed is a function of the length, as in lambda n: mask_of(n), not a {kind}.")

    @cached_property
    def hint(self) -> str:
        if "cross" not in self.claimed or not self._takes(self.length) or self._takes(self.length - 1):
            return ""
        return " (it takes only as many queries as keys: do not claim 'cross')"

    def _takes(self, queries: int) -> bool:
        try:
            self.attention(*self.inputs(queries, self.length))
        except Exception:  # whatever a stranger's code raises
            return False
        return True

    @cached_property
    def claimed(self) -> frozenset[str]:
        if self.claims is not None:
            return frozenset(self.claims)
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
        made = [normal(*shape, seed=seed + i, dtype=dtype or self.dtype) for i, shape in enumerate(shapes)]
        return [tensor.requires_grad_(learns) for tensor in made]

    def mask(self, m: int | None = None, batch: int | None = None, hidden: int = 4) -> Bool[Tensor, "b m"]:
        """Every fourth key is masked out, and of the first sample the last ones too."""
        m = self.length if m is None else m
        mask = torch.ones(batch or self.batch, m, dtype=torch.bool)
        mask[:, 2::4] = False
        mask[0, max(m - hidden, 1) :] = False
        return mask

    def options(self, n: int, m: int, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Mask and bias, as far as they are claimed."""
        given: dict[str, Tensor] = {"mask": self.mask(m)} if "mask" in self.claimed else {}
        if "bias" in self.claimed:
            given["bias"] = normal(1, self.heads, n, m, seed=7, dtype=dtype or self.dtype)
        return given

    def pairs(self, n: int, m: int, mask: Tensor | None = None) -> Bool[Tensor, "#b #h n m"]:
        """All that may attend, by its mask and its own nature."""
        if self.allowed is not None:
            near = self.allowed(m)[:n]
        else:
            near = torch.ones(n, m, dtype=torch.bool)
            near = near.tril() if "causal" in self.claimed else near
        if mask is None:
            return near[None, None]
        return near & (mask[:, None, None] if mask.ndim == 2 else mask)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, mask=None, bias=None, scale=None) -> Tensor:
        return attend_reference(q, k, v, self.pairs(q.shape[2], k.shape[2], mask), bias, scale)


@dataclass(frozen=True, eq=False)
class ModuleSubject(Subject):
    """What encoders and models are told.

    factory: makes one, with random weights drawn from torch's global generator.
    call: how one is called, as `call(module, *inputs) -> Tensor`.
    weights: how many numbers it learns, shared ones counted once.
    checkpointed: makes one that recomputes its activations in the backward pass; torch's own checkpoint around the
        whole module if None.
    adapt: puts a small trainable part on it that at first changes nothing, and returns it.
    loss: what `overfits-one-batch` lowers, as `loss(module, *inputs)`; the distance to random numbers if None.
    rate: Adam's, for that.
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
        """One in eval mode; not `fresh`, its weights are stirred, since new ones hardly tell tokens apart."""
        with seeded(seed):
            module = (factory or self.factory)()
            if not fresh:
                with torch.no_grad():
                    for parameter in module.parameters():
                        parameter += 0.1 * torch.randn_like(parameter)
        return module.to(self.dtype).eval()

    def run(self, module: nn.Module, *inputs: Any) -> Tensor:
        out = (self.call or _plainly)(module, *inputs)
        if isinstance(out, tuple):  # several tensors, of equal shape but for the last axis
            return torch.cat(out, dim=-1)
        return out

    def cast(self, inputs: Sequence[Any], dtype: torch.dtype) -> tuple:
        return tuple(i.to(dtype) if isinstance(i, Tensor) and i.is_floating_point() else i for i in inputs)

    def given(self) -> set[str]:
        """Claims that are made by telling how they can be checked."""
        told = {"weights": self.weights, "adapters": self.adapt}
        return {claim for claim, value in told.items() if value is not None}


@dataclass(frozen=True, eq=False)
class EncoderSubject(ModuleSubject):
    """A module called as `module(x, mask)`, or `module(x)` if "mask" is not claimed: "b n d" -> "b n d".

    mask: "b n", True = a real token. A core.Encoder is handed Tokens. Lengths are multiples of 4 (but for 0 and 1).
    reference: the same computed some other way, as `reference(module, x, mask)`.
    cost: the claimed exponent of work and memory in the length, fitted over `cost_lengths`.
    """

    kind = "encoder"
    _: KW_ONLY
    dim: int = 16
    length: int = 12
    reference: Callable[..., Tensor] | None = None
    cost: float = 2.0
    cost_lengths: Sequence[int] = (64, 128, 256, 512)

    @cached_property
    def claimed(self) -> frozenset[str]:
        reference = set() if self.reference is None else {"reference"}
        return frozenset(ENCODER if self.claims is None else self.claims).union(self.given(), reference)

    def x(self, length: int | None = None, batch: int = 2, seed: int = 0) -> Float[Tensor, "b n d"]:
        return normal(batch, self.length if length is None else length, self.dim, seed=seed, dtype=self.dtype)

    def places(self) -> list[int]:
        """Where the future begins, from the second token to the last: all of them, or a dozen if there are more."""
        return sorted({1 + round(i * (self.length - 2) / 11) for i in range(12)})

    def mask(self, length: int | None = None) -> Bool[Tensor, "2 n"]:
        """The first of two samples ends in padding."""
        mask = torch.ones(2, self.length if length is None else length, dtype=torch.bool)
        mask[0, -4:] = False
        return mask

    def inputs(self) -> tuple:
        return (self.x(), self.mask()) if "mask" in self.claimed else (self.x(),)

    def run(self, module: nn.Module, *inputs: Any) -> Tensor:
        """What comes out of the real tokens; 0 for padding."""
        out = self.raw(module, *inputs)
        return out if len(inputs) < 2 or inputs[1] is None else out.where(inputs[1][..., None], 0)

    def raw(self, module: nn.Module, *inputs: Any) -> Tensor:
        return super().run(module, *inputs)


@dataclass(frozen=True, eq=False)
class ModelSubject(ModuleSubject):
    """A module called as `module(*batch)`; the first axis of each tensor in and out is the batch, of 2 or more.

    Masked inputs (a mask, lengths) are whatever the model takes them to be; these tell what must not count:
    padded: the same samples with more padding. Where its outputs are longer, the first are compared.
    spoilt: the same batch with other numbers, NaN if it takes any, where nothing counts.
    sized: of a length, a batch to measure the cost of; `cost` is the claimed exponent over `cost_lengths`.
    """

    kind = "model"
    batch: Sequence[Any]
    _: KW_ONLY
    padded: Sequence[Any] | None = None
    spoilt: Sequence[Any] | None = None
    sized: Callable[[int], Sequence[Any]] | None = None
    cost: float = 2.0
    cost_lengths: Sequence[int] = (128, 256, 512, 1024)

    @cached_property
    def claimed(self) -> frozenset[str]:
        told = {"padding": self.padded, "masking": self.spoilt, "cost": self.sized}
        given = {claim for claim, value in told.items() if value is not None}
        return frozenset(MODEL if self.claims is None else self.claims).union(self.given(), given)

    def inputs(self) -> tuple:
        return self.cast(self.batch, self.dtype)


def _plainly(module: nn.Module, *inputs: Any) -> Any:
    if isinstance(module, Encoder):
        inputs = (Tokens(*inputs),)
    out = module(*inputs)
    return out.x if isinstance(out, Tokens) else out


def parameters(function: Callable) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return {}
