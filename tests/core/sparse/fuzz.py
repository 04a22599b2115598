"""Random calls of attention, right and wrong: each must raise an error or give what the reference gives.

    python tests/core/sparse/fuzz.py [calls] [seed]

runs them (10,000 by default) under the address sanitizer: the kernel is compiled with it, and multiplies matrices by
plain loops compiled with it too, since a BLAS is not looked into. It needs g++ with libasan, and takes some minutes.
Half of the calls are right: any strides, lengths from 0 to 300, masks, biases, prefixes, grids and dtypes. The other
half have something wrong with them. They are made by every way in: `attend`, the operators, and the kernel itself.
The first report of the sanitizer ends the run. tests/core/sparse/test_fuzz.py runs a few hundred without it.
"""

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from core import attend, attend_reference, attention_backend, explain
from core.sparse import (
    Axial,
    Causal,
    Dilated,
    Global,
    Local,
    Pattern,
    PowersOfTwo,
    Random,
    Window2d,
    build,
    make_plan,
    native,
)

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
FAR = 2**40  # a stride that BLAS cannot count


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


# --- The ways in ------------------------------------------------------------------------------------------------------


def by_attend(rng: random.Random, call: Call) -> tuple[Tensor, ...]:
    """Output, and gradients half of the time."""
    backend = rng.choice((None, None, "native", "blockwise", "dense"))
    if not call.spoilt and backend is not None and not can_serve(backend, call):
        backend = None
    tensors = [call.q, call.k, call.v]
    learn = call.dropout == 0 and all(isinstance(t, Tensor) and t.is_floating_point() for t in tensors)
    if learn := learn and rng.random() < 0.5:
        tensors = [t.detach().requires_grad_() for t in tensors]
    with nullcontext() if backend is None else attention_backend(backend):
        out = attend(*tensors, **call.arguments())
    if not learn:
        return (out,)
    call.grad = restride(rng, torch.randn_like(out))
    return (out.detach(), *torch.autograd.grad(out, tensors, call.grad))


def can_serve(backend: str, call: Call) -> bool:
    try:
        with attention_backend(backend):
            return bool(explain(call.q, call.k, call.v, **call.arguments()))
    except ValueError:
        return False


def by_operator(rng: random.Random, call: Call) -> tuple[Tensor, ...]:
    """torch.ops.trivium.sparse_attention and its backward, past `attend`."""
    kernels = ("native", "blockwise") if not call.spoilt else ("native", "native", "blockwise", "blockwise", "other")
    kernel = "blockwise" if call.bias is not None and not call.spoilt else rng.choice(kernels)
    rows, columns = call.grid or (0, 0)
    call.grid = None if (rows, columns) == (0, 0) else call.grid
    call.scale = 0.3 if call.scale is None else call.scale
    rest = (str(call.pattern), call.prefix, rows, columns, call.dropout, call.scale, kernel)
    tensors = (call.q, call.k, call.v, call.mask, call.bias, rng.choice((None, torch.tensor(3))))
    out, lse = torch.ops.trivium.sparse_attention(*tensors, *rest)
    given = spoil_results(rng, call, out, lse)
    grads = torch.ops.trivium.sparse_attention_backward(
        given["grad"], *tensors, given["out"], given["lse"], *rest, rng.random() < 0.5 and call.bias is not None
    )
    return results(call, given, out, lse, grads[:3])


def spoil_results(rng: random.Random, call: Call, out: Tensor, lse: Tensor) -> dict[str, Any]:
    """What a backward pass is given, something of it wrong if something of the call is."""
    given = {"grad": call.grad, "out": out, "lse": lse}
    if call.spoilt:
        name = rng.choice(list(given))
        how, given[name] = spoilt_tensor(rng, given[name])
        call.spoilt.append(f"{name} of the backward pass: {how}")
    return given


def results(call: Call, given: dict[str, Any], out: Tensor, lse: Tensor, grads: Any) -> tuple[Tensor, ...]:
    """The output, and the gradients if they are of what came out."""
    call.grad = given["grad"]
    return (out, *grads) if same(out, given["out"]) and same(lse, given["lse"]) else (out,)


def by_kernel(rng: random.Random, call: Call) -> tuple[Tensor, ...]:
    """native.forward and native.backward."""
    length = call.q.shape[2] if not call.spoilt else rng.choice((call.q.shape[2], *LENGTHS))
    plan = make_plan(call.pattern, length, call.prefix, call.grid)
    call.scale = 0.3 if call.scale is None else call.scale
    options = native.Options(call.scale, call.dropout)
    if call.spoilt and rng.random() < 0.2:
        moved = tuple(replace(group, columns=group.columns + rng.choice((-1, 1, 1000))) for group in plan.groups)
        wrong = {"groups": moved, "first": plan.first + 1, "index": plan.index + 1, "length": plan.length + 1}
        name = rng.choice(list(wrong))
        plan = replace(plan, **{name: wrong[name]})
        call.spoilt.append(f"{name} of the plan")
        if name == "groups" and plan.groups:
            native.forward(call.q, call.k, call.v, call.mask, plan, options)  # of other pairs, if it is served
            return ()
    if call.spoilt and rng.random() < 0.2 and call.q.numel():
        call.q = call.q.clone()
        call.q.untyped_storage().resize_(0)
        native.forward(call.q, call.k, call.v, call.mask, plan, options)
        raise AssertionError("memory was read that had been freed")
    found = native.forward(call.q, call.k, call.v, call.mask, plan, options)
    if found is None:
        raise AssertionError("a NaN or inf came up")
    given = spoil_results(rng, call, *found)
    tensors = (given["grad"], call.q, call.k, call.v, call.mask, given["out"], given["lse"])
    grads = native.backward(*tensors, plan, options)
    return results(call, given, *found, grads) if grads is not None else found[:1]


def by_mask_operator(rng: random.Random, call: Call) -> tuple[Tensor, ...]:
    rows, columns = call.grid or (0, 0)
    call.grid = None if (rows, columns) == (0, 0) else call.grid
    mask = torch.ops.trivium.pattern_mask(call.q, str(call.pattern), call.prefix, rows, columns)
    size = call.q.shape[2] - call.prefix if call.grid is None else call.grid
    assert torch.equal(mask, parsed(call).dense(size, call.prefix)), "pattern_mask differs from Pattern.dense"
    return ()


WAYS = {"attend": by_attend, "operator": by_operator, "kernel": by_kernel, "mask operator": by_mask_operator}
SHARES = {"attend": 4, "operator": 3, "kernel": 3, "mask operator": 1}


def same(a: Any, b: Any) -> bool:
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)


# --- What must come out -----------------------------------------------------------------------------------------------


def parsed(call: Call) -> Pattern:
    return call.pattern if isinstance(call.pattern, Pattern) else Pattern.parse(call.pattern)


def near(call: Call) -> Tensor:
    """Which pairs the pattern allows."""
    n, m = call.q.shape[2], call.k.shape[2]
    size = max(n, m) - call.prefix if call.grid is None else call.grid
    return parsed(call).dense(size, call.prefix)[None, None, :n, :m]


def expected(call: Call, derivatives: bool) -> tuple[Tensor, ...]:
    """Output and gradients of the reference, in double precision."""
    sound = call.q.shape[:2] == call.k.shape[:2] == call.v.shape[:2] and call.k.shape[2] == call.v.shape[2]
    sound = sound and call.q.dtype == call.k.dtype == call.v.dtype and call.q.is_floating_point()
    assert sound and call.prefix >= 0 and call.dropout == 0, f"a wrong call was served: {call.spoilt}"
    q, k, v = (t.detach().double().requires_grad_(derivatives) for t in (call.q, call.k, call.v))
    mask = call.mask[:, None, None] if call.mask is not None and call.mask.ndim == 2 else call.mask
    if call.pattern is not None:
        mask = near(call) if mask is None else mask & near(call)
    bias = None if call.bias is None else call.bias.to(call.q.dtype).double()
    out = attend_reference(q, k, v, mask, bias, None if call.scale is None else float(call.scale))
    return (out.detach(), *torch.autograd.grad(out, (q, k, v), call.grad.double())) if derivatives else (out,)


def run(rng: random.Random, right: bool) -> tuple[str, str]:
    """One call: the way in, and "error" or "result". An AssertionError says what is wrong with what came out."""
    torch.manual_seed(rng.randrange(2**31))
    call = right_call(rng) if right else wrong_call(rng)
    ways = [name for name in WAYS if not right or serves(name, call)]
    way = rng.choices(ways, [SHARES[name] for name in ways])[0]
    if way != "attend":
        call.pattern = rng.choice(LINES) if call.pattern is None else call.pattern
        if isinstance(call.mask, Tensor) and call.mask.ndim == 4 and 0 not in call.mask.shape:
            call.mask = call.mask[:, 0, 0]
    try:
        found = WAYS[way](rng, call)
    except AssertionError:
        raise
    except ValueError as error:
        assert not right, f"a right call was refused: {way}, {error}"
        return way, "error"
    except Exception as error:  # of torch itself, which reads an operator's arguments
        assert way != "attend" and not right, f"{type(error).__name__}, no sentence: {error}; {call.spoilt}"
        return way, "error"
    if found:
        compare(found, expected(call, len(found) > 1), f"{way}, {call.spoilt}, {call}")
    return way, "result"


def serves(way: str, call: Call) -> bool:
    """Whether a right call can be made by this way."""
    if way == "attend":
        return True
    if call.pattern is None or call.q.shape[2] != call.k.shape[2] or not call.q.numel():
        return False
    by_key = call.mask is None or call.mask.ndim == 2 or call.mask.shape[1:3] == (1, 1)
    return way == "mask operator" or (by_key and (way == "operator" or call.bias is None))


def compare(found: tuple[Tensor, ...], truth: tuple[Tensor, ...], what: str) -> None:
    for name, mine, exact in zip(("output", "dq", "dk", "dv"), found, truth, strict=False):
        assert mine.shape == exact.shape and mine.dtype == found[0].dtype, f"{name} has another shape: {what}"
        if mine.numel():
            error, largest = (mine.double() - exact).abs().max().item(), max(exact.abs().max().item(), 1.0)
            assert error <= ERRORS[mine.dtype] * largest, f"{name} is off by {error:.1e}: {what}"


# --- Under the sanitizer ----------------------------------------------------------------------------------------------

SANITIZER = ("-fsanitize=address", "-fno-omit-frame-pointer", "-g", "-O1")
PRODUCTS = """
#include <cstdio>
#include <cstdlib>
template <class T>
void product(const char* ta, const char* tb, const int* m, const int* n, const int* k, const T* alpha, const T* a,
             const int* la, const T* b, const int* lb, const T* beta, T* c, const int* lc) {
  bool at = *ta == 'T', bt = *tb == 'T';
  auto atleast = [](int rows) { return rows > 1 ? rows : 1; };
  if (*m < 0 || *n < 0 || *k < 0 || *la < atleast(at ? *k : *m) || *lb < atleast(bt ? *n : *k) || *lc < atleast(*m)) {
    std::fprintf(stderr, "BLAS was called with %d %d %d, %d %d %d\\n", *m, *n, *k, *la, *lb, *lc);
    std::abort();
  }
  for (int j = 0; j < *n; ++j)
    for (int i = 0; i < *m; ++i) {
      T sum = 0;
      for (int x = 0; x < *k; ++x)
        sum += (at ? a[x + (long)i * *la] : a[i + (long)x * *la]) * (bt ? b[j + (long)x * *lb] : b[x + (long)j * *lb]);
      T& to = c[i + (long)j * *lc];
      to = *alpha * sum + (*beta == 0 ? T(0) : *beta * to);
    }
}
#define PRODUCT(name, T)                                                                                              \\
  extern "C" void name(const char* ta, const char* tb, const int* m, const int* n, const int* k, const T* alpha,      \\
                       const T* a, const int* la, const T* b, const int* lb, const T* beta, T* c, const int* lc) {    \\
    product<T>(ta, tb, m, n, k, alpha, a, la, b, lb, beta, c, lc);                                                    \\
  }
PRODUCT(product_float, float)
PRODUCT(product_double, double)
"""


def use_sanitized_kernel() -> None:
    """From here on."""
    import ctypes
    from pathlib import Path

    source = Path(native.__file__).with_suffix(".cpp").read_text()
    products = build.load(PRODUCTS, SANITIZER)
    addresses = {
        dtype: ctypes.cast(getattr(products, f"product_{name}"), ctypes.c_void_p).value
        for dtype, name in native.DTYPES.items()
    }
    kernel = native.Kernel(build.load(source, SANITIZER), addresses)
    native._kernel = lambda: kernel


def main(calls: int = 10_000, seed: int = 0) -> None:
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):
        libraries = (  # that of C++ too: the sanitizer looks for what throws exceptions when it starts
            subprocess.run(
                ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
            ).stdout.strip()
            for name in ("libasan.so", "libstdc++.so.6")
        )
        options = {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **options})
    del os.environ["LD_PRELOAD"]  # the compiler needs none
    use_sanitized_kernel()
    torch.set_num_threads(2)
    counts: Counter[tuple[str, str, str]] = Counter()
    for number in range(calls):
        rng, right = random.Random(f"{seed} {number}"), number % 2 == 0
        try:
            way, outcome = run(rng, right)
        except AssertionError as error:
            raise SystemExit(f"Call {number} of seed {seed}: {error}") from None
        counts["right" if right else "wrong", way, outcome] += 1
    for (kind, way, outcome), count in sorted(counts.items()):
        print(f"{kind} calls by {way}: {outcome} {count}")
    print(f"{calls} calls, no report of the sanitizer")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
