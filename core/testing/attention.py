"""The checks of an attention. Each function is one: its name is the id, its docstring what must hold."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cost import grows_as_claimed
from .measures import (
    HALVES,
    Figures,
    all_close,
    close,
    finite,
    gradients,
    half_error_is_bounded,
    normal,
    require,
    run_compiled,
    seeded,
    spread_out,
    weighted,
)
from .runner import Check
from .subjects import EVERYTHING, AttentionSubject

POISONS = (torch.nan, torch.inf, -torch.inf)
DRAWS = 600  # of dropout
SIGMAS = 6.0  # by which a mean over them may be off
DRAWS_OF_HALF = 3  # the largest error of a few numbers says little
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
        all_close((q, k, v), before, 0.0, "inputs, after the call")
    return {}


def agrees_with_reference(subject: AttentionSubject) -> Figures:
    """It computes softmax(q k^T / sqrt(c)) v over the keys it may attend to."""
    qkv = subject.inputs()
    return close(subject(*qkv), subject.reference(*qkv), subject.tolerance, "output")


def mask_agrees_with_reference(subject: AttentionSubject) -> Figures:
    """A mask "b m" hides keys: True may be attended, False counts for nothing."""
    qkv = subject.inputs()
    mask = subject.mask()
    return close(subject(*qkv, mask=mask), subject.reference(*qkv, mask=mask), subject.tolerance, "output")


def pair_mask_agrees_with_reference(subject: AttentionSubject) -> Figures:
    """A mask "b h n m", each axis full or 1, hides pairs."""
    q, k, v = subject.inputs()
    worst: Figures = {}
    full = (subject.batch, subject.heads, q.shape[2], k.shape[2])
    for axes in ((0, 1, 2, 3), (2, 3), (0, 2, 3), (1, 3)):
        shape = [size if axis in axes else 1 for axis, size in enumerate(full)]
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.3
        expected = subject.reference(q, k, v, mask=mask)
        what = f"output under a mask {' x '.join(map(str, shape))}"
        worst = max(worst, close(subject(q, k, v, mask=mask), expected, subject.tolerance, what), key=_error)
    return worst


def bias_agrees_with_reference(subject: AttentionSubject) -> Figures:
    """A bias "b h n m", each axis full or 1, is added to the logits; -inf forbids a pair."""
    q, k, v = subject.inputs()
    n, m = q.shape[2], k.shape[2]
    worst: Figures = {}
    for shape in ((1, subject.heads, n, m), (subject.batch, 1, n, m)):
        bias = normal(*shape, seed=5, dtype=subject.dtype) * 2
        bias[..., m // 2] = -torch.inf
        worst = max(
            worst,
            close(subject(q, k, v, bias=bias), subject.reference(q, k, v, bias=bias), subject.tolerance, "output"),
            key=_error,
        )
    return worst


def scale_agrees_with_reference(subject: AttentionSubject) -> Figures:
    """`scale` takes the place of 1 / sqrt(c)."""
    qkv = subject.inputs()
    return close(subject(*qkv, scale=0.7), subject.reference(*qkv, scale=0.7), subject.tolerance, "output")


def pattern_that_keeps_all_is_none(subject: AttentionSubject) -> Figures:
    """Sparse attention by a pattern that keeps every pair equals dense attention, gradients too."""
    qkv = subject.inputs(learns=True)
    options = subject.options(qkv[0].shape[2], qkv[1].shape[2])
    dense, sparse = subject(*qkv, **options), subject(*qkv, pattern=EVERYTHING, **options)
    grads = [gradients(out, qkv) for out in (sparse, dense)]
    return close(sparse, dense, subject.tolerance, "output") | all_close(*grads, subject.tolerance, "gradients")


def gradients_agree_with_reference(subject: AttentionSubject) -> Figures:
    """The gradients of queries, keys, values and bias are those of the reference."""
    qkv = subject.inputs(learns=True)
    options = subject.options(qkv[0].shape[2], qkv[1].shape[2])
    learned = [*qkv, *(options["bias"].requires_grad_() for _ in range("bias" in options))]
    found, expected = subject(*qkv, **options), subject.reference(*qkv, **options)
    require(found.requires_grad, "the output has no gradient")
    return all_close(gradients(found, learned), gradients(expected, learned), subject.tolerance, "gradients")


def gradcheck(subject: AttentionSubject) -> Figures:
    """Its gradients are its own finite differences, in fp64."""
    qkv = subject.inputs(batch=1, learns=True, head_dim=4)
    torch.autograd.gradcheck(lambda *qkv: subject(*qkv), qkv, fast_mode=True, atol=1e-7, rtol=1e-5)
    return {}


def masked_rows_are_zero(subject: AttentionSubject) -> Figures:
    """A query without a key to attend to gives exactly 0, and its gradients are 0."""
    q, k, _ = qkv = subject.inputs(learns=True)
    masks = [subject.mask()]
    masks[0][0] = False
    if "pairs" in subject.claimed:
        pairs = torch.ones(subject.batch, 1, q.shape[2], k.shape[2], dtype=torch.bool)
        pairs[0] = False
        masks.append(pairs)
        row = pairs.clone()
        row[0], row[:, :, 1] = True, False
        masks.append(row)
    for mask in masks:
        out = subject(*qkv, mask=mask)
        dead = ~subject.pairs(q.shape[2], k.shape[2], mask).any(dim=-1).expand(out.shape[:3])
        largest = float(out[dead].detach().abs().nan_to_num(torch.inf).max())
        require(largest == 0, f"a query without keys gives up to {largest:.2g}, not 0", largest=largest)
        grads = gradients(out, qkv)
        finite(grads, "gradients")
        require(bool((grads[0][dead] == 0).all()), "a query without keys has a gradient")
    return {}


def masked_never_leaks(subject: AttentionSubject) -> Figures:
    """NaN and inf in masked keys and values change nothing, forward or backward."""
    hidden = ~subject.mask()[:, None, :, None]
    clean = subject.inputs(learns=True)
    expected = subject(*clean, mask=subject.mask())
    grads = gradients(expected, clean)
    for poison in POISONS:
        q, k, v = clean
        dirty = [t.detach().requires_grad_() for t in (q, k.masked_fill(hidden, poison), v.masked_fill(hidden, poison))]
        out = subject(*dirty, mask=subject.mask())
        close(out, expected, subject.tolerance, f"output with {poison} behind the mask")
        all_close(gradients(out, dirty), grads, subject.tolerance, f"gradients with {poison} behind the mask")
    return {}


def padding_changes_nothing(subject: AttentionSubject) -> Figures:
    """More tokens, masked out, leave the output of the others as it was."""
    n, more = subject.length, subject.length + 4
    q, k, v = subject.inputs(n, n)
    extra = [100 * tensor for tensor in subject.inputs(4, 4, seed=50)]
    mask = torch.ones(subject.batch, more, dtype=torch.bool)
    mask[:, n:] = False
    longer = [torch.cat(pair, dim=2) for pair in zip((q, k, v), extra, strict=True)]
    return close(subject(*longer, mask=mask)[:, :, :n], subject(q, k, v), subject.tolerance, "output")


def batch_changes_nothing(subject: AttentionSubject) -> Figures:
    """A sample gives the same alone and in any batch, and a head whatever the others see."""
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
    """Keys in another order give the same, and queries in another order the same in that order."""
    q, k, v = subject.inputs()
    by_key = torch.randperm(k.shape[2], generator=torch.Generator().manual_seed(2))
    by_query = torch.randperm(q.shape[2], generator=torch.Generator().manual_seed(3))
    found = subject(q[:, :, by_query], k[:, :, by_key], v[:, :, by_key])
    return close(found, subject(q, k, v)[:, :, by_query], subject.tolerance, "output")


def future_changes_nothing(subject: AttentionSubject) -> Figures:
    """Causal: no output depends on a later token."""
    n = subject.length
    qkv = subject.inputs(n, n)
    out = subject(*qkv)
    for place in sorted({1 + round(i * (n - 2) / 11) for i in range(12)}):  # all, or a dozen if there are more
        later = [tensor.clone() for tensor in qkv]
        for tensor in later:
            tensor[:, :, place:] += 3
        what = f"output before token {place}, which changed"
        close(subject(*later)[:, :, :place], out[:, :, :place], subject.tolerance, what)
    return {}


def half_precision_error(subject: AttentionSubject) -> Figures:
    """In fp16 and bf16 outputs and gradients are at most twice as far from fp64 as torch's dense ones of that dtype."""
    figures: Figures = {}
    length = max(64, subject.length)
    for name, dtype in HALVES.items():
        outs, grads = ([], [], []), ([], [], [])
        for seed in range(DRAWS_OF_HALF):
            qkv = subject.inputs(length, length, seed=10 * seed, dtype=dtype, head_dim=16, learns=True)
            options = {"mask": subject.mask(length)} if "mask" in subject.claimed else {}
            pairs = subject.pairs(length, length, options.get("mask"))
            full = [tensor.detach().double().requires_grad_() for tensor in qkv]
            half, exact = subject(*qkv, **options), subject.reference(*full, **options)
            dense = F.scaled_dot_product_attention(*qkv, attn_mask=pairs)
            require(half.dtype == dtype, f"the output is {half.dtype}, not {dtype}")
            for i, (out, inputs) in enumerate(((half, qkv), (exact, full), (dense, qkv))):
                outs[i].append(out)
                grads[i].append(torch.cat([grad.flatten() for grad in gradients(out, inputs)]))
        figures |= half_error_is_bounded(*map(torch.stack, outs), name)
        figures |= half_error_is_bounded(*map(torch.stack, grads), f"{name} gradient")
    return figures


def large_logits_are_stable(subject: AttentionSubject) -> Figures:
    """Inputs 10,000 times as large give finite outputs and gradients, and agree with the reference."""
    q, k, v = (HUGE * tensor for tensor in subject.inputs())
    found = subject(q, k, v)
    finite([found], "output of inputs times 1e4")
    close(found / HUGE, subject.reference(q, k, v) / HUGE, max(subject.tolerance, 1e-6), "output of inputs times 1e4")
    single = [(HUGE * t).requires_grad_() for t in subject.inputs(dtype=torch.float32)]
    out = subject(*single)
    finite([out, *gradients(out, single)], "fp32 outputs and gradients of inputs times 1e4")
    return {}


def length_one(subject: AttentionSubject) -> Figures:
    """One token attends to itself alone."""
    q, k, v = subject.inputs(1, 1)
    return close(subject(q, k, v), v, subject.tolerance, "output of one token")


def length_zero(subject: AttentionSubject) -> Figures:
    """No samples or no tokens give no outputs, and queries that meet no keys give 0."""
    for sizes in ({"n": 0, "m": 0}, {"n": subject.length, "m": subject.length, "batch": 0}):
        q, k, v = subject.inputs(**sizes)
        out = subject(q, k, v)
        require(out.shape == q.shape, f"no tokens or samples give {tuple(out.shape)}, not {tuple(q.shape)}")
    if "cross" in subject.claimed:
        out = subject(*subject.inputs(3, 0))
        require(bool((out == 0).all()), "queries that meet no keys do not give 0")
    return {}


def strides_change_nothing(subject: AttentionSubject) -> Figures:
    """Inputs that are not contiguous in memory, or stand for a whole batch, give the same."""
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
    """Twice the same inputs give the same bits, whatever the random state."""
    qkv = subject.inputs(learns=True)
    runs = []
    for seed in (0, 1):
        with seeded(seed):
            out = subject(*qkv)
            runs.append([out, *gradients(out, qkv)])
    return all_close(*runs, 0.0, "outputs and gradients, the second time")


def dropout_of_zero_is_none(subject: AttentionSubject) -> Figures:
    """dropout=0.0 changes nothing."""
    qkv = subject.inputs()
    with seeded(0):
        return close(subject(*qkv, dropout=0.0), subject(*qkv), subject.tolerance, "output")


def dropout_is_unbiased(subject: AttentionSubject) -> Figures:
    """dropout=0.5 draws anew for each sample, and its mean is the output without."""
    qkv = subject.inputs(m=min(subject.length, 24))
    expected = subject(*qkv)[:1]
    with seeded(0), torch.no_grad():
        drawn = subject(*(tensor[:1].expand(DRAWS, -1, -1, -1) for tensor in qkv), dropout=0.5)
    require(bool((drawn[0] != drawn[1]).any()), "dropout=0.5 drops nothing, or the same of all samples")
    apart = (drawn.mean(0, keepdim=True) - expected).abs()
    sigmas = float((apart / (drawn.std(0, keepdim=True) / DRAWS**0.5 + 1e-12)).max())
    require(sigmas < SIGMAS, f"the mean of {DRAWS} draws is off by {sigmas:.1f} standard errors", sigmas=sigmas)
    return {"sigmas": sigmas}


def compiles(subject: AttentionSubject) -> Figures:
    """Under torch.compile it gives the same, gradients too."""
    qkv = subject.inputs(learns=True)
    options = subject.options(qkv[0].shape[2], qkv[1].shape[2])
    function = partial(subject.attention, **options)
    found, expected = run_compiled(function, subject.compiler, qkv), function(*qkv)
    close(found, expected, max(subject.tolerance, 1e-6), "output, compiled")
    return all_close(gradients(found, qkv), gradients(expected, qkv), max(subject.tolerance, 1e-6), "gradients")


def exports(subject: AttentionSubject) -> Figures:
    """Under torch.export it becomes a program that gives the same for other inputs."""
    options = subject.options(*(tensor.shape[2] for tensor in subject.inputs()[:2]))
    program = torch.export.export(Wrapped(partial(subject.attention, **options)), tuple(subject.inputs())).module()
    other = subject.inputs(seed=10)
    return close(program(*other), subject(*other, **options), max(subject.tolerance, 1e-6), "output, exported")


def cost_grows_as_claimed(subject: AttentionSubject) -> Figures:
    """Counted operations and bytes, forward and backward, grow no faster than the claimed power of the length."""

    def step(length: int):
        qkv = subject.inputs(length, length, dtype=torch.float32, batch=1, learns=True)
        return lambda: weighted(subject(*qkv)).backward()

    return grows_as_claimed(step, subject.cost_lengths, subject.cost, subject.timed)


class Wrapped(nn.Module):
    """A function as a module, which torch.export asks for."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.function(q, k, v)


def _error(figures: Figures) -> float:
    return figures.get("error", -1.0)


ATTENTION_CHECKS = (
    Check(shapes_and_dtypes),
    Check(agrees_with_reference),
    Check(mask_agrees_with_reference, ("mask",)),
    Check(pair_mask_agrees_with_reference, ("pairs",)),
    Check(bias_agrees_with_reference, ("bias",)),
    Check(scale_agrees_with_reference, ("scale",)),
    Check(pattern_that_keeps_all_is_none, ("pattern",)),
    Check(gradients_agree_with_reference),
    Check(gradcheck, ("double",)),
    Check(masked_rows_are_zero, ("mask",)),
    Check(masked_never_leaks, ("mask",)),
    Check(padding_changes_nothing, ("mask",)),
    Check(batch_changes_nothing),
    Check(order_changes_nothing, ("equivariant",)),
    Check(future_changes_nothing, ("causal",)),
    Check(half_precision_error, ("half",)),
    Check(large_logits_are_stable),
    Check(length_one),
    Check(length_zero, ("empty",)),
    Check(strides_change_nothing),
    Check(deterministic),
    Check(dropout_of_zero_is_none, ("dropout",)),
    Check(dropout_is_unbiased, ("dropout",)),
    Check(compiles, ("compile",)),
    Check(exports, ("export",)),
    Check(cost_grows_as_claimed, ("cost",)),
)
