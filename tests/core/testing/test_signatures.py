"""Signatures of the field are called as they should be, without adapters; others get one sentence."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core import Encoder, EncoderConfig, UserError
from core.testing import AttentionSubject, EncoderSubject, ModelSubject, check
from core.testing.recognise import subject_of

# --- Attention --------------------------------------------------------------------------------------------------------


def additive(query, key, value, attention_mask=None, scaling=None):
    """transformers' additive masks, of four axes."""
    assert attention_mask is None or attention_mask.is_floating_point()
    return F.scaled_dot_product_attention(query, key, value, attention_mask, scale=scaling)


def padding(q, k, v, key_padding_mask=None, is_causal=False):
    mask = None if key_padding_mask is None else ~key_padding_mask[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal)


def lengths_only(q, k, v, lengths=None, dropout_p=0.0):
    mask = None if lengths is None else (torch.arange(k.shape[2]) < lengths[:, None])[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, mask, dropout_p)


def in_rows(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None):
    """As flash-attn's varlen function: tokens of all samples one behind the other, "t h c"."""
    assert int(cu_seqlens_k.diff().max()) == max_seqlen_k and cu_seqlens_q.dtype == torch.int32
    parts = [t.split(cu.diff().tolist()) for t, cu in ((q, cu_seqlens_q), (k, cu_seqlens_k), (v, cu_seqlens_k))]
    each = [
        F.scaled_dot_product_attention(*(t.transpose(0, 1) for t in qkv), scale=softmax_scale)
        for qkv in zip(*parts, strict=True)
    ]
    return torch.cat([out.transpose(0, 1) for out in each])


def of_a_module(module, query, key, value, attention_mask, scaling, dropout=0.0, **options):
    """As transformers' functions of attention: "b n h c" comes out, and the weights."""
    weights = (query @ key.mT * scaling + (0 if attention_mask is None else attention_mask)).softmax(-1)
    weights = F.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2), weights


ATTENTIONS = {
    F.scaled_dot_product_attention: {"mask", "pairs", "bias", "dropout", "scale", "is_causal"},
    additive: {"mask", "pairs", "bias", "scale"},
    padding: {"mask", "is_causal"},
    lengths_only: {"mask", "dropout"},
    in_rows: {"mask", "scale"},
    of_a_module: {"mask", "pairs", "bias", "scale", "dropout"},
}
NAN_ROWS = {"masked-rows-are-zero", "masked-never-leaks", "half-precision-error"}  # of a softmax written out


@pytest.mark.parametrize("attention", ATTENTIONS, ids=lambda function: function.__name__)
def test_attentions(attention):
    subject = subject_of(attention)
    assert isinstance(subject, AttentionSubject)
    assert subject.claimed & {"mask", "pairs", "bias", "dropout", "scale", "is_causal"} == ATTENTIONS[attention]
    failed = {result.check for result in check(subject, without_graphs(subject)).failed}
    assert failed <= (NAN_ROWS if attention is of_a_module else {"masked-never-leaks"})


def wrong_polarity(q, k, v, key_padding_mask=None):
    mask = None if key_padding_mask is None else key_padding_mask[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, mask)


def test_a_recognised_mask_is_checked():
    failed = {result.check for result in check(wrong_polarity).failed}
    assert {"mask-agrees-with-reference", "padding-changes-nothing"} <= failed


# --- Modules ----------------------------------------------------------------------------------------------------------


def layer(**options):
    return nn.TransformerEncoderLayer(16, 2, 32, 0.0, **options)


class Wrapped(nn.Module):
    """A layer under another signature."""

    def __init__(self):
        super().__init__()
        self.layer = layer(batch_first=True)

    def run(self, x, mask):
        return self.layer(x, src_key_padding_mask=None if mask is None else ~mask)


class ZeroOrOne(Wrapped):
    def forward(self, hidden_states, attention_mask=None):
        assert attention_mask is None or attention_mask.shape == hidden_states.shape[:2]
        return self.run(hidden_states, None if attention_mask is None else attention_mask != 0)


class FourAxes(Wrapped):
    """As transformers' stacks of layers: an additive mask "b 1 1 n", and a tuple comes out."""

    def forward(self, hidden_states, attention_mask=None):
        assert attention_mask is None or (attention_mask.ndim == 4 and attention_mask.is_floating_point())
        return (self.run(hidden_states, None if attention_mask is None else attention_mask[:, 0, 0] == 0),)


class Lengths(Wrapped):
    def forward(self, x, lengths):
        return self.run(x, torch.arange(x.shape[1]) < lengths[:, None]), lengths


class InRows(Wrapped):
    def forward(self, x, cu_seqlens, max_seqlen):
        return torch.cat([self.run(part[None], None)[0] for part in x.split(cu_seqlens.diff().tolist())])


class Classifier(Wrapped):
    """Of token ids; a vector for each sample."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, 3)

    def forward(self, input_ids, attention_mask=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x = self.run(self.embed(input_ids), mask != 0) * mask[..., None]
        return self.head(x.sum(1) / mask.sum(1, keepdim=True))


class PoolsPadding(Classifier):
    def forward(self, input_ids, attention_mask=None):
        mask = None if attention_mask is None else attention_mask != 0
        return self.head(self.run(self.embed(input_ids), mask).mean(1))


MODULES = {
    "MultiheadAttention": lambda: nn.MultiheadAttention(16, 2),
    "MultiheadAttention, batch first": lambda: nn.MultiheadAttention(16, 2, batch_first=True),
    "TransformerEncoderLayer": layer,
    "an instance": layer(batch_first=True),
    "TransformerEncoder": lambda: nn.TransformerEncoder(layer(batch_first=True), 2, enable_nested_tensor=False),
    "0 and 1": ZeroOrOne,
    "four axes": FourAxes,
    "lengths": Lengths,
    "in rows": InRows,
    "token ids": Classifier,
    "no mask": lambda: nn.Linear(16, 16),
}
# torch's softmax of -inf alone is NaN, and 0 times NaN, too; its fast path rounds more than its modules do.
TORCHS = {"masked-never-leaks", "fully-masked-sample-is-harmless", "half-precision-error"}


def without_graphs(subject):
    from core.testing import CHECKS

    slow = {"compiles", "exports", "overfits-one-batch"}
    return {each.id for each in CHECKS[subject.kind]} - slow


@pytest.mark.parametrize("name", MODULES)
def test_modules(name):
    subject = subject_of(MODULES[name])
    assert isinstance(subject, ModelSubject if name == "token ids" else EncoderSubject)
    assert name == "token ids" or ("mask" in subject.claimed) == (name != "no mask")
    assert name != "in rows" or "packing" in subject.claimed
    wrong = {result.check: result.message for result in check(subject, without_graphs(subject)).failed}
    assert wrong.keys() <= TORCHS, wrong


def test_our_encoder_is_given_tokens_of_its_width():
    subject = subject_of(lambda: Encoder(EncoderConfig(dim=24, depth=1, heads=2)))
    assert isinstance(subject, EncoderSubject) and subject.dim == 24
    assert not check(subject, {"shapes-and-dtypes", "padding-changes-nothing"}).failed


def test_a_model_that_pools_padding_is_found_without_saying_how_it_is_called():
    failed = {result.check for result in check(PoolsPadding, only={"padding-changes-nothing", "gradcheck"}).failed}
    assert failed == {"padding-changes-nothing"}


# --- Neither ----------------------------------------------------------------------------------------------------------


class Graph(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)

    def forward(self, nodes, edges, weights):
        return super().forward(nodes[edges]) * weights


def with_a_table(q, k, v, table):
    return q + table


@pytest.mark.parametrize(
    "target, words",
    [
        (
            Graph,
            "Graph is called as forward(nodes, edges, weights), which is no signature that the kit knows (it raises",
        ),
        (with_a_table, "with_a_table(q, k, v, table) is no signature that the kit knows: write def attention(q, k, v,"),
        (
            nn.Linear,
            "Linear can't be made of nothing: write def make(): return Linear(in_features=..., out_features=..",
        ),
        (3, "int is neither a Subject nor a function of q, k, v, a module, or a function that makes one."),
        (lambda: 3, "<lambda>() makes something of type int, not a module."),
    ],
)
def test_what_is_not_recognised_gets_one_sentence(target, words):
    with pytest.raises(UserError, match=re.escape(words)):
        subject_of(target)


def test_a_device_that_is_not_there():
    with pytest.raises(UserError, match="There is no device 'nowhere' here"):
        subject_of(padding, device="nowhere")
