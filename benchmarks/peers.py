"""Attention, encoders and models of other libraries, each with its claims; beside them, ours.

`python -m core.testing benchmarks.peers:NAME` checks one, `python -m benchmarks.scoreboard` all. What a library's own
documentation does not promise is not claimed here.
"""

import warnings

import timm
import torch
import torch.nn.functional as F
import transformers
from local_attention import LocalAttention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from x_transformers import Encoder as XEncoder

from core import Encoder, EncoderConfig, attend
from core.sparse import Local
from core.testing import ENCODER, MODEL, AttentionSubject, EncoderSubject, ModelSubject, Subject
from text import TextConfig, TextEncoder
from vision import ViT, ViTConfig

from .loop_peers import LOOPS

DIM, HEADS, CLASSES = 16, 2, 3
NO_BACKWARD = "FlexAttention has no backward pass on CPUs"
ASKED = ENCODER - {"compile", "export", "empty"} | {"equivariant"}  # nobody else promises to take empty batches

# --- Attention --------------------------------------------------------------------------------------------------------


def sdpa(q, k, v, *, mask=None, bias=None, dropout=0.0, scale=None) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention."""
    if mask is not None and mask.ndim == 2:
        mask = mask[:, None, None]
    if bias is not None and mask is not None:
        mask = bias.masked_fill(~mask, -torch.inf)
    return F.scaled_dot_product_attention(q, k, v, bias if mask is None else mask, dropout, scale=scale)


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


def local(q, k, v, *, mask=None) -> Tensor:
    """lucidrains' local-attention: each window of 8 sees itself and its neighbours."""
    attention = LocalAttention(
        8, look_backward=1, look_forward=1, autopad=True, use_rotary_pos_emb=False, exact_windowsize=False
    )
    flat = [t.flatten(0, 1) for t in (q, k, v)]
    mask = None if mask is None else mask.repeat_interleave(q.shape[1], 0)
    return attention(*flat, mask=mask).unflatten(0, q.shape[:2])


def windows(n: int) -> Tensor:
    window = torch.arange(n) // 8
    return (window[:, None] - window).abs() <= 1


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
    "torch_sdpa": AttentionSubject(sdpa, name="torch: SDPA", claims=DENSE | {"dropout"}),
    "torch_flex": AttentionSubject(
        flex,
        name="torch: FlexAttention, eager",
        claims=DENSE - {"cost", "empty"},
        expected_failures=dict.fromkeys(
            (
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
    "local_attention": AttentionSubject(
        local, name="local-attention", claims={"mask", "half"}, length=24, allowed=windows
    ),
}

# --- Encoders ---------------------------------------------------------------------------------------------------------


def with_padding_mask(module: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    return module(x, src_key_padding_mask=None if mask is None else ~mask)


def self_attention(module: nn.MultiheadAttention, x: Tensor, mask: Tensor | None = None) -> Tensor:
    forbidden = None if mask is None else ~mask
    return module(x, x, x, key_padding_mask=forbidden, need_weights=False)[0]


def with_mask(module: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    return module(x, mask=mask)


def torch_layers() -> nn.Module:
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 2 * DIM, 0.0, "gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def our_layers() -> Encoder:
    return Encoder(EncoderConfig(dim=DIM, depth=2, heads=HEADS, mlp_dim=2 * DIM))


ENCODERS = {
    "ours_encoder": EncoderSubject(our_layers, name="ours: Encoder", claims=ASKED | {"empty", "zeros", "sparsify"}),
    "torch_encoder": EncoderSubject(
        torch_layers, name="torch: nn.TransformerEncoder", call=with_padding_mask, claims=ASKED
    ),
    "torch_multihead": EncoderSubject(
        lambda: nn.MultiheadAttention(DIM, HEADS, batch_first=True),
        name="torch: nn.MultiheadAttention",
        call=self_attention,
        claims=ASKED,
    ),
    "x_encoder": EncoderSubject(
        lambda: XEncoder(dim=DIM, depth=2, heads=HEADS, attn_dim_head=8, attn_flash=True),
        name="x-transformers: Encoder",
        call=with_mask,
        claims=ASKED,
    ),
    "timm_block": EncoderSubject(lambda: Block(DIM, HEADS), name="timm: ViT's Block", claims=ASKED - {"mask"}),
}

# --- Models -----------------------------------------------------------------------------------------------------------

OURS = MODEL - {"compile", "export"} | {"sparsify"}  # tests/test_conformance.py asks the rest
PROMISED = MODEL - {"double", "empty", "compile", "export"}
WORDS = 50
IDS = torch.arange(18).reshape(2, 9) % (WORDS - 1) + 1
REAL = torch.arange(9) < torch.tensor([[9], [5]])
LONGER = F.pad(IDS.where(REAL, 0), (0, 3)), F.pad(REAL, (0, 3))
OTHERS = IDS.where(REAL, 7), REAL
IMAGES = torch.linspace(-2, 2, 2 * 3 * 16 * 16).sin().reshape(2, 3, 16, 16)
SHAPE = {"hidden_size": DIM, "num_hidden_layers": 2, "num_attention_heads": HEADS, "intermediate_size": 2 * DIM}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def words(module: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Of transformers' models the mean of the last hidden states, padding left out."""
    x = module(ids, attention_mask=mask.long()).last_hidden_state.where(mask[..., None], 0)
    return x.sum(dim=1) / mask.sum(dim=1, keepdim=True)


def logits(module: nn.Module, inputs: Tensor) -> Tensor:
    return module(inputs).logits


def text_model(name: str, factory, call=words, claims=PROMISED) -> ModelSubject:
    return ModelSubject(factory, (IDS, REAL), name=name, call=call, padded=LONGER, altered=OTHERS, claims=claims)


def bert() -> nn.Module:
    config = transformers.BertConfig(vocab_size=WORDS, max_position_embeddings=16, **SHAPE, **NO_DROPOUT)
    return transformers.BertModel(config, add_pooling_layer=False)


def modernbert() -> nn.Module:
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
    return transformers.ModernBertModel(transformers.ModernBertConfig(vocab_size=WORDS, **SHAPE, **special))


def vit() -> nn.Module:
    config = transformers.ViTConfig(image_size=16, patch_size=8, num_labels=CLASSES, **SHAPE, **NO_DROPOUT)
    return transformers.ViTForImageClassification(config)


def ast() -> nn.Module:
    config = transformers.ASTConfig(max_length=32, num_mel_bins=16, patch_size=8, num_labels=CLASSES, **SHAPE)
    return transformers.ASTForAudioClassification(config)


def our_text() -> TextEncoder:
    encoder = EncoderConfig(dim=DIM, depth=2, heads=HEADS, mlp_dim=2 * DIM)
    return TextEncoder(TextConfig(vocab_size=WORDS, max_length=16, classes=CLASSES, encoder=encoder))


def our_vit() -> ViT:
    encoder = EncoderConfig(dim=DIM, depth=2, heads=HEADS, mlp_dim=2 * DIM)
    return ViT(ViTConfig(image_size=16, patch_size=8, classes=CLASSES, encoder=encoder))


def timm_vit() -> nn.Module:
    shape = {"img_size": 16, "patch_size": 8, "embed_dim": DIM, "depth": 2, "num_heads": HEADS, "num_classes": CLASSES}
    return timm.models.VisionTransformer(**shape)


MODELS = {
    "ours_text": text_model("ours: TextEncoder", our_text, None, OURS),
    "hf_bert": text_model("transformers: BertModel", bert),
    "hf_modernbert": text_model("transformers: ModernBertModel", modernbert),
    "ours_vit": ModelSubject(our_vit, (IMAGES,), name="ours: ViT", claims=OURS),
    "timm_vit": ModelSubject(timm_vit, (IMAGES,), name="timm: VisionTransformer", claims=PROMISED),
    "hf_vit": ModelSubject(
        vit, (IMAGES,), name="transformers: ViTForImageClassification", call=logits, claims=PROMISED
    ),
    "hf_ast": ModelSubject(
        ast,
        (torch.linspace(-2, 2, 2 * 32 * 16).sin().reshape(2, 32, 16),),
        name="transformers: ASTForAudioClassification",
        call=logits,
        claims=PROMISED,
    ),
}

PEERS = ATTENTIONS | ENCODERS | MODELS | LOOPS


def __getattr__(name: str) -> Subject:
    """Each by its name, for `python -m core.testing`."""
    if name not in PEERS:
        raise AttributeError(name)
    return PEERS[name]
