"""Functions of attention."""

import warnings

import torch
import torch.nn.functional as F
from local_attention import LocalAttention
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.bert.modeling_bert import eager_attention_forward
from x_transformers.attend import Attend

from core import attend
from core.sparse import Local
from core.testing import AttentionSubject
from core.testing.recognise import subject_of

from .shapes import NAN

NAN_ROWS = {"masked-rows-are-zero": "not promised: the softmax of -inf alone is NaN"}
MEAN_ROWS = {
    "masked-rows-are-zero": "not promised: forbidden logits are the lowest number, and the softmax of those is a mean"
}
AUTOPAD = dict.fromkeys(
    ("length-one", "many-tokens-agree-with-reference"),  # of which there is no multiple of the window
    "found here: docs/findings/local-attention-autopad.md",
)
NO_BACKWARD = "not promised: FlexAttention has no backward pass on CPUs"


def sdpa(q, k, v, *, mask=None, bias=None, dropout=0.0, scale=None) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention."""
    if mask is not None and mask.ndim == 2:
        mask = mask[:, None, None]
    if bias is not None and mask is not None:
        mask = bias.masked_fill(~mask, -torch.inf)
    return F.scaled_dot_product_attention(q, k, v, bias if mask is None else mask, dropout, scale=scale)


def causal_sdpa(q, k, v) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def flex(q, k, v, *, mask=None, bias=None, scale=None) -> Tensor:
    """torch's FlexAttention, not compiled; mask and bias by its score function."""
    if mask is not None and mask.ndim == 2:
        mask = mask[:, None, None]
    shape = *q.shape[:3], k.shape[2]
    added = torch.zeros(shape, dtype=q.dtype)
    if bias is not None:
        added = added + bias
    if mask is not None:
        added = added.masked_fill(~mask, -torch.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is slow where it is not compiled
        return flex_attention(q, k, v, lambda score, b, h, i, j: score + added[b, h, i, j], scale=scale)


def local(q, k, v, *, mask=None, causal=False) -> Tensor:
    """lucidrains' local-attention: each window of 8 sees itself and its neighbours."""
    attention = LocalAttention(
        8,
        causal=causal,
        look_backward=1,
        look_forward=0 if causal else 1,
        autopad=True,
        use_rotary_pos_emb=False,
        exact_windowsize=False,
    )
    flat = [t.flatten(0, 1) for t in (q, k, v)]
    mask = None if mask is None else mask.repeat_interleave(q.shape[1], 0)
    return attention(*flat, mask=mask).unflatten(0, q.shape[:2])


def causal_local(q, k, v, *, mask=None) -> Tensor:
    return local(q, k, v, mask=mask, causal=True)


def windows(n: int) -> Tensor:
    window = torch.arange(n) // 8
    return (window[:, None] - window).abs() <= 1


def causal_windows(n: int) -> Tensor:
    window = torch.arange(n) // 8
    return windows(n).tril() & ((window[:, None] - window) <= 1)


def x_attend(q, k, v, *, mask=None) -> Tensor:
    """x-transformers' Attend, written out."""
    return Attend(flash=False)(q, k, v, mask=_of_pairs(mask))[0]


def x_attend_flash(q, k, v, *, mask=None) -> Tensor:
    return Attend(flash=True)(q, k, v, mask=_of_pairs(mask))[0]


def _of_pairs(mask: Tensor | None) -> Tensor | None:
    return mask[:, None, None] if mask is not None and mask.ndim == 2 else mask


DENSE = {"mask", "pairs", "bias", "scale", "double", "half", "cross", "equivariant", "empty", "cost"}
ATTENTIONS = {
    "ours_attend": AttentionSubject(attend, name="ours: attend", claims=DENSE | {"dropout", "pattern"}),
    "ours_local": AttentionSubject(
        lambda q, k, v, *, mask=None: attend(q, k, v, mask=mask, pattern=Local(64)),
        name="ours: attend, Local(64)",
        claims={"mask", "double", "half"},
        length=160,
        allowed=Local(64).dense,
    ),
    "torch_sdpa": AttentionSubject(sdpa, name="torch: SDPA", claims=DENSE | {"dropout"}, expected_failures=NAN),
    "torch_sdpa_causal": AttentionSubject(
        causal_sdpa, name="torch: SDPA, is_causal", claims={"causal", "double", "half", "empty", "cost"}
    ),
    "torch_flex": AttentionSubject(
        flex,
        name="torch: FlexAttention, eager",
        claims=DENSE - {"cost", "empty"},
        expected_failures=dict.fromkeys(
            (
                "bias-agrees-with-reference",
                "scale-agrees-with-reference",
                "many-tokens-agree-with-reference",
                "gradients-agree-with-reference",
                "gradcheck",
                "masked-rows-are-zero",
                "masked-never-leaks",
                "half-precision-error",
                "large-logits-are-stable",
                "strides-change-nothing",
                "deterministic",
            ),
            NO_BACKWARD,
        ),
    ),
    "hf_eager": subject_of(
        eager_attention_forward,
        "transformers: eager attention",
        claims=DENSE - {"empty"} | {"dropout"},
        expected_failures=NAN | NAN_ROWS,
    ),
    "hf_sdpa": subject_of(
        sdpa_attention_forward,
        "transformers: sdpa attention",
        claims=DENSE - {"empty"} | {"dropout"},
        expected_failures=NAN,
    ),
    "x_attend": AttentionSubject(
        x_attend,
        name="x-transformers: Attend",
        claims={"mask", "pairs", "half", "cross", "equivariant"},
        expected_failures=NAN,
    ),
    "x_attend_flash": AttentionSubject(
        x_attend_flash,
        name="x-transformers: Attend, flash",
        claims={"mask", "pairs", "double", "half", "cross", "equivariant"},
        expected_failures=NAN,
    ),
    "local_attention": AttentionSubject(
        local,
        name="local-attention",
        claims={"mask", "half"},
        length=24,
        allowed=windows,
        expected_failures=NAN | MEAN_ROWS | AUTOPAD,
    ),
    "local_attention_causal": AttentionSubject(
        causal_local,
        name="local-attention, causal",
        claims={"mask", "half"},
        length=24,
        allowed=causal_windows,
        expected_failures=NAN | MEAN_ROWS,
    ),
}
