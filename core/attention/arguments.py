"""What attention may be called with, checked in one place for all who call it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..sparse import Pattern
from ..sparse.plan import check_place

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LARGEST = torch.finfo(torch.float64).max
NUMBERS = (int, float, np.integer, np.floating, torch.SymInt, torch.SymFloat)


def check_arguments(
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    bias: Any = None,
    pattern: Any = None,
    prefix: Any = 0,
    grid: Any = None,
    dropout: Any = 0.0,
    scale: Any = None,
) -> None:
    """Raise a ValueError that names the argument which is wrong in itself, or does not fit the others.

    They are those of `attend`, and may be of any type. Under autocast q, k and v may differ in dtype.
    """
    for name, t in (("q", q), ("k", k), ("v", v)):
        _check_tensor(name, t, DTYPES, q)
        if t.ndim != 4:
            raise ValueError(f"Attention: {name} must have 4 axes, batch, heads, tokens and features, not {t.ndim}.")
        if t.dtype != q.dtype and autocast_dtype(q) is None:
            raise ValueError(f"Attention: {name} is {t.dtype}, but q is {q.dtype}: convert one to the other.")
    for name, t, other, like, axes in (("k", k, "q", q, (0, 1, 3)), ("v", v, "k", k, (0, 1, 2))):
        if any(t.shape[axis] != like.shape[axis] for axis in axes):
            what = "batch, heads and features" if name == "k" else "batch, heads and tokens"
            given = f"{name} of shape {tuple(t.shape)} does not fit {other} of shape {tuple(like.shape)}"
            raise ValueError(f"Attention: {given}: {what} must be equal.")
    if q.shape[3] == 0:
        raise ValueError("Attention: q and k must have at least one feature.")

    full = (*q.shape[:3], k.shape[2])
    if mask is not None:
        _check_tensor("mask", mask, (torch.bool,), q)
        pairs = mask.shape if mask.ndim == 4 else (*mask.shape[:1], 1, 1, *mask.shape[1:])
        if mask.ndim not in (2, 4) or not _broadcasts(pairs, full):
            raise ValueError(f'Attention: mask of shape {tuple(mask.shape)} is neither "b m" nor broadcasts to {full}.')
    if bias is not None:
        _check_tensor("bias", bias, DTYPES, q)
        if bias.ndim != 4 or not _broadcasts(bias.shape, full):
            raise ValueError(f"Attention: bias of shape {tuple(bias.shape)} does not broadcast to {full}.")

    if not (isinstance(dropout, NUMBERS) and 0 <= dropout <= 1):
        raise ValueError(f"Attention: dropout must be a probability, from 0 to 1, not {dropout!r}.")
    if scale is not None and not (isinstance(scale, NUMBERS) and abs(scale) <= LARGEST):
        raise ValueError(f"Attention: scale must be a finite number, not {scale!r}.")
    if pattern is None:
        check_place(prefix, grid)
        return
    if not isinstance(pattern, Pattern):
        raise ValueError(f"Attention: pattern must be a Pattern, not {pattern!r}; Pattern.parse makes one of a text.")
    n, m = q.shape[2], k.shape[2]
    if n != m and grid is not None:
        raise UserError(f"A grid relates a sequence to itself, but {n} queries meet {m} keys.")
    check_place(prefix, grid, max(n, m))


def autocast_dtype(t: Tensor) -> torch.dtype | None:
    """What autocast makes of a tensor's numbers where it lies; None where it is off."""
    device = t.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def _check_tensor(name: str, t: Any, dtypes: tuple[torch.dtype, ...], q: Tensor) -> None:
    if not isinstance(t, Tensor):
        raise ValueError(f"Attention: {name} must be a tensor, not {type(t).__name__}.")
    if t.dtype not in dtypes:
        kind = "boolean (True = may be attended)" if torch.bool in dtypes else "of floating-point numbers"
        raise ValueError(f"Attention: {name} must be {kind}, not {t.dtype}.")
    if t.is_nested or t.layout != torch.strided:
        raise ValueError(f"Attention: {name} must be a plain tensor, neither nested nor sparse.")
    if t.device != q.device:
        raise ValueError(f"Attention: {name} is on {t.device}, but q is on {q.device}.")


def _broadcasts(shape: tuple[int, ...], full: tuple[int, ...]) -> bool:
    return all(have in (1, want) for have, want in zip(shape, full, strict=True))
