"""Counting floating-point operations: torch's counter, with formulas for attention that it does not know.

Attention by a pattern counts the pairs that its plan computes. Importing this module takes a second: torch's counter
imports a part of torch's compiler.
"""

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    register_flop_formula,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)
from torch.utils.module_tracker import ModuleTracker

from ..private_torch import TorchDispatchMode, flash_for_cpu, flash_for_cpu_backward
from ..sparse.plan import pattern_density
from . import packed, sparse  # noqa: F401  (they define the operators)
from .recording import TEACHING


class NoModules(ModuleTracker):
    """Tracks no modules: torch's tracker fails where a module returns its own parameter."""

    def __enter__(self) -> "NoModules":
        return self

    def __exit__(self, *error) -> None:
        pass


class OfTeachers(TorchDispatchMode):
    """Entered behind a counter, it says how many of the operations teachers made (`as_teacher`)."""

    def __init__(self, counter: FlopCounterMode):
        super().__init__()
        self.counter, self.total = counter, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = self.counter.get_total_flops()
        out = func(*args, **(kwargs or {}))
        if TEACHING.get():
            self.total += self.counter.get_total_flops() - before
        return out


def flop_counter() -> FlopCounterMode:
    """Inside it operations are counted; `get_total_flops()` returns their number."""
    counter = FlopCounterMode(
        display=False, custom_mapping={flash_for_cpu: _flash, flash_for_cpu_backward: _flash_backward}
    )
    counter.mod_tracker = NoModules()
    return counter


@register_flop_formula(torch.ops.trivium.sparse_attention)
def _sparse(q, k, v, _bias, _key_mask, pattern, place, *rest, **options) -> int:
    return round(sdpa_flop_count(q, k, v) * _density(q[2], pattern, *place))


@register_flop_formula(
    [torch.ops.trivium.sparse_attention_backward, torch.ops.trivium.sparse_attention_backward_with_bias]
)
def _sparse_backward(grad, _out, _lse, _seed, q, k, v, _bias, _key_mask, pattern, place, *rest, **options) -> int:
    return round(sdpa_backward_flop_count(grad, q, k, v) * _density(q[2], pattern, *place))


@register_flop_formula(torch.ops.trivium.packed_attention, get_raw=True)
def _packed(q, k, v, places, key_places, pattern, *rest, **options) -> int:
    return sdpa_flop_count(*_one_pair(q, k, v)) * _pairs(places, key_places, pattern)


@register_flop_formula(torch.ops.trivium.packed_attention_backward, get_raw=True)
def _packed_backward(grad, _out, _lse, _seed, q, k, v, places, key_places, pattern, *rest, **options) -> int:
    return sdpa_backward_flop_count(*_one_pair(grad, q, k, v)) * _pairs(places, key_places, pattern)


def _one_pair(*tensors) -> list[tuple[int, ...]]:
    """The shapes for one query and one key."""
    return [(*t.shape[:2], 1, t.shape[3]) for t in tensors]


def _pairs(places, key_places, pattern: str) -> int:
    """Queries and keys that meet in a row of several sequences."""
    queries, keys = (t.tolist() for t in (places, places if key_places is None else key_places))
    return sum(
        round(n * m * (_density(m, pattern, prefix, rows, columns) if m else 1.0))
        for (n, *_), (m, prefix, rows, columns) in zip(queries, keys, strict=True)
    )


def _density(length: int, pattern: str, prefix: int, rows: int, columns: int) -> float:
    if not pattern:
        return 1.0
    return min(pattern_density(pattern, length, prefix, (rows, columns) if rows or columns else None), 1.0)


def _flash(q, k, v, *rest, **options) -> int:
    return sdpa_flop_count(q, k, v)


def _flash_backward(grad, q, k, v, *rest, **options) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)
