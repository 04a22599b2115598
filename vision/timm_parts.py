"""The parts that timm's families of ViT share, read into our config; what we do not support is named."""

from typing import Any

from jaxtyping import Shaped
from timm.data.config import resolve_data_config
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelScalingBlock
from torch import Tensor, nn

from core import EncoderConfig, Pair, Pool, UserError
from core.encoder.config import Activation

from .model import Preprocess
from .timm_blocks import ATTENTION, NORM_ORDER, check, usual

ACTIVATIONS: dict[str, Activation] = {
    "GELU": "gelu",
    "GELUTanh": "gelu_tanh",
    "QuickGELU": "quick_gelu",
    "ReLU": "relu",
}
GATED: dict[str, Activation] = {"SiLU": "swiglu", "GELU": "geglu"}
POOLS: dict[str, Pool] = {"token": "cls", "avg": "mean", "max": "max", "map": "attention"}


def pool_settings(module: Any) -> dict[str, Any]:
    """Fields of ViTConfig: how tokens become one vector, and the number of classes."""
    check(module.global_pool in POOLS, f"pooling {module.global_pool!r}")
    distilled = hasattr(module, "dist_token")
    check(not distilled or module.global_pool == "token", "a distilled model that pools patches")
    pool = "each_prefix" if distilled else POOLS[module.global_pool]
    # An Eva's pool by attention attends to all tokens, the mean is that of the patches.
    with_prefix = getattr(module, "pool_include_prefix", isinstance(module, Eva) and pool == "attention")
    check(pool == "attention" or not with_prefix, "pooling over prefix tokens")
    shape = {}
    if pool == "attention":
        block: Any = usual(module.blocks[0])
        own: Any = module.attn_pool
        plain = type(block.mlp).__name__ == "Mlp" and block.mlp.fc2.bias is not None
        check(plain and type(own.mlp.act) is type(block.mlp.act), "pooling by attention with another kind of MLP")
        if own.num_heads != block.attn.num_heads:
            shape["pool_heads"] = own.num_heads
        if own.mlp.fc2.in_features != block.mlp.fc2.in_features:
            shape["pool_mlp_dim"] = own.mlp.fc2.in_features
    return {
        "pool": pool,
        **shape,
        "pool_prefix": with_prefix if pool == "attention" else True,
        "head_norm": not isinstance(module.fc_norm, nn.Identity),
        "classes": module.num_classes,
    }


def encoder_config(module: Any) -> EncoderConfig:
    kind = type(module.blocks[0])
    check(kind in NORM_ORDER, f"blocks of type {kind.__name__}")
    block = usual(module.blocks[0])
    activation = type(block.mlp.act).__name__
    gated = hasattr(block.mlp, "fc1_g") or type(block.mlp).__name__ == "GluMlp"
    activations = GATED if gated else ACTIVATIONS
    check(activation in activations, f"{'gated ' if gated else ''}activation {activation}")
    check(not getattr(block.mlp, "gate_last", False), "an MLP whose second half is the gate")
    attention = type(block.attn).__name__
    check(attention in ATTENTION, f"attention of type {attention}")
    all_norms: list[Any] = [m for m in module.modules() if "Norm" in type(m).__name__ and hasattr(m, "eps")]
    norms = {type(norm).__name__ for norm in all_norms}
    check(norms in ({"LayerNorm"}, {"RmsNorm"}), f"norms {', '.join(sorted(norms))}")
    check(len({norm.eps for norm in all_norms}) == 1, "norms that add different numbers to the variance")
    kv_heads = tuple(getattr(each.attn, "num_kv_heads", block.attn.num_heads) for each in map(usual, module.blocks))
    qkv = block.attn.qkv or block.attn.q_proj
    own_biases, shared_biases = getattr(block.attn, "window_size", None), getattr(module, "rel_pos_bias", None)
    check(own_biases is None or shared_biases is None, "relative positions both of a layer and of all layers")
    check(getattr(block.attn, "gate", None) is None, "gated attention")
    if hasattr(block, "gamma_1"):
        scale = block.gamma_1
    else:
        scale = getattr(getattr(block, "ls1", None), "gamma", None)
    return EncoderConfig(
        dim=module.embed_dim,
        depth=len(module.blocks),
        heads=block.attn.num_heads,
        head_dim=block.attn.proj.in_features // block.attn.num_heads,
        kv_heads=None if set(kv_heads) == {block.attn.num_heads} else kv_heads,
        mlp_dim=block.mlp.fc2.in_features,
        activation=activations[activation],
        norm="rmsnorm" if norms == {"RmsNorm"} else "layernorm",
        norm_order=NORM_ORDER[kind],
        parallel=kind is ParallelScalingBlock,
        norm_eps=block.norm1.eps,
        input_norm=_has(module, "norm_pre"),
        final_norm=not isinstance(module.norm, nn.Identity),
        qkv_bias=qkv.bias is not None or getattr(block.attn, "q_bias", None) is not None,
        out_bias=block.attn.proj.bias is not None,
        mlp_bias=block.mlp.fc2.bias is not None,
        qk_norm=_has(block.attn, "q_norm"),
        attention_inner_norm=_has(block.attn, "norm"),
        mlp_inner_norm=_has(block.mlp, "norm"),
        relative_bias=own_biases or getattr(shared_biases, "window_size", None),
        relative_bias_shared=shared_biases is not None,
        layer_scale=None if scale is None else 1e-5,
        **rotary_settings(module),
    )


def _has(module: Any, norm: str) -> bool:
    return not isinstance(getattr(module, norm, nn.Identity()), nn.Identity)


def rotary_settings(module: Any) -> dict[str, Any]:
    """Fields of EncoderConfig for rotary positions; `rotary_features` says how their weights differ."""
    rope: Any = getattr(module, "rope", None)
    if rope is None:
        return {}
    kind = type(rope).__name__
    unit, learned = kind == "RotaryEmbeddingDinoV3", kind == "RotaryEmbeddingMixed"
    check(unit or learned or kind == "RotaryEmbeddingCat", f"rotary positions of type {kind}")
    if unit:
        check(rope.normalize_coords == "separate", "rotary positions in these coordinates")
    elif not learned:
        check(rope.grid_type == "index" and not rope.in_pixels, "rotary positions in these coordinates")
    theta: float | None = rope.temperature
    if theta is None:
        raise UserError("from_timm does not support rotary positions of this schedule.")
    reference = getattr(rope, "ref_feat_shape", None)
    return {
        "rotary": "2d",
        "rotary_theta": float(theta),
        "rotary_learned": learned,
        "rotary_offset": float(getattr(rope, "grid_offset", 0.0)),
        "rotary_unit": unit,
        "rotary_reference": None if reference is None else tuple(reference),
    }


def rotary_features(module: Any) -> list[int] | None:
    """Which of timm's features of a head is each of ours, if the order differs.

    Ours rotates feature i with i + c / 2, by the rows' angles before the columns'. timm can rotate neighbours, and let
    columns come first. Attention weights are the same in any order that queries and keys share.
    """
    rope: Any = getattr(module, "rope", None)
    if rope is None:
        return None
    learned = type(rope).__name__ == "RotaryEmbeddingMixed"
    dim = rope.dim // rope.num_heads if learned else rope.dim
    half = dim // 2
    pairs = list(range(half))
    if rope.grid_indexing == "xy" and not learned:
        pairs = pairs[half // 2 :] + pairs[: half // 2]
    halves = not learned and rope.rotate_half
    first = pairs if halves else [2 * pair for pair in pairs]
    order = first + [feature + (half if halves else 1) for feature in first]
    return None if order == list(range(dim)) else order


def rotary_frequencies(module: Any) -> dict[str, Shaped[Tensor, "..."]]:
    """Learned rotary frequencies under our keys: timm has those of all layers in one, and maybe columns before rows."""
    rope: Any = getattr(module, "rope", None)
    if not hasattr(rope, "freqs"):
        return {}
    frequencies = rope.freqs.flip(0) if rope.grid_indexing == "xy" else rope.freqs
    return {f"encoder.blocks.{layer}.rotary.weight": own for layer, own in enumerate(frequencies.unbind(1))}


def preprocess(module: Any) -> Preprocess:
    data = resolve_data_config(model=module)
    return Preprocess(
        mean=tuple(map(float, data["mean"])),
        std=tuple(map(float, data["std"])),
        crop=float(data["crop_pct"]),
        crop_mode=data["crop_mode"],
        interpolation=data["interpolation"],
    )


def simple(size: Any) -> Pair:
    rows, columns = size
    return rows if rows == columns else (rows, columns)
