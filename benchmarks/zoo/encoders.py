"""Encoders of features "b n d"."""

from collections.abc import Sequence
from functools import partial

import torch
from local_attention.transformer import LocalMHA
from timm.models.vision_transformer import Block, ParallelScalingBlock, ResPostBlock
from torch import Tensor, nn
from torchaudio.models import Conformer
from x_transformers import Decoder as XDecoder
from x_transformers import Encoder as XEncoder

from core import Encoder
from core.testing import EncoderSubject

from .shapes import ASKED, DIM, HEADS, NAN, TINY

NO_POSITIONS = ASKED | {"equivariant", "left"}


def with_padding_mask(module: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    return module(x, src_key_padding_mask=None if mask is None else ~mask)


def self_attention(module: nn.MultiheadAttention, x: Tensor, mask: Tensor | None = None) -> Tensor:
    forbidden = None if mask is None else ~mask
    return module(x, x, x, key_padding_mask=forbidden, need_weights=False)[0]


def with_weights(module: nn.MultiheadAttention, x: Tensor, mask: Tensor | None = None) -> Tensor:
    return module(x, x, x, key_padding_mask=None if mask is None else ~mask)[0]


def with_mask(module: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    return module(x, mask=mask)


def with_lengths(module: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The longest sample must fill the batch."""
    lengths = torch.full(x.shape[:1], x.shape[1]) if mask is None else mask.sum(1)
    longest = int(lengths.max())
    return nn.functional.pad(module(x[:, :longest], lengths)[0], (0, 0, 0, x.shape[1] - longest))


def layer(**options) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(DIM, HEADS, 2 * DIM, 0.0, "gelu", batch_first=True, **options)


def torch_layers(norm_first: bool = True, nested: bool = False) -> nn.Module:
    return nn.TransformerEncoder(layer(norm_first=norm_first), 2, enable_nested_tensor=nested)


def conformer(**options) -> Conformer:
    return Conformer(DIM, HEADS, 2 * DIM, 2, 3, **options)


def x_encoder(**options) -> nn.Module:
    return XEncoder(dim=DIM, depth=2, heads=HEADS, attn_dim_head=8, **options)


IN_FP32 = NO_POSITIONS - {"double"}  # where its softmax is written out, it is in fp32
X_OPTIONS = {  # each with what it claims, beside a mask
    "x_encoder": ("", {"attn_flash": True}, NO_POSITIONS),
    "x_written_out": ("not flash", {}, IN_FP32),
    "x_rotary": ("rotary", {"rotary_pos_emb": True, "attn_flash": True}, ASKED | {"left"}),
    "x_alibi": ("ALiBi", {"alibi_pos_bias": True, "attn_flash": True}, ASKED | {"left"}),
    "x_relative": ("T5's relative bias", {"rel_pos_bias": True}, ASKED - {"double"} | {"left"}),
    "x_qk_norm": ("qk_norm", {"attn_qk_norm": True}, NO_POSITIONS),
    "x_glu": ("SwiGLU, RMSNorm", {"ff_glu": True, "ff_swish": True, "use_rmsnorm": True}, IN_FP32),
    "x_scalenorm": ("ScaleNorm", {"use_scalenorm": True}, IN_FP32),
    "x_residual": ("residual attention", {"residual_attn": True}, IN_FP32),
    "x_grouped": ("one key and value head", {"attn_kv_heads": 1, "attn_flash": True}, NO_POSITIONS),
    "x_talking": ("talking heads", {"attn_pre_talking_heads": True, "attn_post_talking_heads": True}, IN_FP32),
    "x_memory": ("memory keys and values", {"attn_num_mem_kv": 2, "attn_flash": True}, NO_POSITIONS),
    "x_sparse": ("top-k attention", {"attn_sparse_topk": 4}, IN_FP32),
    "x_gated": ("gated values", {"attn_gate_values": True}, IN_FP32),
    "x_macaron": ("macaron", {"macaron": True}, IN_FP32),
    "x_sandwich": ("sandwich norm", {"sandwich_norm": True}, IN_FP32),
    "x_shifted": ("shifted tokens", {"shift_tokens": 1}, ASKED - {"double"} | {"left"}),
}


def x_decoder() -> nn.Module:
    return XDecoder(dim=DIM, depth=2, heads=HEADS, attn_dim_head=8, rotary_pos_emb=True, attn_flash=True)


def x_cached(module: nn.Module, parts: Sequence[Tensor]) -> Tensor:
    """x-transformers takes the number of tokens that are new."""
    outs, cache = [], None
    for part in parts:
        out, cache = module(part, cache=cache, cache_age=part.shape[1], return_hiddens=True)
        outs.append(out)
    return torch.cat(outs, dim=1)


def local(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)


def local_cached(module: nn.Module, parts: Sequence[Tensor]) -> Tensor:
    """After the first part, tokens come one by one."""
    out, cache = module(parts[0], return_cache=True)
    outs = [out]
    for token in (token for part in parts[1:] for token in part.split(1, dim=1)):
        out, cache = module(token, cache=cache, return_cache=True)
        outs.append(out)
    return torch.cat(outs, dim=1)


AUTOCAST = "known: its fast path asks for the autocast of CUDA alone (pytorch/pytorch#132613, pytorch/pytorch#191916)"
FAST = "not promised: its fast path, which torch.no_grad takes, rounds more than its modules"
TOPK = {"length-one": "not promised: attn_sparse_topk can't be more than the number of keys"}
SHIFTED = dict.fromkeys(
    (
        "padding-changes-nothing",
        "left-padding-changes-nothing",
        "padding-changes-nothing-in-training",
        "mask-holds-in-half-precision",
        "many-tokens-padding-changes-nothing",
        "length-one",
    ),
    "found here: docs/findings/x-transformers-shift-tokens.md",
)
X_FAILURES = {"x_sparse": TOPK, "x_shifted": SHIFTED}
CONVOLVED = dict.fromkeys(
    ("batch-changes-nothing", "mask-holds-in-half-precision"),
    "known: convolutions and norms are over padding, too (pytorch/audio#4205)",
)
ENCODERS = {
    "ours_encoder": EncoderSubject(
        partial(Encoder, TINY), name="ours: Encoder", claims=NO_POSITIONS | {"empty", "zeros", "sparsify"}
    ),
    "torch_layer": EncoderSubject(
        layer,
        name="torch: nn.TransformerEncoderLayer",
        call=with_padding_mask,
        claims=NO_POSITIONS,
        expected_failures=NAN,
    ),
    "torch_encoder": EncoderSubject(
        torch_layers,
        name="torch: nn.TransformerEncoder, pre-norm",
        call=with_padding_mask,
        claims=NO_POSITIONS,
        expected_failures=NAN,
    ),
    "torch_nested": EncoderSubject(
        partial(torch_layers, norm_first=False, nested=True),
        name="torch: nn.TransformerEncoder, nested tensors",
        call=with_padding_mask,
        claims=NO_POSITIONS,
        expected_failures=NAN
        | dict.fromkeys(
            ("autocast-takes-half-inputs", "half-precision-error", "mask-holds-in-half-precision"), AUTOCAST
        ),
    ),
    "torch_multihead": EncoderSubject(
        partial(nn.MultiheadAttention, DIM, HEADS, batch_first=True),
        name="torch: nn.MultiheadAttention",
        call=self_attention,
        claims=NO_POSITIONS,
        ways={"need_weights=True": with_weights},
        expected_failures=NAN | {"half-precision-error": FAST},
    ),
    **{
        name: EncoderSubject(
            partial(x_encoder, **options),
            name="x-transformers: Encoder" + f", {what}" * bool(what),
            call=with_mask,
            claims=claims,
            expected_failures=NAN | X_FAILURES.get(name, {}),
        )
        for name, (what, options, claims) in X_OPTIONS.items()
    },
    "x_decoder": EncoderSubject(
        x_decoder,
        name="x-transformers: Decoder, rotary",
        call=with_mask,
        claims=ASKED | {"causal", "left"},
        cached=x_cached,
        expected_failures=NAN,
    ),
    "local_causal": EncoderSubject(
        partial(LocalMHA, dim=DIM, window_size=4, heads=HEADS, dim_head=8, causal=True, prenorm=True),
        name="local-attention: LocalMHA, causal",
        call=local,
        cached=local_cached,
        claims={"causal", "half", "checkpointing", "large"},
        expected_failures={"cached-equals-at-once": "found here: docs/findings/local-attention-cache.md"},
    ),
    "timm_block": EncoderSubject(
        partial(Block, DIM, HEADS), name="timm: ViT's Block", claims=NO_POSITIONS - {"mask", "left"}
    ),
    "timm_parallel": EncoderSubject(
        partial(ParallelScalingBlock, DIM, HEADS),
        name="timm: ParallelScalingBlock",
        claims=NO_POSITIONS - {"mask", "left"},
    ),
    "timm_respost": EncoderSubject(
        partial(ResPostBlock, DIM, HEADS), name="timm: ResPostBlock", claims=NO_POSITIONS - {"mask", "left"}
    ),
    "torchaudio_conformer": EncoderSubject(
        conformer,
        name="torchaudio: Conformer",
        call=with_lengths,
        claims=ASKED,
        cost_lengths=(128, 256, 512, 1024),
        expected_failures=NAN | CONVOLVED,
    ),
    "torchaudio_conformer_group": EncoderSubject(
        partial(conformer, use_group_norm=True),
        name="torchaudio: Conformer, group norm",
        call=with_lengths,
        claims=ASKED,
        cost_lengths=(128, 256, 512, 1024),
        expected_failures=NAN | CONVOLVED,
    ),
}
