"""Attentions with one fault each, which the kit must find."""

import torch
import torch.nn.functional as F

from core import attend


def right(q, k, v, *, mask=None, bias=None, dropout=0.0, scale=None, pattern=None):
    return attend(q, k, v, mask=mask, bias=bias, dropout=dropout, scale=scale, pattern=pattern)


def right_causal(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def plain(q, k, v, *, mask=None):
    """Softmax written out."""
    logits = q @ k.mT * q.shape[-1] ** -0.5
    if mask is not None:
        logits = logits.masked_fill(~(mask[:, None, None] if mask.ndim == 2 else mask), -torch.inf)
    return logits.softmax(-1) @ v


def wrong_scale(q, k, v, **options):
    return attend(q / 2**0.5, k, v, **options)


def first_keys_alone(q, k, v):
    return attend(q, k[:, :, :64], v[:, :, :64])


def softmax_over_queries(q, k, v, **options):
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-2) @ v


def missing_head(q, k, v, **options):
    out = attend(q, k, v, **options)
    return torch.cat([out[:, :-1], torch.zeros_like(out[:, -1:])], dim=1)


def inverted_mask(q, k, v, *, mask=None, **options):
    return attend(q, k, v, mask=None if mask is None else ~mask, **options)


def one_mask_for_all_heads(q, k, v, *, mask=None, **options):
    return attend(q, k, v, mask=mask[:, :1] if mask is not None and mask.ndim == 4 else mask, **options)


def ignored_bias(q, k, v, *, bias=None, **options):
    return attend(q, k, v, **options)


def ignored_scale(q, k, v, *, scale=None, **options):
    return attend(q, k, v, **options)


def scale_has_no_gradient(q, k, v, *, scale=None, **options):
    """The backward pass is that of 1 / sqrt(c)."""
    plain = attend(q, k, v, **options)
    return plain if scale is None else plain + (attend(q, k, v, scale=scale, **options) - plain).detach()


def is_causal_learns_from_all(q, k, v, *, mask=None, is_causal=False):
    """The backward pass is that of all pairs."""
    plain = attend(q, k, v, mask=mask)
    pairs = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()[None, None]
    return plain + (attend(q, k, v, mask=pairs) - plain).detach() if is_causal else plain


def is_causal_leaks(q, k, v, *, mask=None, is_causal=False):
    """The diagonal is one too high."""
    pairs = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(1)[None, None]
    return attend(q, k, v, mask=pairs if is_causal else mask)


def pattern_loses_last_key(q, k, v, *, pattern=None, **options):
    mask = torch.ones(1, 1, 1, k.shape[2], dtype=torch.bool)
    mask[..., -1] = pattern is None
    padding = options.pop("mask", None)
    return attend(q, k, v, mask=mask if padding is None else mask & padding[:, None, None], **options)


def writes_into_queries(q, k, v, **options):
    return attend(q.detach().mul_(1.5), k, v, **options)


def always_fp32(q, k, v, **options):
    return attend(q.float(), k.float(), v.float(), **options)


def nan_on_empty_row(q, k, v, *, mask=None, **options):
    return plain(q, k, v, mask=mask)


def nan_leaks(q, k, v, *, mask=None, **options):
    """torch's own: 0 * NaN in the values."""
    pairs = None if mask is None else mask[:, None, None] if mask.ndim == 2 else mask
    return F.scaled_dot_product_attention(q, k, v, attn_mask=pairs)


def nan_on_row_of_infinite_bias(q, k, v, *, mask=None, bias=None, **options):
    return attend(q, k, v, mask=mask) if bias is None else (q @ k.mT * q.shape[-1] ** -0.5 + bias).softmax(-1) @ v


def nan_leaks_through_pairs(q, k, v, *, mask=None, **options):
    """Right for masks of keys, torch's own for masks of pairs."""
    if mask is None or mask.ndim == 2:
        return attend(q, k, v, mask=mask, **options)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def padding_in_the_sum(q, k, v, *, mask=None, **options):
    """Masked keys get a logit of 0 instead of minus infinity."""
    logits = q @ k.mT * q.shape[-1] ** -0.5
    if mask is not None:
        pairs = mask[:, None, None] if mask.ndim == 2 else mask
        logits, v = logits * pairs, v * mask[:, None, :, None] if mask.ndim == 2 else v
    return logits.softmax(-1) @ v


def mask_of_ten_thousand(q, k, v, *, mask=None, **options):
    """Adds -10,000 to masked logits; NaN does not leak, and a query without keys gives 0."""
    if mask is None:
        return attend(q, k, v, **options)
    pairs, v = (mask[:, None, None] if mask.ndim == 2 else mask), v.nan_to_num(0, 0, 0)
    logits = q.nan_to_num(0, 0, 0) @ k.nan_to_num(0, 0, 0).mT * q.shape[-1] ** -0.5
    return (logits - 1e4 * ~pairs).softmax(-1) @ v * pairs.any(-1, keepdim=True)


def batch_leak(q, k, v, **options):
    out = attend(q, k, v, **options)
    return out + 1e-4 * out.mean(0, keepdim=True)


def head_leak(q, k, v, **options):
    return attend(q, k + 1e-3 * k.mean(1, keepdim=True), v, **options)


def position_dependence(q, k, v, **options):
    return attend(q, k + 0.01 * torch.arange(k.shape[2])[:, None].to(k), v, **options)


def leak_of_one(q, k, v):
    return attend(q, k, v, mask=torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(1)[None, None])


def leak_at_one_position(q, k, v):
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    if len(mask) > 8:
        mask[6, 7] = True
    return attend(q, k, v, mask=mask[None, None])


def window(radius):
    return lambda n: (torch.arange(n) - torch.arange(n)[:, None]).abs() <= radius


def windowed(q, k, v, *, radius=3):
    return attend(q, k, v, mask=window(radius)(q.shape[2])[None, None])


def softmax_in_half(q, k, v):
    """Every step rounded, and sums of many terms too."""
    logits = q @ k.mT * q.shape[-1] ** -0.5
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    total = torch.zeros_like(weights[..., 0])
    for part in weights.unbind(-1):
        total = total + part
    return (weights / total[..., None]) @ v


def no_maximum_taken_off(q, k, v, **options):
    weights = (q @ k.mT * q.shape[-1] ** -0.5).exp()
    return weights / weights.sum(-1, keepdim=True) @ v


def squeezed(q, k, v, **options):
    return attend(q, k, v, **options).squeeze(2)


def highest_of_none(q, k, v, **options):
    return attend(q, k, v, **options) + 0 * k.amax(dim=2, keepdim=True)


def contiguous_only(q, k, v, **options):
    b, h, n, c = q.shape
    return attend(q.view(b * h, n, c).view(b, h, n, c), k, v, **options)


def noisy(q, k, v, **options):
    return attend(q, k, v, **options) + 1e-12 * torch.randn(())


def dropout_without_rescaling(q, k, v, *, dropout=0.0, **options):
    return attend(q, k, v, dropout=dropout, **options) * (1 - dropout)


def same_dropout_for_all(q, k, v, *, dropout=0.0, **options):
    out = attend(q, k, v, **options)
    return out if not dropout else out * (torch.rand(out.shape[1:]) > dropout) / (1 - dropout)


def dropout_at_zero(q, k, v, *, dropout=0.0, **options):
    return attend(q, k, v, dropout=max(dropout, 0.1), **options)


def detached_keys(q, k, v, **options):
    return attend(q, k.detach(), v, **options)


def gradient_off_by_a_percent(q, k, v, **options):
    return attend(q, 1.01 * k - 0.01 * k.detach(), v, **options)


def other_when_compiled(q, k, v, *, mask=None):
    return plain(q, k, v) if torch.compiler.is_compiling() else plain(q, k, v, mask=mask)


def depends_on_numbers(q, k, v):
    return plain(q, k, v) if float(q.sum()) > -1e9 else q


def dropout_shared_by_heads(q, k, v, *, dropout=0.0, **options):
    if not dropout:
        return attend(q, k, v, **options)
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
    return weights * (torch.rand(weights[:, :1].shape) > dropout) / (1 - dropout) @ v


def dropout_of_outputs(q, k, v, *, dropout=0.0, **options):
    return F.dropout(attend(q, k, v, **options), dropout)


def dropout_alike_in_every_call(q, k, v, *, dropout=0.0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return attend(q, k, v, dropout=dropout, **options)


def gradient_forgets_dropout(q, k, v, *, dropout=0.0, **options):
    out = attend(q, k, v, **options)
    return out if not dropout else out + (attend(q, k, v, dropout=dropout, **options) - out).detach()


def mask_of_the_first_keys(q, k, v, *, mask=None, **options):
    mask = mask if mask is None else mask | (torch.arange(k.shape[2]) >= 64)
    return attend(q, k, v, mask=mask, **options)


def bias_of_the_first_queries(q, k, v, *, bias=None, **options):
    if bias is not None and bias.shape[2] > 64:
        bias = torch.cat([bias[:, :, :64], torch.zeros_like(bias[:, :, 64:])], dim=2)
    return attend(q, k, v, bias=bias, **options)


def gradients_of_the_first_keys(q, k, v, **options):
    k, v = (torch.cat([t[:, :, :64], t[:, :, 64:].detach()], dim=2) for t in (k, v))
    return attend(q, k, v, **options)


def bias_of_keys_for_the_first_query(q, k, v, *, bias=None, **options):
    if bias is not None and bias.shape[2] == 1 and q.shape[2] > 1:
        bias = torch.cat([bias, torch.zeros_like(bias).expand(-1, -1, q.shape[2] - 1, -1)], dim=2)
    return attend(q, k, v, bias=bias, **options)


def bias_of_samples_does_not_learn(q, k, v, *, bias=None, **options):
    return attend(q, k, v, bias=bias.detach() if bias is not None and len(bias) > 1 else bias, **options)


def ignored_mask_of_queries(q, k, v, *, mask=None, **options):
    if mask is not None and mask.ndim == 4 and mask.shape[2] > 1 and mask.shape[3] == 1 and k.shape[2] > 1:
        mask = mask | True
    return attend(q, k, v, mask=mask, **options)
