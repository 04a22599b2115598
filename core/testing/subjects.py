"""What is checked, and what it claims to do; an attention. Encoders and models are in module_subjects.py."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ..errors import UserError
from .attention_signatures import Recognised, recognise_attention
from .claims import ATTENTION, BY_PARAMETER, CLAIMS, unknown
from .measures import normal, require
from .reference import attend_plainly
from .written import parameters

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True, eq=False)
class Subject:
    """What all subjects have in common.

    claims: what the subject claims to do (`CLAIMS` lists the words), instead of the default; the result of a check that
        needs another claim is "not claimed".
    expected_failures: ids of checks that are known to fail, and why; they must still fail.
    compiler: the backend of torch.compile; "inductor" is the whole compiler, and slow.
    cost: the claimed exponent of work and memory in the length, fitted over `cost_lengths`.
    timed: also measure the cost by the clock.
    device: where it runs, as in "cuda".
    precision: the dtype that results are compared in; fp64 if "double" is claimed, else fp32, if None.
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
    device: str = "cpu"
    precision: torch.dtype | None = None

    def __post_init__(self):
        for claim in self.claims or ():
            if claim not in CLAIMS[self.kind]:
                raise UserError(unknown("claim", claim, CLAIMS[self.kind]))

    @cached_property
    def claimed(self) -> frozenset[str]:
        """All claims: those of `claims` or the default ones, and those that options make."""
        claims = self.default_claims() if self.claims is None else frozenset(self.claims)
        claims = claims | self.claims_by_options()
        return claims if self.precision in (None, torch.float64) else claims - {"double"}

    def default_claims(self) -> frozenset[str]:
        raise NotImplementedError

    def claims_by_options(self) -> frozenset[str]:
        """Claims that an option makes, which says how the claim is checked."""
        return frozenset()

    @property
    def dtype(self) -> torch.dtype:
        return self.precision or (torch.float64 if "double" in self.claimed else torch.float32)

    @property
    def tolerance(self) -> float:
        """The tolerance for results that should be equal except for rounding."""
        return TOLERANCES[self.dtype]

    def hint(self) -> str:
        """The likely cause of an error."""
        return ""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class AttentionSubject(Subject):
    """A function of q, k, v "b h n c", and of the options it claims: mask, bias, dropout, scale, pattern, is_causal.

    mask: boolean, True = may be attended: "b m", and if "pairs" is claimed "b h n m" too, each axis full or 1.
    batch, heads, head_dim, length: the sizes that it is checked with.
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
            self(*self.inputs(queries, self.length))
        except Exception:  # foreign code may raise anything
            return False
        return True

    def default_claims(self) -> frozenset[str]:
        if self.recognised is not None:
            return (ATTENTION - {"export", "empty"} if self.recognised.in_rows else ATTENTION) | self.recognised.takes
        return ATTENTION.union(*(BY_PARAMETER.get(name, ()) for name in parameters(self.attention)))

    @cached_property
    def recognised(self) -> Recognised | None:
        """The attention called as ours, if it has a signature of the field."""
        return recognise_attention(self.attention)

    @property
    def called(self) -> Callable[..., Tensor]:
        return self.recognised or self.attention

    def __call__(self, *qkv: Tensor, **options: Any) -> Tensor:
        return a_tensor(self.called(*qkv, **options))

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

    def with_many_tokens(self) -> "AttentionSubject":
        """More than two blocks of 64 tokens, and no multiple of a large power of two."""
        return replace(self, length=150, batch=5)

    def mask(self, m: int | None = None) -> Bool[Tensor, "b m"]:
        """Every fourth key is masked out, and in the first sample the last four too."""
        m = self.length if m is None else m
        mask = torch.ones(self.batch, m, dtype=torch.bool)
        if self.recognised is None or not self.recognised.only_at_end:
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
            pairs = self.allowed(m)
            if not isinstance(pairs, Tensor) or pairs.dtype != torch.bool or pairs.shape != (m, m):
                given = f"{tuple(pairs.shape)} {pairs.dtype}" if isinstance(pairs, Tensor) else type(pairs).__name__
                raise UserError(
                    f"allowed({m}) must be a boolean tensor {m} x {m}, True = may be attended; not {given}."
                )
            pairs = pairs[:n]
        else:
            pairs = torch.ones(n, m, dtype=torch.bool).tril(0 if "causal" in self.claimed else m)
        if mask is None:
            return pairs[None, None]
        return pairs & (mask[:, None, None] if mask.ndim == 2 else mask)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, mask=None, bias=None, scale=None) -> Tensor:
        return attend_plainly(q, k, v, self.pairs(q.shape[2], k.shape[2], mask), bias, scale)


def a_tensor(out: Any) -> Tensor:
    require(isinstance(out, Tensor), f"it gives something of type {type(out).__name__}, not a tensor")
    return out


def some_places(length: int) -> list[int]:
    """Up to a dozen places from the second token to the last."""
    return sorted({1 + round(i * (length - 2) / 11) for i in range(12)})
