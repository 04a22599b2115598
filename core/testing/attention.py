"""The checks of an attention. Each function is one: its name is the id, its docstring says what must hold.

Those of masks are in masks.py.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from .cost import grows_as_claimed
from .dropout import dropout_is_of_single_weights, dropout_is_unbiased, dropout_of_zero_is_none, gradcheck_with_dropout
from .masks import (
    broadcast_shapes,
    future_changes_nothing,
    mask_agrees_with_reference,
    mask_holds_at_large_logits,
    masked_never_leaks,
    masked_rows_are_zero,
    padding_changes_nothing,
    pair_mask_agrees_with_reference,
)
from .measures import (
    HALVES,
    Figures,
    all_close,
    close,
    everything,
    exported,
    finite,
    gradients,
    half_error_is_bounded,
    left_as_they_were,
    normal,
    require,
    run_compiled,
    seeded,
    shuffled,
    spread_out,
    weighted,
)
from .runner import Check
from .subjects import AttentionSubject

HALF_PRECISION_DRAWS = 3  # the largest error of a few numbers is no good estimate
HUGE = 1e4


def shapes_and_dtypes(subject: AttentionSubject) -> Figures:
    """The output is "b h n c", in the dtype of the inputs, finite, and inputs are left as they were."""
    for dtype in {torch.float32, subject.dtype}:
        q, k, v = subject.inputs(dtype=dtype)
        before = [tensor.clone() for tensor in (q, k, v)]
        out = subject(q, k, v)
        require(out.shape == q.shape, f"the output is {tuple(out.shape)}, not {tuple(q.shape)}")
        require(out.dtype == dtype, f"the output is {out.dtype}, not {dtype}")
        finite([out], "output")
        left_as_they_were((q, k, v), before)
    return {}


def agrees_with_reference(subject: AttentionSubject) -> Figures:
    """It computes softmax(q k^T / sqrt(c)) v over the keys that may be attended."""
    qkv = subject.inputs()
    return close(subject(*qkv), subject.reference(*qkv), subject.tolerance, "output")


def many_tokens_agree_with_reference(subject: AttentionSubject) -> Figures:
    """With more tokens and samples than a block of a kernel holds, outputs and gradients are those of the definition
    too, also under a mask and a bias."""
    many = subject.with_many_tokens()
    return agrees_with_reference(many) | gradients_agree_with_reference(many)


def bias_agrees_with_reference(subject: AttentionSubject) -> Figures:
    """A bias "b h n m", each axis full or 1, is added to the logits, and has its gradient; -inf forbids a pair."""
    q, k, v = subject.inputs(learns=True)
    found: list[Figures] = []
    for shape in broadcast_shapes(subject.batch, subject.heads, q.shape[2], k.shape[2]):
        bias = normal(*shape, seed=5, dtype=subject.dtype) * 2
        if shape[3] > 1:
            bias[..., shape[3] // 2] = -torch.inf
        bias.requires_grad_()
        what = f"under a bias {' x '.join(map(str, shape))}"
        out, expected = subject(q, k, v, bias=bias), subject.reference(q, k, v, bias=bias)
        found.append(close(out, expected, subject.tolerance, f"output {what}"))
        if out.requires_grad:
            grads = [gradients(each, [bias]) for each in (out, expected)]
            all_close(grads[0], grads[1], subject.tolerance, f"gradient of the bias {what}")
    return max(found, key=lambda figures: figures["error"])


def scale_agrees_with_reference(subject: AttentionSubject) -> Figures:
    """`scale` replaces 1 / sqrt(c), in the gradients too."""
    qkv = subject.inputs(learns=True)
    return _learns(subject, qkv, subject(*qkv, scale=0.7), subject.reference(*qkv, scale=0.7), "with scale=0.7")


def is_causal_agrees_with_reference(subject: AttentionSubject) -> Figures:
    """With is_causal=True each query attends to the keys up to its own place, in the gradients too."""
    n = subject.length
    qkv = subject.inputs(n, n, learns=True)
    expected = subject.reference(*qkv, mask=torch.ones(1, 1, n, n, dtype=torch.bool).tril())
    return _learns(subject, qkv, subject(*qkv, is_causal=True), expected, "with is_causal=True")


def _learns(subject: AttentionSubject, inputs: Sequence[Tensor], out: Tensor, expected: Tensor, what: str) -> Figures:
    """Compare an output, and the gradients of the inputs if it has any."""
    figures = close(out, expected, subject.tolerance, f"output {what}")
    if out.requires_grad:
        grads = [gradients(each, inputs) for each in (out, expected)]
        all_close(grads[0], grads[1], subject.tolerance, f"gradients {what}")
    return figures


def pattern_that_keeps_all_is_none(subject: AttentionSubject) -> Figures:
    """Sparse attention with a pattern that keeps every pair equals dense attention, gradients included."""
    qkv = subject.inputs(learns=True)
    options = subject.options(qkv[0].shape[2], qkv[1].shape[2])
    dense, sparse = subject(*qkv, **options), subject(*qkv, pattern=everything(), **options)
    figures = close(sparse, dense, subject.tolerance, "output")
    return figures | all_close(gradients(sparse, qkv), gradients(dense, qkv), subject.tolerance, "gradients")


def gradients_agree_with_reference(subject: AttentionSubject) -> Figures:
    """The gradients of queries, keys, values and bias are those of the reference."""
    qkv = subject.inputs(learns=True)
    options = subject.options(qkv[0].shape[2], qkv[1].shape[2])
    learned = [*qkv, *(options["bias"].requires_grad_() for _ in range("bias" in options))]
    out, expected = subject(*qkv, **options), subject.reference(*qkv, **options)
    require(out.requires_grad, "the output has no gradient")
    close(out, expected, subject.tolerance, "output")
    return all_close(gradients(out, learned), gradients(expected, learned), subject.tolerance, "gradients")


def gradcheck(subject: AttentionSubject) -> Figures:
    """Its gradients equal its finite differences, in fp64."""
    qkv = subject.inputs(batch=1, learns=True, head_dim=4)
    torch.autograd.gradcheck(lambda *qkv: subject(*qkv), qkv, fast_mode=True, atol=1e-7, rtol=1e-5)
    return {}


def batch_changes_nothing(subject: AttentionSubject) -> Figures:
    """A sample gives the same result alone and in any batch; a head, whatever the inputs of the other heads."""
    qkv = subject.inputs()
    options = {"mask": subject.mask()} if "mask" in subject.claimed else {}
    together = subject(*qkv, **options)
    for i in range(subject.batch):
        alone = subject(*(t[i : i + 1] for t in qkv), **{key: mask[i : i + 1] for key, mask in options.items()})
        close(alone, together[i : i + 1], subject.tolerance, f"sample {i} alone")
    for head in range(subject.heads):
        others = [normal(*t.shape, seed=20 + i, dtype=t.dtype) for i, t in enumerate(qkv)]
        for tensor, own in zip(others, qkv, strict=True):
            tensor[:, head] = own[:, head]
        close(
            subject(*others, **options)[:, head], together[:, head], subject.tolerance, f"head {head}, others changed"
        )
    return {}


def order_changes_nothing(subject: AttentionSubject) -> Figures:
    """Keys in another order give the same result, and queries in another order the same result in that order."""
    q, k, v = subject.inputs()
    by_key = shuffled(k.shape[2], 2)
    by_query = shuffled(q.shape[2], 3)
    out = subject(q[:, :, by_query], k[:, :, by_key], v[:, :, by_key])
    return close(out, subject(q, k, v)[:, :, by_query], subject.tolerance, "output")


def half_precision_error(subject: AttentionSubject) -> Figures:
    """In fp16 and bf16 outputs and gradients are at most twice as far from fp64 as by torch's matmul and softmax."""
    figures: Figures = {}
    length = max(64, subject.length)
    for name, dtype in HALVES.items():
        outs, grads = ([], [], []), ([], [], [])
        for seed in range(HALF_PRECISION_DRAWS):
            qkv = subject.inputs(length, length, seed=10 * seed, dtype=dtype, head_dim=16, learns=True)
            options = {"mask": subject.mask(length)} if "mask" in subject.claimed else {}
            pairs = subject.pairs(length, length, options.get("mask"))
            full = [tensor.detach().double().requires_grad_() for tensor in qkv]
            half, exact = subject(*qkv, **options), subject.reference(*full, **options)
            dense = written_out(qkv[0], qkv[1], qkv[2], pairs)
            require(half.dtype == dtype, f"the output is {half.dtype}, not {dtype}")
            for i, (out, inputs) in enumerate(((half, qkv), (exact, full), (dense, qkv))):
                outs[i].append(out)
                grads[i].append(torch.cat([grad.flatten() for grad in gradients(out, inputs)]))
        figures |= half_error_is_bounded(outs, name)
        figures |= half_error_is_bounded(grads, f"{name} gradient")
    return figures


def written_out(q: Tensor, k: Tensor, v: Tensor, pairs: Tensor) -> Tensor:
    """Attention by torch's operators, each of which sums in fp32 and rounds its result."""
    return (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~pairs, -torch.inf).softmax(dim=-1) @ v


def large_logits_are_stable(subject: AttentionSubject) -> Figures:
    """Inputs 10,000 times as large give finite outputs and gradients, and agree with the reference."""
    q, k, v = (HUGE * tensor for tensor in subject.inputs())
    out = subject(q, k, v)
    finite([out], "output of inputs times 1e4")
    close(out / HUGE, subject.reference(q, k, v) / HUGE, max(subject.tolerance, 1e-6), "output of inputs times 1e4")
    single = [(HUGE * t).requires_grad_() for t in subject.inputs(dtype=torch.float32)]
    out = subject(*single)
    finite([out, *gradients(out, single)], "fp32 outputs and gradients of inputs times 1e4")
    return {}


def length_one(subject: AttentionSubject) -> Figures:
    """A single token attends to itself."""
    q, k, v = subject.inputs(1, 1)
    return close(subject(q, k, v), v, subject.tolerance, "output of one token")


def length_zero(subject: AttentionSubject) -> Figures:
    """No samples or no tokens give no outputs, and queries without any keys give 0."""
    for n, batch in ((0, subject.batch), (subject.length, 0)):
        q, k, v = subject.inputs(n, n, batch=batch)
        out = subject(q, k, v)
        require(out.shape == q.shape, f"no tokens or samples give {tuple(out.shape)}, not {tuple(q.shape)}")
    if "cross" in subject.claimed:
        out = subject(*subject.inputs(3, 0))
        require(bool((out == 0).all()), "queries without any keys do not give 0")
    return {}


def strides_change_nothing(subject: AttentionSubject) -> Figures:
    """Inputs that are not contiguous in memory, or are expanded over a batch, give the same result."""
    qkv = subject.inputs(learns=True)
    expected = subject(*qkv)
    grads = gradients(expected, qkv)
    for spread in zip(*map(spread_out, qkv), strict=True):
        out = subject(*spread)
        close(out, expected, subject.tolerance, "output of inputs that are not contiguous")
        all_close(gradients(out, qkv), grads, subject.tolerance, "gradients of inputs that are not contiguous")
    one = [tensor[:1].expand_as(tensor) for tensor in qkv]
    return close(subject(*one), subject(*(t.clone() for t in one)), subject.tolerance, "output of an expanded batch")


def deterministic(subject: AttentionSubject) -> Figures:
    """The same inputs give the same bits the second time, whatever the random state."""
    qkv = subject.inputs(learns=True)
    runs = []
    for seed in (0, 1):
        with seeded(seed):
            out = subject(*qkv)
            runs.append([out, *gradients(out, qkv)])
    return all_close(runs[0], runs[1], 0.0, "outputs and gradients, the second time")


def compiles(subject: AttentionSubject) -> Figures:
    """Under torch.compile it gives the same results, gradients included."""
    qkv = subject.inputs(learns=True)
    options = subject.options(qkv[0].shape[2], qkv[1].shape[2])
    function = partial(subject.called, **options)
    out, expected = run_compiled(function, subject.compiler, qkv), function(*qkv)
    close(out, expected, max(subject.tolerance, 1e-6), "output, compiled")
    return all_close(gradients(out, qkv), gradients(expected, qkv), max(subject.tolerance, 1e-6), "gradients")


def exports(subject: AttentionSubject) -> Figures:
    """torch.export makes a program of it that gives the same results, for other inputs too."""
    qkv = subject.inputs()
    options = subject.options(qkv[0].shape[2], qkv[1].shape[2])
    program = exported(partial(subject.called, **options), qkv)
    other = subject.inputs(seed=10)
    return close(program(*other), subject(*other, **options), max(subject.tolerance, 1e-6), "output, exported")


def cost_grows_as_claimed(subject: AttentionSubject) -> Figures:
    """Counted operations and bytes, forward and backward, grow no faster than the claimed power of the length."""

    def step(length: int):
        qkv = subject.inputs(length, length, dtype=torch.float32, batch=1, learns=True)
        return lambda: weighted(subject(*qkv)).backward()

    return grows_as_claimed(step, subject.cost_lengths, subject.cost, subject.timed)


ATTENTION_CHECKS = (
    Check(shapes_and_dtypes),
    Check(dropout_of_zero_is_none, ("dropout",)),
    Check(deterministic),
    Check(strides_change_nothing),
    Check(batch_changes_nothing),
    Check(future_changes_nothing, ("causal",)),
    Check(order_changes_nothing, ("equivariant",)),
    Check(agrees_with_reference),
    Check(large_logits_are_stable),
    Check(length_one),
    Check(length_zero, ("empty",)),
    Check(mask_agrees_with_reference, ("mask",)),
    Check(padding_changes_nothing, ("mask",)),
    Check(mask_holds_at_large_logits, ("mask",)),
    Check(pair_mask_agrees_with_reference, ("pairs",)),
    Check(bias_agrees_with_reference, ("bias",)),
    Check(scale_agrees_with_reference, ("scale",)),
    Check(is_causal_agrees_with_reference, ("is_causal",)),
    Check(pattern_that_keeps_all_is_none, ("pattern",)),
    Check(masked_rows_are_zero, ("mask",)),
    Check(masked_never_leaks, ("mask",)),
    Check(gradients_agree_with_reference),
    Check(gradcheck, ("double",)),
    Check(many_tokens_agree_with_reference, shrinks=False),
    Check(half_precision_error, ("half",), shrinks=False),
    Check(dropout_is_unbiased, ("dropout",), shrinks=False),
    Check(dropout_is_of_single_weights, ("dropout",), shrinks=False),
    Check(gradcheck_with_dropout, ("dropout", "double"), shrinks=False),
    Check(compiles, ("compile",), shrinks=False),
    Check(exports, ("export",), shrinks=False),
    Check(cost_grows_as_claimed, ("cost",), shrinks=False),
)
