"""Stock timm checkpoints on our ViT, with equal outputs."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import timm
import torch
from jaxtyping import Float, Shaped
from timm.layers import resample_patch_embed
from timm.models import adapt_input_conv
from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from core import EncoderConfig, Move, Pair, UserError, convert, load, pair, patch_grid, resize_positions
from core.hub import check_modality, read_settings

from .model import Preprocess, ViT, ViTConfig


def _rows(t: Tensor) -> Tensor:
    """timm's tables have a leading axis of 1."""
    return t[0]


def _qkv_bias(q: Tensor, v: Tensor) -> Tensor:
    """Eva has no bias on keys."""
    return torch.cat([q, torch.zeros_like(q), v])


KEYS = {
    "cls_token": Move("embed.class_token"),
    "reg_token": Move("embed.registers"),
    "pos_embed": Move("embed.positions.weight", _rows),
    "patch_embed.proj.{p}": "embed.projection.{p}",
    "norm_pre.{p}": "encoder.input_norm.{p}",
    "blocks.{i}.norm1.{p}": "encoder.blocks.{i}.attention_norm.{p}",
    "blocks.{i}.attn.qkv.{p}": "encoder.blocks.{i}.attention.qkv.{p}",
    ("blocks.{i}.attn.q_bias", "blocks.{i}.attn.v_bias"): Move("encoder.blocks.{i}.attention.qkv.bias", _qkv_bias),
    "blocks.{i}.attn.q_norm.{p}": "encoder.blocks.{i}.attention.q_norm.{p}",
    "blocks.{i}.attn.k_norm.{p}": "encoder.blocks.{i}.attention.k_norm.{p}",
    "blocks.{i}.attn.proj.{p}": "encoder.blocks.{i}.attention.out.{p}",
    "blocks.{i}.ls1.gamma": "encoder.blocks.{i}.attention_branch.scale",
    "blocks.{i}.ls2.gamma": "encoder.blocks.{i}.mlp_branch.scale",
    "blocks.{i}.gamma_1": "encoder.blocks.{i}.attention_branch.scale",
    "blocks.{i}.gamma_2": "encoder.blocks.{i}.mlp_branch.scale",
    "blocks.{i}.norm2.{p}": "encoder.blocks.{i}.mlp_norm.{p}",
    "blocks.{i}.mlp.fc1.{p}": "encoder.blocks.{i}.mlp.up.{p}",
    ("blocks.{i}.mlp.fc1_g.{p}", "blocks.{i}.mlp.fc1_x.{p}"): "encoder.blocks.{i}.mlp.up.{p}",
    "blocks.{i}.mlp.fc2.{p}": "encoder.blocks.{i}.mlp.down.{p}",
    "norm.{p}": "encoder.final_norm.{p}",
    "attn_pool.latent": "attention_pool.query",
    "attn_pool.q.{p}": "attention_pool.attention.q.{p}",
    "attn_pool.kv.{p}": "attention_pool.attention.kv.{p}",
    "attn_pool.proj.{p}": "attention_pool.attention.out.{p}",
    "attn_pool.norm.{p}": "attention_pool.norm.{p}",
    "attn_pool.mlp.fc1.{p}": "attention_pool.mlp.up.{p}",
    "attn_pool.mlp.fc2.{p}": "attention_pool.mlp.down.{p}",
    "fc_norm.{p}": "head_norm.{p}",
    "head.{p}": "head.{p}",
}

ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "ReLU": "relu"}
POOLS = {"token": "cls", "avg": "mean", "max": "max", "map": "attention"}


def from_timm(
    source: str | Path | nn.Module,
    *,
    image_size: Pair | None = None,
    patch_size: Pair | None = None,
    channels: int | None = None,
    classes: int | None = None,
) -> ViT:
    """Our ViT with the weights of a timm ViT, DeiT, DINO, CLIP or SigLIP tower.

    source: a timm model name, a local directory in timm's format, or a timm module in memory.
    image_size, patch_size, channels: resize what can be resized, as timm does.
    classes: another number of classes than the checkpoint's starts the head afresh, with a warning.
    """
    module = source
    if not isinstance(module, nn.Module):
        name = f"local-dir:{source}" if Path(source).is_dir() else str(source)
        with torch.device("meta"):
            timm_config(_create(name))  # refuses what has no equal here, before anything is downloaded
        module = _create(name, pretrained=True)
    stock = timm_config(module)
    config = replace(
        stock,
        image_size=stock.image_size if image_size is None else image_size,
        patch_size=stock.patch_size if patch_size is None else patch_size,
        channels=stock.channels if channels is None else channels,
        classes=stock.classes if classes is None else classes,
    )
    if channels not in (None, stock.channels):
        mean, std = stock.preprocess.mean, stock.preprocess.std
        grey = replace(stock.preprocess, mean=(sum(mean) / len(mean),), std=(sum(std) / len(std),))
        config = replace(config, preprocess=grey)
    weights = resize(convert(module.state_dict(), KEYS), stock, config)
    fresh = ()
    if config.classes != stock.classes:
        warnings.warn(
            f"The checkpoint's head has {stock.classes} classes, not {config.classes}: the head starts afresh.",
            stacklevel=2,
        )
        fresh = ("head.",)
        weights = {key: tensor for key, tensor in weights.items() if not key.startswith("head.")}
    model = ViT(config)
    load(model, weights, fresh=fresh)
    return model.eval()


def load_pretrained(source: str) -> ViT:
    """A model to start from: of a run, of a directory written by save_pretrained or by timm, or timm's by name."""
    check_modality(source, "vision")
    path = Path(source)
    if path.is_dir() and "architecture" not in read_settings(path / "config.json"):
        return ViT.from_run(path)
    if len(path.parts) > 1 and ":" not in source and not path.exists():
        raise UserError(f"--init {source}: there is no such directory (a model of the hub is written hf-hub:NAME).")
    try:
        return from_timm(source)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"--init {source}: {str(error).strip().splitlines()[0]}") from None


def resize(
    weights: Mapping[str, Shaped[Tensor, "..."]], old: ViTConfig, new: ViTConfig
) -> dict[str, Shaped[Tensor, "..."]]:
    """Weights of a ViT for another image size, patch size or number of channels."""
    weights = dict(weights)
    weights["embed.projection.weight"] = resize_patches(
        weights["embed.projection.weight"], pair(new.patch_size), new.channels
    )
    if (key := "embed.positions.weight") in weights:
        grids = [patch_grid(c.image_size, c.patch_size, c.stride) for c in (old, new)]
        prefix = old.class_token + old.registers if old.prefix_positions else 0
        weights[key] = resize_positions(weights[key], *grids, prefix=prefix)
    return weights


def resize_patches(
    kernel: Float[Tensor, "d c h w"], patch_size: tuple[int, int], channels: int
) -> Float[Tensor, "d c2 h2 w2"]:
    """A patch projection for another patch size (Beyer et al. 2023, section 3.4) or number of channels."""
    if kernel.shape[1] != channels:
        kernel = adapt_input_conv(channels, kernel)
    return resample_patch_embed(kernel, list(patch_size))


def _create(name: str, **kwargs) -> nn.Module:
    try:
        return timm.create_model(name, **kwargs)
    except Exception as error:  # timm's, the hub's, the network's
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"{name.removeprefix('local-dir:')} cannot be loaded: {reason}. Without a network give a directory, or an "
            "untrained module: timm.create_model(NAME)."
        ) from None


def timm_config(module: nn.Module) -> ViTConfig:
    """The config of a timm module, read off its parts; a part we have no equal of is an error that names it."""
    if not isinstance(module, VisionTransformer | Eva):
        raise ValueError(f"from_timm takes timm's VisionTransformer and Eva families, not {type(module).__name__}.")
    block = module.blocks[0]
    _check(type(block) in (TimmBlock, EvaBlock), f"blocks of type {type(block).__name__}")
    activation = type(block.mlp.act).__name__
    gated = hasattr(block.mlp, "fc1_g") or type(block.mlp).__name__ == "GluMlp"
    _check(activation in ACTIVATIONS or (gated and activation == "SiLU"), f"activation {activation}")
    _check(module.global_pool in POOLS, f"pooling {module.global_pool!r}")
    norms = {type(m).__name__ for m in module.modules() if "Norm" in type(m).__name__}
    _check(norms in ({"LayerNorm"}, {"RmsNorm"}), f"norms {', '.join(sorted(norms))}")
    for name in ("attn.norm", "mlp.norm"):
        _check(isinstance(block.get_submodule(name), nn.Identity), f"a norm inside {name.split('.')[0]}")
    _check(getattr(block.attn, "gate", None) is None, "gated attention")
    _check(getattr(module, "patch_embed", None) is not None and hasattr(module.patch_embed, "proj"), "this patch stem")
    _check(isinstance(module.patch_embed.norm, nn.Identity), "a norm after the patch projection")
    _check(not getattr(module, "pool_include_prefix", False), "pooling over prefix tokens")

    rotary = {}
    if getattr(module, "rope", None) is not None:
        rope = module.rope
        _check(type(rope).__name__ == "RotaryEmbeddingDinoV3", f"rotary positions of type {type(rope).__name__}")
        _check(rope.rotate_half and rope.normalize_coords == "separate" and not rope.grid_offset, "these coordinates")
        _check(rope.temperature is not None and not rope.aug_active, "this rotary schedule")
        rotary = {"rotary": "2d", "rotary_theta": rope.temperature, "rotary_unit": True}

    class_token = module.cls_token is not None
    registers = 0 if module.reg_token is None else module.reg_token.shape[1]
    if module.pos_embed is None:
        prefix_positions = False
    else:
        prefix_positions = module.pos_embed.shape[1] > module.patch_embed.num_patches
    scale = getattr(block, "gamma_1", None) if isinstance(block, EvaBlock) else getattr(block.ls1, "gamma", None)
    cfg = module.pretrained_cfg
    return ViTConfig(
        image_size=_simple(module.patch_embed.img_size),
        patch_size=_simple(module.patch_embed.patch_size),
        channels=module.patch_embed.proj.in_channels,
        classes=module.num_classes,
        class_token=class_token,
        registers=registers,
        positions="none" if module.pos_embed is None else "learned",
        prefix_positions=prefix_positions,
        patch_bias=module.patch_embed.proj.bias is not None,
        pool=POOLS[module.global_pool],
        head_norm=not isinstance(module.fc_norm, nn.Identity),
        encoder=EncoderConfig(
            dim=module.embed_dim,
            depth=len(module.blocks),
            heads=block.attn.num_heads,
            head_dim=block.attn.head_dim,
            mlp_dim=block.mlp.fc2.in_features,
            activation="swiglu" if gated else ACTIVATIONS[activation],
            norm="rmsnorm" if norms == {"RmsNorm"} else "layernorm",
            norm_eps=block.norm1.eps,
            input_norm=not isinstance(module.norm_pre, nn.Identity),
            final_norm=not isinstance(module.norm, nn.Identity),
            qkv_bias=block.attn.qkv.bias is not None or getattr(block.attn, "q_bias", None) is not None,
            out_bias=block.attn.proj.bias is not None,
            mlp_bias=block.mlp.fc2.bias is not None,
            qk_norm=not isinstance(block.attn.q_norm, nn.Identity),
            layer_scale=None if scale is None else 1e-5,
            **rotary,
        ),
        preprocess=Preprocess(
            mean=tuple(cfg["mean"]), std=tuple(cfg["std"]), crop=cfg["crop_pct"], interpolation=cfg["interpolation"]
        ),
    )


def _simple(size: tuple[int, int]) -> Pair:
    return size[0] if size[0] == size[1] else tuple(size)


def _check(served: bool, what: str) -> None:
    if not served:
        raise ValueError(f"from_timm has no equal of {what} here.")
