"""Sparse attention as one differentiable operator, which torch.compile keeps whole; a kernel computes it.

Only inputs, output and the rows' log-sum-exp are kept for the backward pass (Dao et al. 2022, section 3.1), so memory
grows with the tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..private_torch import in_forward_mode, is_legacy_batch
from ..sparse import Pattern, native
from ..sparse.blockwise import BlockwisePass
from ..sparse.call import KernelCall
from ..sparse.plan import make_plan
from .call import Call, check_results
from .relation import Relation

KERNELS = ("blockwise", "native")


def attend_sparse(call: Call, kernel: str = "blockwise") -> Float[Tensor, "b h n e"]:
    """Attention by a pattern under the mask contract; kernel: blockwise or native."""
    relation = call.relation
    tensors = [call.q, call.k, call.v] if relation.bias is None else [call.q, call.k, call.v, relation.bias]
    place = [relation.prefix, *(relation.grid or (0, 0))]
    numbers = [call.factor, call.dropout]
    return _forward(tensors, relation.key_mask(call.k), str(relation.pattern), place, numbers, kernel)[0]


# The operators take these arguments:
# tensors: q, k and v, and a bias if there is one. key_mask: "#b n". pattern: its text.
# place: prefix, rows, columns (0, 0 without a grid); integers of their own, since they may be symbolic in a graph.
# numbers: the factor of the logits, and the probability of dropout. kernel: one of KERNELS.


@torch.library.custom_op("trivium::sparse_attention", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _forward(
    tensors: list[Tensor], key_mask: Tensor | None, pattern: str, place: list[int], numbers: list[float], kernel: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, the log-sum-exp of each query's logits ("b h n"), and the seed that dropout was drawn from."""
    call = _call(tensors, key_mask, pattern, place, numbers, kernel)
    seed = torch.randint(2**31, ()) if call.dropout else torch.zeros((), dtype=torch.int64)
    with torch.autocast(call.q.device.type, enabled=False):
        work = _kernel_call(call, seed)
        if kernel == "native":
            out, lse, finite = native.forward(work)
            if finite:
                return out, lse, seed
        out, lse = BlockwisePass(work).forward()
        if not torch.isfinite(out.sum()):  # a forbidden NaN may have come in through a weight of 0
            out, lse = BlockwisePass(work, clean=True).forward()
        return out, lse, seed


@_forward.register_fake
def _(tensors, key_mask, pattern, place, numbers, kernel):
    call = _call(tensors, key_mask, pattern, place, numbers, kernel)
    q = call.q
    lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    return q.new_empty(*q.shape[:3], call.v.shape[-1]), lse, torch.empty((), dtype=torch.int64, device="cpu")


def _setup(ctx, inputs, output):
    tensors, key_mask, *ctx.settings = inputs
    ctx.num_tensors = len(tensors)
    ctx.save_for_backward(*tensors, *output, key_mask)


def _differentiate(ctx, grad, _lse, _seed):
    if is_legacy_batch(grad):
        raise RuntimeError("Sparse attention takes no batches of gradients (is_grads_batched): use torch.func.vmap.")
    *tensors, key_mask = ctx.saved_tensors
    n = ctx.num_tensors
    learns_bias = n == 4 and ctx.needs_input_grad[0][3]
    backward = _backward_with_bias if learns_bias else _backward
    grads = backward([grad, *tensors[n:], *tensors[:n]], key_mask, *ctx.settings)
    return [*grads, *[None] * (n - len(grads))], None, None, None, None, None


# Their first tensors are the gradient of the output, and the three results of the forward pass.


@torch.library.custom_op("trivium::sparse_attention_backward", mutates_args=())
def _backward(
    tensors: list[Tensor], key_mask: Tensor | None, pattern: str, place: list[int], numbers: list[float], kernel: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v."""
    grad, out, lse, seed, *tensors = tensors
    call = _call(tensors, key_mask, pattern, place, numbers, kernel)
    check_results(call, seed, grad=grad, out=out, lse=lse)
    with torch.autocast(call.q.device.type, enabled=False):
        work = _kernel_call(call, seed)
        if kernel == "native":
            *grads, finite = native.backward(work, grad, out, lse)
            if finite:
                return grads[0], grads[1], grads[2]
        return BlockwisePass(work, _not_finite(call)).backward(grad, out, lse)


@torch.library.custom_op("trivium::sparse_attention_backward_with_bias", mutates_args=())
def _backward_with_bias(
    tensors: list[Tensor], key_mask: Tensor | None, pattern: str, place: list[int], numbers: list[float], kernel: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v and the bias."""
    grad, out, lse, seed, *tensors = tensors
    call = _call(tensors, key_mask, pattern, place, numbers, kernel)
    check_results(call, seed, grad=grad, out=out, lse=lse)
    if (bias := call.relation.pair_bias) is None:
        raise ValueError("Sparse attention: there is no bias to learn.")
    dbias = bias.new_zeros(bias.shape)
    with torch.autocast(call.q.device.type, enabled=False):
        return *BlockwisePass(_kernel_call(call, seed), _not_finite(call)).backward(grad, out, lse, dbias), dbias


def _fake_backward(tensors, key_mask, pattern, place, numbers, kernel):
    grad, out, lse, seed, *tensors = tensors
    call = _call(tensors, key_mask, pattern, place, numbers, kernel)
    check_results(call, seed, grad=grad, out=out, lse=lse)
    return tuple(t.new_empty(t.shape) for t in tensors)


_backward.register_fake(lambda *arguments: _fake_backward(*arguments)[:3])
_backward_with_bias.register_fake(_fake_backward)


def _no_second_derivative(ctx, *grads):
    raise RuntimeError("Sparse attention has no second derivative: use attention_backend('reference') for it.")


_forward.register_autograd(_differentiate, setup_context=_setup)
_backward.register_autograd(_no_second_derivative)
_backward_with_bias.register_autograd(_no_second_derivative)


def _vmap(operator: Callable, info: Any, in_dims: tuple, *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The operator for each sample by itself, as torch does for operators that take no list of tensors."""
    numbers = arguments[4]
    if numbers[1] and operator is _forward and info.randomness != "different":
        raise RuntimeError("Sparse attention with dropout needs vmap(..., randomness='different').")
    (dims, mask_dim, *_), (tensors, key_mask, *settings) = in_dims, arguments

    def sample(t: Tensor, dim: int | None, i: int) -> Tensor:
        return t if dim is None else t.select(dim, i)

    results = []
    for i in range(info.batch_size):
        mask = None if key_mask is None else sample(key_mask, mask_dim, i)
        results.append(operator([sample(t, dim, i) for t, dim in zip(tensors, dims, strict=True)], mask, *settings))
    stacked = tuple(map(torch.stack, zip(*results, strict=True)))
    return stacked, (0,) * len(stacked)


for _operator in (_forward, _backward, _backward_with_bias):
    _operator.register_vmap(partial(_vmap, _operator))


def _call(tensors, key_mask, pattern, place, numbers, kernel) -> Call:
    """The operator's arguments as a call, checked: the operators can be called without `attend`."""
    if in_forward_mode():
        raise RuntimeError("Sparse attention has no forward-mode derivative: use attention_backend('dense') for it.")
    q, k, v, bias = tensors if len(tensors) > 3 else (*tensors, None)
    prefix, rows, columns = place
    scale, dropout = numbers
    grid = (rows, columns) if rows or columns else None
    call = Call(q, k, v, Relation(key_mask, bias, Pattern.parse(pattern), prefix, grid), dropout, scale)
    if q.shape[2] != k.shape[2]:
        raise ValueError(f"Sparse attention: {q.shape[2]} queries meet {k.shape[2]} keys; there must be as many.")
    if key_mask is not None and key_mask.ndim != 2:
        raise ValueError(f'Sparse attention: mask must have the axes "b n", not {key_mask.ndim} axes.')
    if kernel not in KERNELS:
        raise ValueError(f"Sparse attention: kernel must be one of {', '.join(KERNELS)}, not {kernel!r}.")
    if kernel == "native" and bias is not None:
        raise ValueError("Sparse attention: a bias needs the kernel 'blockwise'.")
    return call


def _kernel_call(call: Call, seed: Tensor) -> KernelCall:
    relation = call.relation
    assert relation.pattern is not None
    plan = make_plan(relation.pattern, call.q.shape[2], relation.prefix, relation.grid)
    tensors = call.q, call.k, call.v
    return KernelCall(*tensors, plan, call.factor, relation.mask, relation.pair_bias, call.dropout, int(seed))


def _not_finite(call: Call) -> bool:
    return not (torch.isfinite(call.k.sum()) and torch.isfinite(call.v.sum()))
