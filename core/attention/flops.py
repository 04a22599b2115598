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

from ..private_torch import flash_for_cpu, flash_for_cpu_backward
from ..sparse.plan import pattern_density
from . import sparse  # noqa: F401  (it defines the operators)


class NoModules(ModuleTracker):
    """Tracks no modules: torch's tracker fails where a module returns its own parameter."""

    def __enter__(self) -> "NoModules":
        return self

    def __exit__(self, *error) -> None:
        pass


def flop_counter() -> FlopCounterMode:
    """Inside it operations are counted; `get_total_flops()` returns their number."""
    counter = FlopCounterMode(
        display=False, custom_mapping={flash_for_cpu: _flash, flash_for_cpu_backward: _flash_backward}
    )
    counter.mod_tracker = NoModules()
    return counter


@register_flop_formula(torch.ops.trivium.sparse_attention)
def _sparse(tensors, key_mask, pattern, place, *rest, **options) -> int:
    return round(sdpa_flop_count(*tensors[:3]) * _density(tensors[0][2], pattern, *place))


@register_flop_formula(
    [torch.ops.trivium.sparse_attention_backward, torch.ops.trivium.sparse_attention_backward_with_bias]
)
def _sparse_backward(tensors, key_mask, pattern, place, *rest, **options) -> int:
    grad, _out, _lse, _seed, q, k, v, *_ = tensors
    return round(sdpa_backward_flop_count(grad, q, k, v) * _density(q[2], pattern, *place))


def _density(length: int, pattern: str, prefix: int, rows: int, columns: int) -> float:
    return min(pattern_density(pattern, length, prefix, (rows, columns) if rows or columns else None), 1.0)


def _flash(q, k, v, *rest, **options) -> int:
    return sdpa_flop_count(q, k, v)


def _flash_backward(grad, q, k, v, *rest, **options) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)
