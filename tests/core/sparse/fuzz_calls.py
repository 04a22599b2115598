"""Random calls of attention: right ones, and ones of which something was made wrong."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from core.sparse import Axial, Causal, Dilated, Global, Local, PowersOfTwo, Random, Window2d

LINES = (
    Local(16),
    Local(70, exact=True),
    Dilated(60, 2),
    Dilated(10, 3, exact=True),
    PowersOfTwo() | Global(1),
    Random(2),
    Local(64) & Causal(),
    Causal() | Global(3),
    Local(30, exact=True) | Global(200),
)
GRIDS = (Window2d(2), Window2d(3, exact=True), Axial(), PowersOfTwo() | Window2d(1))
LENGTHS = (0, 1, 1, 2, 3, 5, 17, 33, 63, 64, 65, 70, 80, 100, 127, 128, 129, 200, 300)
DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
ERRORS = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
FAR = 2**40  # a stride beyond all memory


@dataclass
class Call:
    q: Any
    k: Any
    v: Any
    grad: Any
    mask: Any = None
    bias: Any = None
    pattern: Any = None
    prefix: Any = 0
    grid: Any = None
    dropout: Any = 0.0
    scale: Any = None
    spoilt: list[str] = field(default_factory=list)

    def arguments(self) -> dict[str, Any]:
        names = ("mask", "bias", "pattern", "prefix", "grid", "dropout", "scale")
        return {name: getattr(self, name) for name in names}


# --- Right calls ------------------------------------------------------------------------------------------------------


def right_call(rng: random.Random) -> Call:
    """A call that must be served."""
    b, h, c, e = (rng.choice(sizes) for sizes in ((1, 1, 2, 3), (1, 2, 4), (1, 4, 8, 17), (1, 4, 8, 19)))
    dtype, prefix, grid = rng.choice(DTYPES), rng.choice((0, 0, 1, 3)), None
    pattern = rng.choice((None, *LINES, *LINES, *GRIDS))
    if pattern is not None and pattern.on_grid:
        grid = rng.choice((1, 3, 8, 13)), rng.choice((1, 5, 8, 20))
        n = m = prefix + grid[0] * grid[1]
    else:
        n = rng.choice(LENGTHS)
        m = n if pattern is not None and rng.random() < 0.9 else rng.choice(LENGTHS)
        prefix = min(prefix, max(n, m))
    if n * m > 130**2:  # the reference is slow
        b, e = 1, min(e, 4)
    q, k, v, grad = (
        restride(rng, torch.randn(shape, dtype=torch.float64).to(dtype))
        for shape in ((b, h, n, c), (b, h, m, c), (b, h, m, e), (b, h, n, e))
    )
    call = Call(q, k, v, grad, pattern=pattern, prefix=prefix, grid=grid)
    kind = rng.choice(("none", "none", "keys", "shared keys", "pairs"))
    if kind != "none":
        shape = {"keys": (b, m), "shared keys": (rng.choice((1, b)), 1, 1, rng.choice((1, m)))}.get(kind, (1, h, n, m))
        call.mask = torch.rand(shape) > 0.3
    if rng.random() < 0.25:
        shape = rng.choice(((1, 1, n, m), (b, 1, 1, m), (1, h, n, 1), (b, h, n, m)))
        call.bias = torch.randn(shape).to(rng.choice((dtype, torch.float32)))
    if rng.random() < 0.3:
        call.scale = rng.choice((0.0, 0.3, -0.2, 1))
    return call


def restride(rng: random.Random, t: Tensor) -> Tensor:
    """The same shape with other strides; some have other numbers."""
    n = t.shape[2]
    match rng.randrange(8):
        case 0:
            return t.transpose(1, 2).contiguous().transpose(1, 2)
        case 1:
            return t.repeat(1, 1, 2, 1)[:, :, n:]
        case 2:
            return t.repeat_interleave(2, dim=3)[..., ::2]
        case 3:
            return t.mT.contiguous().mT
        case 4:
            axis = rng.randrange(4)
            return t.narrow(axis, 0, min(1, t.shape[axis])).expand(t.shape)
        case 5:
            return torch._neg_view(-t)
        case 6 if t.numel():
            strides = [t.stride(i) if t.shape[i] != 1 else FAR + i for i in range(4)]
            return t.as_strided(t.shape, strides)
    return t


# --- Wrong calls ------------------------------------------------------------------------------------------------------


def wrong_call(rng: random.Random) -> Call:
    """A call of which something was made wrong; now and then it is right all the same."""
    call = right_call(rng)
    for _ in range(rng.choice((1, 1, 2))):
        spoil(rng, call)
    return call


def spoil(rng: random.Random, call: Call) -> None:
    tensors = ("q", "k", "v", "grad")
    name = rng.choice((*tensors, "k", "v", *WRONG))
    value = getattr(call, name)
    if name in tensors or (isinstance(value, Tensor) and rng.random() < 0.7):
        how, value = spoilt_tensor(rng, value)
        name_of = f"{name}: {how}"
    else:
        value = rng.choice(WRONG[name])
        name_of = f"{name}: {value if not isinstance(value, Tensor) else (tuple(value.shape), value.dtype)}"
    setattr(call, name, value)
    call.spoilt.append(name_of)


WRONG: dict[str, tuple[Any, ...]] = {
    "mask": (torch.ones(2, 3), torch.ones(1, 1, 1, 2, dtype=torch.bool), torch.ones((), dtype=torch.bool), 7, "all"),
    "bias": (torch.ones(1), torch.ones(1, 1, 64, 1), torch.ones(2, 2, 2, 2, dtype=torch.int64), 1.0, [0.0]),
    "pattern": ("Local(16)", 3, Local, Window2d(2), Local(2**40), Axial() | Causal()),
    "prefix": (-1, -300, 1, 299, 10**6, 2**63, 1.5, None, True, "1"),
    "grid": ((-1, -1), (0, 0), (0, 7), (-8, 8), (8, -8), (8, 8), (2**40, 2**40), (3,), (1, 2, 3), (1.0, 2.0), 8, "8"),
    "dropout": (-1, -1e-9, 1.0001, 2, float("nan"), float("inf"), None, "0.1", torch.full((1,), 2.0)),
    "scale": (float("nan"), float("inf"), -float("inf"), "1", torch.ones(1), (1,)),
}


def spoilt_tensor(rng: random.Random, t: Any) -> tuple[str, Any]:
    if not isinstance(t, Tensor):
        return "nothing", None
    axis = rng.randrange(t.ndim) if t.ndim else 0
    kinds: dict[str, Callable[[], Any]] = {
        "cut": lambda: t.narrow(axis, 0, t.shape[axis] // 2),
        "first only": lambda: t.narrow(axis, 0, min(1, t.shape[axis])),
        "longer": lambda: torch.cat([t, t], dim=axis),
        "one more": lambda: torch.cat([t, t.narrow(axis, 0, min(1, t.shape[axis]))], dim=axis),
        "empty": lambda: t.narrow(axis, 0, 0),
        "fewer axes": lambda: t.select(axis, 0) if t.shape[axis] else t.sum(dim=axis),
        "more axes": lambda: t[None],
        "axes swapped": lambda: t.transpose(axis, rng.randrange(t.ndim)),
        "other dtype": lambda: t.to(rng.choice((torch.float64, torch.float32, torch.bfloat16, torch.float16))),
        "no floats": lambda: t.to(rng.choice((torch.int64, torch.int8, torch.bool, torch.complex64))),
        "elsewhere": lambda: t.to("meta"),
        "sparse": lambda: t.to_sparse(),
        "an array": lambda: t.numpy(),
        "a list": lambda: t.tolist(),
        "None": lambda: None,
        "other strides": lambda: restride(rng, t) if t.ndim == 4 else t,
    }
    name = rng.choice(list(kinds))
    try:
        return name, kinds[name]()
    except (RuntimeError, IndexError, TypeError):
        return f"{name} (impossible)", t
