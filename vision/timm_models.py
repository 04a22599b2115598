"""Stock timm checkpoints on our ViT, with equal outputs."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Shaped
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.overrides import TorchFunctionMode

from core import Move, Pair, UserError, WeightsError, convert, load, patch_grid
from core.checkpoints.files import plain_state, read_state
from core.checkpoints.keys import check_keys, no_weights, unfilled, warn_of_new_head
from core.encoder.init import without_random_values
from core.encoder.relative import PREFIX
from core.files import first_line
from core.models.hub import loader, read_settings

from .merging import mean_head, with_key_biases, with_scales_of_one
from .meta import meta_model
from .model import ViT, ViTConfig
from .naflex import embedding_keys, embedding_settings
from .resizing import changed, resize
from .timm_blocks import parallel_keys
from .timm_parts import (
    check,
    encoder_config,
    pool_settings,
    preprocess,
    rotary_features,
    rotary_frequencies,
    simple,
)


def _rows(t: Tensor) -> Tensor:
    """Tables of timm have a leading axis of 1."""
    return t[0]


def _qkv_bias(q: Tensor, v: Tensor) -> Tensor:
    """Keys have no bias in Eva."""
    return torch.cat([q, torch.zeros_like(q), v])


KEYS = {
    "cls_token": Move("embed.class_token"),
    "reg_token": Move("embed.registers"),
    "dist_token": Move("embed.registers"),
    "pos_embed": Move("embed.positions.weight", _rows),
    "patch_embed.proj.{p}": "embed.projection.{p}",
    "rope.freqs": None,  # see `rotary_frequencies`
    "patch_embed.norm.{p}": "embed.norm.{p}",
    "norm_pre.{p}": "encoder.input_norm.{p}",
    "blocks.{i}.norm1.{p}": "encoder.blocks.{i}.attention_norm.{p}",
    "blocks.{i}.attn.qkv.{p}": "encoder.blocks.{i}.attention.qkv.{p}",
    ("blocks.{i}.attn.q_bias", "blocks.{i}.attn.v_bias"): Move("encoder.blocks.{i}.attention.qkv.bias", _qkv_bias),
    ("blocks.{i}.attn.q_proj.{p}", "blocks.{i}.attn.k_proj.{p}", "blocks.{i}.attn.v_proj.{p}"): (
        "encoder.blocks.{i}.attention.qkv.{p}"
    ),
    "blocks.{i}.attn.norm.{p}": "encoder.blocks.{i}.attention.inner_norm.{p}",
    "blocks.{i}.mlp.norm.{p}": "encoder.blocks.{i}.mlp.inner_norm.{p}",
    "blocks.{i}.attn.q_norm.{p}": "encoder.blocks.{i}.attention.q_norm.{p}",
    "blocks.{i}.attn.k_norm.{p}": "encoder.blocks.{i}.attention.k_norm.{p}",
    "blocks.{i}.attn.proj.{p}": "encoder.blocks.{i}.attention.out.{p}",
    "blocks.{i}.attn.relative_position_bias_table": "encoder.blocks.{i}.relative_bias.weight",
    "rel_pos_bias.relative_position_bias_table": "encoder.relative_bias.weight",
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
    ("head_dist.{p}", "head.{p}"): Move("head.{p}", lambda distilled, own: mean_head(own, distilled)),
}


DEEPEST = 1000  # layers, as in EncoderConfig


@loader
def from_timm(
    source: str | Path | nn.Module,
    *,
    image_size: Pair | None = None,
    patch_size: Pair | None = None,
    channels: int | None = None,
    classes: int | None = None,
) -> ViT:
    """Our ViT with the weights of a timm ViT: also DeiT, DINO, EVA-02, BEiT, RoPE-ViT, AIMv2, Perception Encoder,
    Sapiens2, the towers of CLIP and SigLIP, NaFlex. What timm does in training alone (dropout, augmented coordinates)
    is not taken over.

    source: a timm model name, a local directory in timm's format, or a timm module in memory.
    image_size, patch_size, channels: resize what can be resized, as timm does. A NaFlex model takes images of any size,
        up to as many patches as one of its image size has; its positions keep their grid.
    classes: a number of classes that differs from the checkpoint's gives a head initialised at random, with a warning.
    """
    wanted = {"image_size": image_size, "patch_size": patch_size, "channels": channels, "classes": classes}
    changes = {name: value for name, value in wanted.items() if value is not None}
    module = source if isinstance(source, nn.Module) else _read(source, changes)
    stock = timm_config(module)
    config = changed(stock, changes)
    weights = resize(_weights(module, stock.encoder.heads), stock, config)
    config, weights = _resize_biases(config, weights)
    fresh = ()
    if config.classes != stock.classes:
        if config.classes:
            warn_of_new_head(f"{stock.classes} classes", f"{config.classes} classes")
        fresh = ("head.",)
    model = unfilled(lambda: ViT(config), fresh)
    load(model, weights, fresh=fresh, take=module is not source)
    return model.eval()


def _weights(module: Any, heads: int) -> dict[str, Shaped[Tensor, "..."]]:
    """The weights of a timm module under our keys; heads: of its queries."""
    keys = {**KEYS, **embedding_keys(module)} if isinstance(module, NaFlexVit) else KEYS
    stock = with_scales_of_one(with_key_biases(module.state_dict()))
    weights = {**convert(stock, {**keys, **parallel_keys(module.embed_dim)}), **rotary_frequencies(module)}
    if (order := rotary_features(module)) is not None:
        for key, weight in weights.items():
            if re.fullmatch(r".*attention\.qkv\.(weight|bias)", key):
                weight = weight.unflatten(0, (-1, len(order)))
                values = (len(weight) - heads) // 2
                weights[key] = torch.cat([weight[:-values, order], weight[-values:]]).flatten(0, 1)
            elif re.fullmatch(r".*attention\.[qk]_norm\.(weight|bias)", key):
                weights[key] = weight[order]
    return weights


def _resize_biases(
    config: ViTConfig, weights: dict[str, Shaped[Tensor, "..."]]
) -> tuple[ViTConfig, dict[str, Shaped[Tensor, "..."]]]:
    """The config and weights with BEiT's biases by relative position interpolated as timm does, once and for all, where
    the grid is another than theirs."""
    old, grid = config.encoder.relative_bias, patch_grid(config.image_size, config.patch_size)
    if old is None or old == grid:
        return config, weights
    count = (2 * grid[0] - 1) * (2 * grid[1] - 1) + PREFIX
    own: Any = {} if old[0] == old[1] else {"old_window_size": old}  # older versions of timm take squares alone
    for key, table in weights.items():
        if key.endswith("relative_bias.weight"):
            weights[key] = resize_rel_pos_bias_table(table, grid, (count, table.shape[1]), **own)
    return replace(config, encoder=replace(config.encoder, relative_bias=grid)), weights


def _read(source: str | Path, changes: Mapping[str, Any]) -> Any:
    """A timm module with the weights of its checkpoint."""
    folder = Path(source) if Path(source).is_dir() else None
    if folder:
        _check_folder(folder)
    name = f"local-dir:{folder}" if folder else str(source)
    own: dict[str, Any] = {}
    with _explained(source, folder):
        module = meta_model(name)
    changed(timm_config(module), changes)  # an unsupported model is refused before anything is downloaded
    if folder:
        state = plain_state(read_state(folder), module.state_dict().keys())
        if faults := no_weights(state, module.state_dict()):
            raise WeightsError("The checkpoint does not fit the model; " + "; ".join(faults))
        own = {"pretrained_cfg_overlay": {"source": None, "state_dict": state}}
    checked = register_module_module_registration_hook(_check_when_loaded)
    try:
        with _explained(source, folder), without_random_values(), _Uncopied():
            module = timm.create_model(name, pretrained=True, **own)
    finally:
        checked.remove()
    vars(module)["pretrained_cfg"].pop("state_dict", None)  # timm's copy of the weights
    return module


class _Uncopied(TorchFunctionMode):
    """Inside, weights are not copied with the settings that timm is given them in."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is Tensor.__deepcopy__ else func(*args, **(kwargs or {}))


def _check_when_loaded(module: nn.Module, part: str, _: nn.Module | None) -> None:
    """Called for each part that a module gets. timm leaves missing weights random, and only logs them."""
    if part in ("patch_embed", "embeds"):  # once, for the ViT itself
        module.register_load_state_dict_post_hook(_check_loaded)


def _check_loaded(module: nn.Module, keys: Any) -> None:
    # Checkpoints of SigLIP hold the weights of attention pooling, which other ways of pooling do not use.
    unused = () if getattr(module, "attn_pool", None) is not None else ("attn_pool.",)
    check_keys(keys.missing_keys, [key for key in keys.unexpected_keys if not key.startswith(unused)])


def _check_folder(folder: Path) -> None:
    settings = read_settings(folder / "config.json")
    if "architecture" in settings:
        depth = (settings.get("model_args") or {}).get("depth")
        if isinstance(depth, int) and depth > DEEPEST:  # timm would make each layer
            raise UserError(f"{folder / 'config.json'}: a model has at most {DEEPEST} layers, not {depth}.")
        return
    if "model_type" in settings:
        kinds = settings.get("architectures")
        kind = kinds[0] if isinstance(kinds, list) and kinds else settings["model_type"]
        raise UserError(f"{folder} holds transformers' {kind}: load it with from_hf.")
    raise UserError(f"{folder} is not in timm's format: its config.json names no architecture, or it has none.")


@contextmanager
def _explained(source: str | Path, folder: Path | None) -> Iterator[None]:
    """Inside, errors of timm, the hub and the network are one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        hint = "" if folder else " Without a network give a directory, or an untrained module: timm.create_model(NAME)."
        raise UserError(f"{source} cannot be loaded: {first_line(error)}.{hint}") from None


def timm_config(module: Any) -> ViTConfig:
    """The config of a timm module, read from its parts; a part that we do not support is an error that names it."""
    if not isinstance(module, VisionTransformer | Eva | Beit | NaFlexVit):
        kind = type(module).__name__
        raise UserError(f"from_timm takes timm's VisionTransformer, Eva, Beit and NaFlexVit families, not {kind}.")
    encoder = encoder_config(module)
    embedding = embedding_settings(module) if isinstance(module, NaFlexVit) else _embedding_settings(module)
    return ViTConfig(**embedding, **pool_settings(module), encoder=encoder, preprocess=preprocess(module))


def _embedding_settings(module: Any) -> Mapping[str, Any]:
    """Fields of ViTConfig for the embedding of a VisionTransformer or an Eva."""
    embed: Any = getattr(module, "patch_embed", None)
    check(hasattr(embed, "proj"), "this patch embedding")
    positions, registers = module.pos_embed, getattr(module, "reg_token", None)
    return {
        "image_size": simple(embed.img_size),
        "patch_size": simple(embed.patch_size),
        "channels": embed.proj.in_channels,
        "class_token": module.cls_token is not None,
        "registers": int(hasattr(module, "dist_token")) if registers is None else registers.shape[1],
        "positions": "none" if positions is None else "learned",
        "prefix_positions": positions is not None and positions.shape[1] > embed.num_patches,
        "patch_bias": embed.proj.bias is not None,
        "patch_norm": not isinstance(embed.norm, nn.Identity),
    }
