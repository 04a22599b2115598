"""Attention by a kernel of our own as one differentiable operator, which torch.compile keeps whole.

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
from ..sparse.call import KernelCall, by_tokens, empty_by_tokens
from ..sparse.plan import make_plan, pattern_mask, whole_plan
from .call import RESULTS, Call, check_results
from .relation import Relation

KERNELS = ("blockwise", "native")


def attend_sparse(call: Call, kernel: str = "blockwise") -> Float[Tensor, "b h n e"]:
    """Attention by a pattern, or of all pairs (native only), under the mask contract; kernel: blockwise or native."""
    relation = call.relation
    mask, bias = relation.pair_mask, relation.pair_bias
    if mask is not None and mask.shape[1:3] != (1, 1):  # it differs by query or head
        zeros = torch.zeros((), dtype=torch.float32, device=mask.device) if bias is None else bias
        mask, bias = None, zeros.where(mask, -torch.inf)
    place = [relation.prefix, *(relation.grid or (0, 0))]
    numbers = [call.factor, call.dropout]
    pattern = "" if relation.pattern is None else str(relation.pattern)
    key_mask = None if mask is None else mask[:, 0, 0].expand(-1, call.k.shape[2])
    return _forward(call.q, call.k, call.v, bias, key_mask, pattern, place, numbers, kernel)[0]


# The arguments of the operators, none of them a list of tensors, which torch is slow to take apart.
# key_mask: "#b n". pattern: its text, empty for all pairs. place: prefix, rows, columns (0, 0 without a grid);
# integers of their own, since they may be symbolic in a graph. numbers: the factor of the logits, and the probability
# of dropout. kernel: one of KERNELS. A backward pass takes them behind the gradient of the output and the forward
# pass's results.
ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? key_mask, "
    "str pattern, SymInt[] place, float[] numbers, str kernel"
)


@torch.library.custom_op(
    "trivium::sparse_attention",
    mutates_args=(),
    schema=f"({ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.nondeterministic_seeded,),
)
def _forward(*arguments) -> tuple[Tensor, Tensor, Tensor]:
    """Output, the log-sum-exp of each query's logits ("b h n"), and the seed that dropout was drawn from."""
    call, kernel = _call(*arguments), arguments[-1]
    seed = torch.randint(2**31, ()) if call.dropout else torch.zeros((), dtype=torch.int64)
    with torch.autocast(call.q.device.type, enabled=False):
        work = _kernel_call(call, seed)
        if kernel == "native":
            out, lse, finite = native.forward(work)
            if not finite and _cleans(call):
                clean, reached = _cleaned(call, work)
                out, lse, _ = native.forward(clean)
                out, finite = out.masked_fill(reached, torch.nan), True
            if finite:
                return out, lse, seed
        out, lse = BlockwisePass(work).forward()
        if not torch.isfinite(out.sum()):  # a forbidden NaN may have come in through a weight of 0
            out, lse = BlockwisePass(work, clean=True).forward()
        return by_tokens(out), lse, seed


@_forward.register_fake
def _(q, k, v, *others):
    _call(q, k, v, *others)
    lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    out = empty_by_tokens(q, *q.shape[:3], v.shape[-1])
    return out, lse, torch.empty((), dtype=torch.int64, device="cpu")


def _setup(ctx, inputs, output):
    *tensors, pattern, place, numbers, kernel = inputs
    ctx.settings = pattern, place, numbers, kernel
    ctx.save_for_backward(*output, *tensors)


def _differentiate(ctx, grad, _lse, _seed):
    if is_legacy_batch(grad):
        raise RuntimeError("Sparse attention takes no batches of gradients (is_grads_batched): use torch.func.vmap.")
    learns_bias = ctx.needs_input_grad[3]
    backward = _backward_with_bias if learns_bias else _backward
    grads = backward(grad, *ctx.saved_tensors, *ctx.settings)
    return *grads, *[None] * (9 - len(grads))


@torch.library.custom_op(
    "trivium::sparse_attention_backward",
    mutates_args=(),
    schema=f"({RESULTS}, {ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
)
def _backward(grad, out, lse, seed, *arguments) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v."""
    dq, dk, dv, _ = _gradients(_call(*arguments), seed, arguments[-1], grad, out, lse)
    return dq, dk, dv


@torch.library.custom_op(
    "trivium::sparse_attention_backward_with_bias",
    mutates_args=(),
    schema=f"({RESULTS}, {ARGUMENTS.replace('Tensor? bias', 'Tensor bias')}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward_with_bias(grad, out, lse, seed, *arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v and the bias."""
    call = _call(*arguments)
    if call.relation.bias is None:  # torch lets None pass where the schema asks for a tensor
        raise ValueError("The gradient of a bias is asked for, but there is no bias.")
    dq, dk, dv, dbias = _gradients(call, seed, arguments[-1], grad, out, lse, learns=True)
    assert dbias is not None
    return dq, dk, dv, dbias


def _cleans(call: Call) -> bool:
    """Whether the native kernel itself keeps NaN and inf away from queries that may not attend to them."""
    return call.relation.pattern is None or call.relation.bias is not None


def _gradients(
    call: Call, seed: Tensor, kernel: str, grad: Tensor, out: Tensor, lse: Tensor, learns: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Of q, k and v, and of the bias if it learns."""
    check_results(call, seed, grad=grad, out=out, lse=lse)
    with torch.autocast(call.q.device.type, enabled=False):
        work = _kernel_call(call, seed)
        if kernel == "native":
            dq, dk, dv, learned, finite = native.backward(work, grad, out, lse, learns)
            if not finite and _cleans(call):
                clean, _ = _cleaned(call, work)
                out, lse, _ = native.forward(clean)
                dq, dk, dv, learned, _ = native.backward(clean, grad, out, lse, learns)
                dk, dv, finite = dk.where(work.k.isfinite(), 0), dv.where(work.v.isfinite(), 0), True
            if finite:
                return dq, dk, dv, learned
        dbias = (
            torch.zeros_like(work.bias, memory_format=torch.contiguous_format)
            if learns and work.bias is not None
            else None
        )
        dq, dk, dv = map(by_tokens, BlockwisePass(work, _not_finite(call)).backward(grad, out, lse, dbias))
        return dq, dk, dv, dbias


def _cleaned(call: Call, work: KernelCall) -> tuple[KernelCall, Tensor]:
    """The call with 0 for NaN and inf in keys and values, and the queries "b h n 1" that may attend to such a key."""
    bad = ~(work.k.isfinite().all(dim=-1) & work.v.isfinite().all(dim=-1))[:, :, None]
    if work.key_mask is not None:
        bad = bad & work.key_mask[:, None, None]
    reached = bad if work.bias is None else bad & (work.bias > -torch.inf)
    relation = call.relation
    if relation.pattern is not None:
        reached = reached & pattern_mask(call.q, relation.pattern, relation.prefix, relation.grid)
    k, v = (t.where(t.isfinite(), 0) for t in (work.k, work.v))
    return work._replace(k=k, v=v), reached.any(dim=-1, keepdim=True)


def _fake_backward(grad, out, lse, seed, q, k, v, bias, *others):
    check_results(_call(q, k, v, bias, *others), seed, grad=grad, out=out, lse=lse)
    dbias = None if bias is None else bias.new_empty(bias.shape)
    return *(empty_by_tokens(t, *t.shape) for t in (q, k, v)), dbias


_backward.register_fake(lambda *arguments: _fake_backward(*arguments)[:3])
_backward_with_bias.register_fake(_fake_backward)


def _no_second_derivative(ctx, *grads):
    raise RuntimeError("Sparse attention has no second derivative: use attention_backend('reference') for it.")


_forward.register_autograd(_differentiate, setup_context=_setup)
_backward.register_autograd(_no_second_derivative)
_backward_with_bias.register_autograd(_no_second_derivative)


def _vmap(operator: Callable, info: Any, in_dims: tuple, *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The operator for each sample by itself, as torch does, which would ask for no randomness='different'."""
    *_, numbers, _ = arguments
    if numbers[1] and operator is _forward and info.randomness != "different":
        raise RuntimeError("Sparse attention with dropout needs vmap(..., randomness='different').")
    results = []
    for i in range(info.batch_size):
        given = zip(arguments, in_dims, strict=True)
        results.append(operator(*(x.select(dim, i) if isinstance(dim, int) else x for x, dim in given)))
    stacked = tuple(map(torch.stack, zip(*results, strict=True)))
    return stacked, (0,) * len(stacked)


for _operator in (_forward, _backward, _backward_with_bias):
    _operator.register_vmap(partial(_vmap, _operator))


def _call(q, k, v, bias, key_mask, pattern, place, numbers, kernel) -> Call:
    """The operator's arguments as a call, checked: the operators can be called without `attend`."""
    if in_forward_mode():
        raise RuntimeError("Sparse attention has no forward-mode derivative: use attention_backend('dense') for it.")
    prefix, rows, columns = place
    scale, dropout = numbers
    grid = (rows, columns) if rows or columns else None
    parsed = Pattern.parse(pattern) if pattern else None
    call = Call(q, k, v, Relation(key_mask, bias, parsed, prefix, grid), dropout, scale)
    if pattern and q.shape[2] != k.shape[2]:
        raise ValueError(f"Sparse attention: {q.shape[2]} queries meet {k.shape[2]} keys; there must be as many.")
    if key_mask is not None and key_mask.ndim != 2:
        raise ValueError(f'Sparse attention: mask must have the axes "b n", not {key_mask.ndim} axes.')
    if kernel not in KERNELS:
        raise ValueError(f"Sparse attention: kernel must be one of {', '.join(KERNELS)}, not {kernel!r}.")
    if kernel == "blockwise" and not pattern:
        raise ValueError("Sparse attention: the kernel 'blockwise' needs a pattern.")
    return call


def _kernel_call(call: Call, seed: Tensor) -> KernelCall:
    relation = call.relation
    n, m = call.q.shape[2], call.k.shape[2]
    if relation.pattern is None:
        plan = whole_plan(n, m)
    else:
        plan = make_plan(relation.pattern, n, relation.prefix, relation.grid)
    tensors = call.q, call.k, call.v
    return KernelCall(*tensors, plan, call.factor, relation.mask, relation.pair_bias, call.dropout, int(seed))


def _not_finite(call: Call) -> bool:
    return not (torch.isfinite(call.k.sum()) and torch.isfinite(call.v.sum()))
