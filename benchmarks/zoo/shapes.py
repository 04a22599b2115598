"""What small models of the zoo have in common: sizes, and batches with padding."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from core import EncoderConfig
from core.testing import ENCODER, MODEL

DIM, HEADS, CLASSES, WORDS = 16, 2, 3, 50
ASKED = ENCODER - {"compile", "export", "empty"}  # nobody else promises to take empty batches
OURS = MODEL - {"compile", "export"} | {"sparsify"}  # tests/test_conformance.py asks the rest
PROMISED = MODEL - {"double", "empty", "compile", "export"}
SHAPE = {"hidden_size": DIM, "num_hidden_layers": 2, "num_attention_heads": HEADS, "intermediate_size": 2 * DIM}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TINY = EncoderConfig(dim=DIM, depth=2, heads=HEADS, mlp_dim=2 * DIM)
NAN = {"masked-never-leaks": "not promised: 0 times NaN is NaN, so that NaN behind a mask is not kept out"}
PAD = 1
IDS = torch.arange(18).reshape(2, 9) % (WORDS - 5) + 4
REAL = torch.arange(9) < torch.tensor([[9], [5]])
IMAGES = torch.linspace(-2, 2, 2 * 3 * 16 * 16).sin().reshape(2, 3, 16, 16)


def text_batches() -> dict[str, Any]:
    """Token ids and masks: the options of a ModelSubject. There is padding of its own id, as tokenizers add it."""
    ids = IDS.where(REAL, PAD)
    moved = [torch.stack([row.roll(-int(real.sum())) for row, real in zip(t, REAL, strict=True)]) for t in (ids, REAL)]
    return {
        "batch": (ids, REAL),
        "padded": (F.pad(ids, (0, 3), value=PAD), F.pad(REAL, (0, 3))),
        "altered": (IDS.where(REAL, 7), REAL),
        "emptied": (ids, REAL & torch.tensor([[False], [True]])),
        "left": (moved[0], moved[1]),
    }


def logits(module: nn.Module, inputs: Tensor) -> Tensor:
    return module(inputs).logits


def pooled(module: nn.Module, inputs: Tensor) -> Tensor:
    return module(inputs, **size_option(module)).pooler_output


def eager_pooled(module: nn.Module, *inputs: Tensor) -> Tensor:
    module.set_attn_implementation("eager")
    return pooled(module, *inputs)


def flex(module: nn.Module, call: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """transformers' model by FlexAttention, which is not compiled: that would take half a minute for each."""
    module.set_attn_implementation("flex_attention")
    with torch.compiler.set_stance("force_eager"):
        return call(module, *inputs)


def flex_ways(family: str, way: Callable[..., Tensor]) -> dict[str, Callable[..., Tensor]] | None:
    """Of the families whose models say that they have it; others leave the kernel as it is, or refuse."""
    known = getattr(getattr(transformers, f"{family}Model"), "_supports_flex_attn", False)
    return {"attn_implementation='flex_attention'": way} if known else None


def flex_pooled(module: nn.Module, *inputs: Tensor) -> Tensor:
    return flex(module, pooled, *inputs)


def flex_hidden(module: nn.Module, *inputs: Tensor) -> Tensor:
    return flex(module, hidden, *inputs)


def with_cache(module: nn.Module, parts: Sequence[Tensor]) -> Tensor:
    """The hidden states of a causal model of transformers, whose tokens come in parts."""
    outs, cache = [], None
    for part in parts:
        out = module(part, past_key_values=cache, use_cache=True)
        outs.append(out.last_hidden_state)
        cache = out.past_key_values
    return torch.cat(outs, dim=1)


def interpolating(module: nn.Module, rows: int, columns: int) -> nn.Module:
    """transformers' models interpolate positions at each call, if an argument asks for it."""
    module.interpolates = True
    return module


def hidden(module: nn.Module, inputs: Tensor) -> Tensor:
    return module(inputs, **size_option(module)).last_hidden_state


def size_option(module: nn.Module) -> dict[str, bool]:
    return {"interpolate_pos_encoding": True} if hasattr(module, "interpolates") else {}


def eager(module: nn.Module, *inputs: Tensor) -> Tensor:
    """transformers' model of images or sound, by its own kernel."""
    module.set_attn_implementation("eager")
    return hidden(module, *inputs)
