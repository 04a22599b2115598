"""References for sound models that no installed library has, from the blocks of timm and under the published names, and
checkpoints as they were published."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from audio_peers import randomised
from safetensors.torch import save_file
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torchaudio.compliance import kaldi

AUDIOSET, EAT_AUDIOSET = (-4.2677393, 4.5689974), (-4.268, 4.569)
DIM, HEADS, DEPTH = 192, 3, 2


def fbanks(clips: list[Tensor], mean: float, std: float, frames: int = 1024) -> Tensor:
    """Spectrograms as all of them are made, padded with zeros before they are normalised: "b 1 frames mel"."""
    made = []
    for clip in clips:
        given = {"htk_compat": True, "sample_frequency": 16_000, "use_energy": False, "window_type": "hanning"}
        bank = kaldi.fbank((clip - clip.mean())[None], num_mel_bins=128, dither=0.0, frame_shift=10, **given)
        made.append(nn.functional.pad(bank, (0, 0, 0, frames - len(bank))))
    return (torch.stack(made)[:, None] - mean) / (2 * std)


def make_audio_mae(classes: int = 7, frames: int = 1024, pool: str = "avg") -> Any:
    """AudioMAE is a ViT of timm on images of frames and mel bins."""
    torch.manual_seed(0)
    sizes = {"embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS, "patch_size": 16, "in_chans": 1}
    return randomised(VisionTransformer(**sizes, img_size=(frames, 128), num_classes=classes, global_pool=pool))


class PostNormBlock(Block):
    """A block of data2vec 2.0: each norm follows the sum."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


class EAT(nn.Module):
    """EAT and SSLAM under the names of their format for transformers, and of fairseq's with `fairseq_state`."""

    def __init__(self, classes: int = 0, length: int = 768, head_norm_eps: float = 1e-5):
        super().__init__()
        self.local_encoder = nn.Module()
        self.local_encoder.proj = nn.Conv2d(1, DIM, 16, 16)
        self.extra_tokens = nn.Parameter(torch.zeros(1, 1, DIM))
        self.fixed_positional_encoder = nn.Module()
        self.fixed_positional_encoder.positions = nn.Parameter(sines(length), requires_grad=False)
        self.pre_norm = nn.LayerNorm(DIM, eps=1e-6)
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.Sequential(*(PostNormBlock(DIM, HEADS, qkv_bias=True, norm_layer=norm) for _ in range(DEPTH)))
        if classes:
            self.fc_norm, self.head = nn.LayerNorm(DIM, eps=head_norm_eps), nn.Linear(DIM, classes)

    def features(self, x: Tensor) -> Tensor:
        x = self.local_encoder.proj(x).flatten(2).mT
        x = x + self.fixed_positional_encoder.positions[:, : x.shape[1]]
        return self.blocks(self.pre_norm(torch.cat([self.extra_tokens.expand(len(x), -1, -1), x], dim=1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)[:, 0]
        return self.head(self.fc_norm(x)) if hasattr(self, "head") else x


def sines(length: int) -> Tensor:
    """Of `length` columns of 8 patches each; the first half of the features depends on the row of a patch alone."""
    columns, rows = (
        grid.flatten().double() for grid in torch.meshgrid(torch.arange(length), torch.arange(8), indexing="ij")
    )
    frequencies = 10_000 ** -(torch.arange(DIM // 4, dtype=torch.float64) / (DIM // 4))
    parts = [wave(at[:, None] * frequencies) for at in (rows, columns) for wave in (torch.sin, torch.cos)]
    return torch.cat(parts, dim=1)[None].float()


def make_eat(classes: int = 0, **given: Any) -> Any:
    torch.manual_seed(0)
    model = EAT(classes, **given)
    positions = model.fixed_positional_encoder.positions.data.clone()
    randomised(model).fixed_positional_encoder.positions.data = positions
    return model


def fairseq_state(model: EAT) -> dict[str, Tensor]:
    """Weights under the names of pre-training."""
    names = {"pre_norm.": "context_encoder.norm."}
    state = {}
    for key, tensor in model.state_dict().items():
        for new, old in names.items():
            key = key.replace(new, old)
        own = key.startswith(("blocks.", "fc_norm.", "head."))
        state[key if own else f"modality_encoders.IMAGE.{key}"] = tensor
    return state


def save_eat_folder(model: EAT, folder: Path, **settings: Any) -> Path:
    """As on the hub, with code of its own."""
    state = {f"model.{key}": tensor.contiguous() for key, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["EATModel"],
        "auto_map": {"AutoModel": "modeling_eat.EATModel", "AutoConfig": "configuration_eat.EATConfig"},
        "model_type": "eat",
        "embed_dim": DIM,
        "depth": DEPTH,
        "num_heads": HEADS,
        "patch_size": 16,
        "norm_eps": 1e-6,
        "layer_norm_first": False,
    }
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


def save_audio_mae(folder: Path) -> Path:
    torch.save({"model": make_audio_mae().state_dict()}, folder / "audiomae.pth")
    return folder / "audiomae.pth"


def save_fairseq(folder: Path) -> Path:
    torch.save({"model": fairseq_state(make_eat(length=64))}, folder / "checkpoint.pt")
    return folder / "checkpoint.pt"


def save_timm_folder(model: nn.Module, folder: Path, pool: str = "avg", **settings: Any) -> Path:
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    config = {
        "architecture": "vit_base_patch16_224",
        "global_pool": pool,
        "pretrained_cfg": {"input_size": [1, 1024, 128], "classifier": "head"},
        "model_args": {"global_pool": pool},
    }
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


PUBLISHED: dict[str, Callable[[Path], Path]] = {
    "AudioMAE": save_audio_mae,
    "AudioMAE in timm's format": lambda folder: save_timm_folder(make_audio_mae(), folder),
    "EAT": lambda folder: save_eat_folder(make_eat(7), folder),
    "EAT and SSLAM in fairseq's format": save_fairseq,
}
"""Makers of a checkpoint with random weights in a folder; what is returned is loaded."""
