"""The ways to make a random call of attention, and what must come out of each."""

import random
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from fuzz_calls import ERRORS, LENGTHS, LINES, Call, restride, right_call, spoilt_tensor, wrong_call
from torch import Tensor

from core import UserError, attend, attend_reference, attention_backend, explain
from core.sparse import Pattern, make_plan, native
from core.sparse.call import KernelCall


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
    """torch.ops.trivium.sparse_attention and its backward, without `attend`."""
    kernels = ("native", "blockwise") if not call.spoilt else ("native", "native", "blockwise", "blockwise", "other")
    kernel = rng.choice(kernels)
    if kernel == "native" and rng.random() < 0.3:
        call.pattern = None
    place = [call.prefix, *(call.grid or (0, 0))]
    call.grid = None if place[1:] == [0, 0] else call.grid
    call.scale = 0.3 if call.scale is None else call.scale
    how = (call.mask, "" if call.pattern is None else str(call.pattern), place, [call.scale, call.dropout], kernel)
    tensors = [call.q, call.k, call.v, call.bias]
    out, lse, seed = torch.ops.trivium.sparse_attention(*tensors, *how)
    given = spoil_results(rng, call, out, lse)
    learns_bias = rng.random() < 0.5 and (call.bias is not None or call.spoilt)
    name = "sparse_attention_backward_with_bias" if learns_bias else "sparse_attention_backward"
    backward = getattr(torch.ops.trivium, name)
    grads = backward(given["grad"], given["out"], given["lse"], seed, *tensors, *how)
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
    kernel_call = KernelCall(call.q, call.k, call.v, plan, call.scale, call.mask, call.bias, dropout=call.dropout)
    if call.spoilt and rng.random() < 0.2:
        moved = tuple(replace(group, columns=group.columns + rng.choice((-1, 1, 1000))) for group in plan.groups)
        n = plan.num_global
        wrong = {"groups": moved, "num_global": n + 1, "index": plan.index + 1, "length": plan.length + 1}
        wrong |= {"key_length": plan.key_length + 1, "pattern": None}
        name = rng.choice(list(wrong))
        kernel_call = kernel_call._replace(plan=replace(plan, **{name: wrong[name]}))
        call.spoilt.append(f"{name} of the plan")
        if name == "pattern" or (name == "groups" and plan.groups):
            native.forward(kernel_call)  # of other pairs, if it is served
            return ()
    if call.spoilt and rng.random() < 0.2 and call.q.numel():
        freed = call.q.clone()
        freed.untyped_storage().resize_(0)
        native.forward(kernel_call._replace(q=freed))
        raise AssertionError("memory was read that had been freed")
    *found, finite = native.forward(kernel_call)
    assert finite, "there was a NaN or inf"
    given = spoil_results(rng, call, *found)
    grads = native.backward(kernel_call, given["grad"], given["out"], given["lse"])[:3]
    return results(call, given, *found, grads)


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


def reference(call: Call, derivatives: bool) -> tuple[Tensor, ...]:
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
    except (ValueError, UserError) as error:
        assert not right, f"a right call was refused: {way}, {error}"
        return way, "error"
    except Exception as error:  # of torch itself, which reads an operator's arguments
        assert way != "attend" and not right, f"{type(error).__name__}, no sentence: {error}; {call.spoilt}"
        return way, "error"
    if found:
        compare(found, reference(call, len(found) > 1), f"{way}, {call.spoilt}, {call}")
    return way, "result"


def serves(way: str, call: Call) -> bool:
    """Whether a right call can be made by this way."""
    if way == "attend":
        return True
    if call.pattern is None or call.q.shape[2] != call.k.shape[2] or not call.q.numel():
        return False
    by_key = call.mask is None or call.mask.ndim == 2 or call.mask.shape[1:3] == (1, 1)
    return way == "mask operator" or (by_key and (way == "operator" or call.bias is None))


def compare(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], what: str) -> None:
    for name, mine, exact in zip(("output", "dq", "dk", "dv"), found, expected, strict=False):
        assert mine.shape == exact.shape and mine.dtype == found[0].dtype, f"{name} has another shape: {what}"
        if mine.numel():
            error, largest = (mine.double() - exact).abs().max().item(), max(exact.abs().max().item(), 1.0)
            assert error <= ERRORS[mine.dtype] * largest, f"{name} is off by {error:.1e}: {what}"
