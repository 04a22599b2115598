"""Sound models in the formats in which their authors published them: AudioMAE, EAT and SSLAM. They are ViTs on Kaldi's
filterbank, whose patches follow each other along frequency first; ours along time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core import EncoderConfig, Move, UserError, WeightsError, convert
from core.checkpoints.files import plain_state, read_file, read_state
from core.checkpoints.keys import KeyMap, State
from core.encoder.positions import sincos_positions
from core.models.hub import read_settings
from core.models.stock import check_supported

from .features import FeatureConfig
from .model import ASTConfig

HEADS = {192: 3, 384: 6, 768: 12, 1024: 16}
"""Attention heads of ViTs by their width, which their weights do not tell."""
PATCH, MELS, FRAMES, CLASSES = 16, 128, 1024, 527
ROWS = MELS // PATCH

# --- The names of weights ---------------------------------------------------------------------------------------------

LAYER = "encoder.blocks.{i}"
BLOCKS: KeyMap = {
    "blocks.{i}.norm1.{p}": f"{LAYER}.attention_norm.{{p}}",
    "blocks.{i}.attn.qkv.{p}": f"{LAYER}.attention.qkv.{{p}}",
    "blocks.{i}.attn.proj.{p}": f"{LAYER}.attention.out.{{p}}",
    "blocks.{i}.norm2.{p}": f"{LAYER}.mlp_norm.{{p}}",
    "blocks.{i}.mlp.fc1.{p}": f"{LAYER}.mlp.up.{{p}}",
    "blocks.{i}.mlp.fc2.{p}": f"{LAYER}.mlp.down.{{p}}",
    "fc_norm.{p}": "head_norm.{p}",
    "head.{p}": "head.{p}",
}


def _turned(kernel: Tensor) -> Tensor:
    """A kernel of patches of (frames, mel bins) for those of (mel bins, frames)."""
    return kernel.mT.contiguous()


def _along_time(positions: Tensor) -> Tensor:
    """Positions of a class token and a grid of columns of mel bins, for our order."""
    body = positions[0, 1:].unflatten(0, (-1, ROWS)).transpose(0, 1)
    return torch.cat([positions[0, :1], body.flatten(0, 1)])


AUDIO_MAE: KeyMap = {
    "cls_token": Move("embed.patches.class_token"),
    "pos_embed": Move("embed.patches.positions.weight", _along_time),
    "patch_embed.proj.weight": Move("embed.patches.projection.weight", _turned),
    "patch_embed.proj.bias": "embed.patches.projection.bias",
    "norm.{p}": "encoder.final_norm.{p}",
    **BLOCKS,
}
EAT: KeyMap = {
    "extra_tokens": Move("embed.patches.class_token"),
    "fixed_positional_encoder.positions": None,  # sines and cosines, as is checked
    "local_encoder.proj.weight": Move("embed.patches.projection.weight", _turned),
    "local_encoder.proj.bias": "embed.patches.projection.bias",
    "context_encoder.norm.{p}": "encoder.input_norm.{p}",
    "pre_norm.{p}": "encoder.input_norm.{p}",
    **BLOCKS,
}

# --- Configs ----------------------------------------------------------------------------------------------------------


def _encoder(weights: State, settings: Mapping[str, Any], **own: Any) -> EncoderConfig:
    dim, depth = len(weights["blocks.0.norm1.weight"]), sum(key.endswith(".norm1.weight") for key in weights)
    heads = settings.get("num_heads", HEADS.get(dim))
    check_supported(heads is not None, f"a ViT of width {dim}, whose number of heads is not known")
    hidden = len(weights["blocks.0.mlp.fc1.weight"])
    return EncoderConfig(dim=dim, depth=depth, heads=int(heads or 0), mlp_dim=hidden, **own)


def _common(weights: State, kernel: Tensor) -> dict[str, Any]:
    size = tuple(kernel.shape[1:])
    check_supported(size == (1, PATCH, PATCH), f"patches of shape {size}, not {(1, PATCH, PATCH)}")
    classes = len(weights["head.weight"]) if "head.weight" in weights else 0
    return {
        "sample_rate": 16_000,
        "n_mels": MELS,
        "mask_padding": False,
        "patch_size": PATCH,
        "stride": PATCH,
        "registers": 0,
        "classes": classes,
        "multilabel": classes == CLASSES,  # AudioSet's
        "head_norm": "fc_norm.weight" in weights,
    }


def _audio_mae(weights: State, settings: Mapping[str, Any]) -> ASTConfig:
    positions = weights["pos_embed"].shape[1] - 1
    check_supported(
        positions % ROWS == 0, f"{positions} positions, which are not those of {ROWS} patches of {MELS} mel bins"
    )
    how = {**settings, **settings.get("model_args", {})}.get("global_pool", "avg")
    check_supported(how in ("avg", "token"), f"pooling of kind {how!r}")
    return ASTConfig(
        **_common(weights, weights["patch_embed.proj.weight"]),
        max_frames=positions // ROWS * PATCH,
        pool="mean" if how == "avg" else "cls",
        features=FeatureConfig(kind="kaldi"),
        encoder=_encoder(weights, settings, final_norm="norm.weight" in weights),
    )


def _eat(weights: State, settings: Mapping[str, Any]) -> ASTConfig:
    check_supported(not settings.get("layer_norm_first"), "norms before the branches (layer_norm_first)")
    if (table := weights.get("fixed_positional_encoder.positions")) is not None:
        length = table.shape[1] // ROWS
        wanted = sincos_positions(table.shape[2], (ROWS, length)).unflatten(0, (ROWS, length)).transpose(0, 1)
        fits = table.shape[1] == length * ROWS and torch.allclose(table[0].float(), wanted.flatten(0, 1), atol=1e-3)
        check_supported(fits, "positions that are not sines and cosines")
    return ASTConfig(
        **_common(weights, weights["local_encoder.proj.weight"]),
        max_frames=FRAMES,
        positions="sincos",
        pool="cls",
        head_norm_eps=1e-5 if "pre_norm.weight" in weights else None,  # that of transformers' format is torch's
        features=FeatureConfig(kind="kaldi", mean=-4.268, std=4.569),
        encoder=_encoder(
            weights,
            settings,
            norm_order="post",
            norm_eps=float(settings.get("norm_eps", 1e-6)),
            input_norm=True,
            drop_path=float(settings.get("end_drop_path_rate", 0.0)),
        ),
    )


# --- Formats ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """A format of checkpoints, of one or several models."""

    names: str
    key: str
    """Of a weight that every checkpoint of the format has, and others have not."""
    read: Callable[[State, Mapping[str, Any]], ASTConfig]
    """Our config for weights and what is in a config.json."""
    keys: KeyMap
    unused: tuple[str, ...]
    """What keys of weights begin with that we have no use for: those of pre-training."""


FORMATS = (
    Format("AudioMAE", "patch_embed.proj.weight", _audio_mae, AUDIO_MAE, ("decoder_", "mask_token")),
    Format(
        "EAT and SSLAM",
        "local_encoder.proj.weight",
        _eat,
        EAT,
        ("decoder.", "encoder_mask", "center", "recon_proj.", "cls_proj.", "shared_decoder."),
    ),
)
IMAGE = "modality_encoders.IMAGE."
"""Stands before the names of EAT's embedding in fairseq's format."""


def is_published(source: str | Path) -> bool:
    """Whether this is a file of weights, or a directory in timm's or EAT's format."""
    path = Path(source)
    settings = read_settings(path / "config.json")
    return path.is_file() or "architecture" in settings or settings.get("model_type") in ("eat", "sslam")


def read_published(source: str | Path) -> tuple[ASTConfig, State]:
    """The config and the weights in our form of a file or a directory."""
    path = Path(source)
    settings = read_settings(path / "config.json")
    if "architecture" in settings:
        size = settings.get("pretrained_cfg", settings).get("input_size", [0])
        kind = settings["architecture"]
        if not str(kind).startswith("vit_") or size[0] != 1:
            raise UserError(f"{source} is timm's {kind} for images of {size[0]} channels, not an AudioMAE.")
    content = read_file(path) if path.is_file() else read_state(path)
    if isinstance(content.get("model"), Mapping):
        content = {"model": {key: value for key, value in content["model"].items() if key != "_ema"}}
    weights = {key.removeprefix(IMAGE): tensor for key, tensor in plain_state(content, wanted=()).items()}
    found = next((form for form in FORMATS if form.key in weights), None)
    if found is None or "blocks.0.norm1.weight" not in weights:
        names = ", ".join(form.names for form in FORMATS)
        raise WeightsError(f"{source} holds the weights of none of {names}, but: {', '.join(sorted(weights)[:3])}")
    weights = {key: tensor for key, tensor in weights.items() if not key.startswith(found.unused)}
    return found.read(weights, settings), convert(weights, found.keys)
