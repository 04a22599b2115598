"""The checks of an attention's mask contract: what is masked has no influence. See attention.py."""

import itertools

import torch
from torch import Tensor

from .measures import HALVES, Figures, all_close, close, finite, gradients, normal, require
from .subjects import AttentionSubject

FAR = 8e3  # a logit: -1e4 added to it is not as low as its negative, and fp16 holds it
ROUNDED = 3e-2  # such logits are rounded to 5e-4 in fp32, and so are the differences of equal ones
POISONS = (torch.nan, torch.inf, -torch.inf)


def mask_agrees_with_reference(subject: AttentionSubject) -> Figures:
    """A mask "b m" masks keys: True may be attended, False has no influence."""
    qkv = subject.inputs()
    mask = subject.mask()
    return close(subject(*qkv, mask=mask), subject.reference(*qkv, mask=mask), subject.tolerance, "output")


def pair_mask_agrees_with_reference(subject: AttentionSubject) -> Figures:
    """A mask "b h n m", each axis full or 1, masks pairs."""
    q, k, v = subject.inputs()
    found: list[Figures] = []
    n, m = q.shape[2], k.shape[2]
    for shape in broadcast_shapes(subject.batch, subject.heads, n, m):
        mask = normal(*shape, seed=1) > -0.5
        some_key = subject.pairs(n, m, mask).any(dim=-1, keepdim=True)  # others are left to masked_rows_are_zero
        expected, out = subject.reference(q, k, v, mask=mask), subject(q, k, v, mask=mask)
        what = f"output under a mask {' x '.join(map(str, shape))}"
        found.append(close(out.where(some_key, 0), expected.where(some_key, 0), subject.tolerance, what))
    return max(found, key=lambda figures: figures["error"])


def broadcast_shapes(*full: int) -> list[tuple[int, ...]]:
    """The shapes of which each axis is full or 1."""
    return list(dict.fromkeys(itertools.product(*((size, 1) for size in full))))


def masked_rows_are_zero(subject: AttentionSubject) -> Figures:
    """A query without a key to attend to gives exactly 0, and its gradients are 0."""
    q, k, _ = qkv = subject.inputs(learns=True)
    n, m = q.shape[2], k.shape[2]
    masks = [subject.mask()]
    masks[0][0] = False
    if "pairs" in subject.claimed:
        pairs = torch.ones(subject.batch, 1, n, m, dtype=torch.bool)
        pairs[0] = False
        masks.append(pairs)
        row = pairs.clone()
        row[0], row[:, :, 1] = True, False
        masks += [row, row[:1, :, :, :1] & (torch.arange(n)[:, None] != 1)]  # and one of queries alone
    options: list[dict[str, Tensor]] = [{"mask": mask} for mask in masks]
    if "bias" in subject.claimed:
        bias = torch.zeros(1, subject.heads, n, m, dtype=subject.dtype)
        bias[:, :, 1] = -torch.inf
        options.append({"bias": bias})
    for option in options:
        out = subject(*qkv, **option)
        allowed = option["mask"] if "mask" in option else option["bias"].isfinite()
        empty = ~subject.pairs(n, m, allowed).any(dim=-1).expand(out.shape[:3])
        largest = float(out[empty].detach().abs().nan_to_num(torch.inf).max())
        require(largest == 0, f"a query without keys gives up to {largest:.2g}, not 0", largest=largest)
        grads = gradients(out, qkv)
        finite(grads, "gradients")
        require(bool((grads[0][empty] == 0).all()), "a query without keys has a gradient")
    return {}


def masked_never_leaks(subject: AttentionSubject) -> Figures:
    """NaN and inf in masked keys and values, and in queries without keys, change nothing, forward or backward."""
    mask = subject.mask()
    clean = subject.inputs(learns=True)
    options = subject.options(clean[0].shape[2], clean[1].shape[2])
    _poison_changes_nothing(subject, clean, options, ~mask)
    if "pairs" in subject.claimed:
        pairs = mask[:, None, None].repeat(1, 1, clean[0].shape[2], 1)
        pairs[:, :, 1] = False
        _poison_changes_nothing(subject, clean, {**options, "mask": pairs}, ~mask, query=1)
    return {}


def _poison_changes_nothing(
    subject: AttentionSubject, clean: list[Tensor], options: dict[str, Tensor], keys: Tensor, query: int | None = None
) -> None:
    """keys: "b m", True for those to poison. query: the one to poison too."""
    expected = subject(*clean, **options)
    grads = gradients(expected, clean)
    for poison in POISONS:
        q, k, v = (tensor.detach().clone() for tensor in clean)
        if query is not None:
            q[:, :, query] = poison
        dirty = [q, *(tensor.masked_fill(keys[:, None, :, None], poison) for tensor in (k, v))]
        for tensor in dirty:
            tensor.requires_grad_()
        out = subject(*dirty, **options)
        close(out, expected, subject.tolerance, f"output with {poison} behind the mask")
        all_close(gradients(out, dirty), grads, subject.tolerance, f"gradients with {poison} behind the mask")


def mask_holds_at_large_logits(subject: AttentionSubject) -> Figures:
    """In fp32, and if claimed in fp16 and bf16, a masked key whose logit is far above the others has no influence."""
    halves = HALVES if "half" in subject.claimed else {}
    mask, figures = subject.mask(), {}
    for name, dtype in {"fp32": torch.float32, **halves}.items():
        q, k, v = subject.inputs(dtype=dtype)
        size = (FAR / k.shape[-1] ** 0.5) ** 0.5
        q = torch.full_like(q, size)
        k = torch.full_like(k, size).where(~mask[:, None, :, None], -size)
        expected = subject.reference(*(tensor.double() for tensor in (q, k, v)), mask=mask)
        out = subject(q, k, v, mask=mask)
        figures[name] = close(out, expected, ROUNDED, f"{name}: output beside masked keys of large logits")["error"]
    return figures


def padding_changes_nothing(subject: AttentionSubject) -> Figures:
    """More tokens, masked out, leave the output of the others as it was."""
    n, longer = subject.length, subject.length + 4
    q, k, v = subject.inputs(n, n)
    extra = [100 * tensor for tensor in subject.inputs(4, 4, seed=50)]
    mask = torch.ones(subject.batch, longer, dtype=torch.bool)
    mask[:, n:] = False
    padded = [torch.cat(pair, dim=2) for pair in zip((q, k, v), extra, strict=True)]
    return close(subject(*padded, mask=mask)[:, :, :n], subject(q, k, v), subject.tolerance, "output")


def future_changes_nothing(subject: AttentionSubject) -> Figures:
    """Causal: no output depends on a later token."""
    n = subject.length
    qkv = subject.inputs(n, n)
    out = subject(*qkv)
    for place in subject.places():
        later = [tensor.clone() for tensor in qkv]
        for tensor in later:
            tensor[:, :, place:] += 3
        what = f"output before token {place}, which changed"
        close(subject(*later)[:, :, :place], out[:, :, :place], subject.tolerance, what)
    return {}
