"""ViT-S/16 against timm's, of the same weights: fp32, bf16 (inference with weights in bf16, training by autocast),
compiled by `torch.compile`."""

from collections.abc import Iterator

import timm
import torch

from vision import from_timm

from .pair import Pair, compare
from .row import Row, Run, versioned


def pair(tiny: bool, size: int = 224, batch: int = 8) -> Pair:
    shape = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 32} if tiny else {"img_size": size}
    peer = timm.create_model("vit_small_patch16_224", **shape)
    images = torch.randn(batch, 3, shape["img_size"], shape["img_size"])
    what = f"ViT-S/16, {size} px, batch {batch}"
    return Pair(what=what, peer=versioned("timm"), ours=from_timm(peer), theirs=peer, inputs=images)


def rows(run: Run) -> Iterator[Row]:
    goals = {"inference, bf16": 1.12, "training step, bf16": 1.08}
    yield from compare(pair, run, inference=21, training=11, compiled=0 if run.tiny else 11, goals=goals)
