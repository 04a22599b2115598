"""What a step of masked latent prediction costs beside a supervised step of the same model on the same images: 4 masks
of ratio 0.8, all weights or LoRA alone. The goals are at most 1.9 times the time, and with LoRA 1.15 times the memory.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from core import EncoderConfig
from core.models.tuning import tune
from core.objectives import Batch, LatentConfig, LatentPrediction, MaskedLatents
from vision import ViT, ViTConfig

from .row import Goal, Row, Run
from .timing import interleave

MOST, MOST_MEMORY = 1.9, 1.15


def vit(size: tuple[int, int, int], classes: int, how: str) -> ViT:
    pixels, dim, depth = size
    config = ViTConfig(image_size=pixels, classes=classes, encoder=EncoderConfig(dim=dim, depth=depth, heads=dim // 64))
    model = ViT(config)
    tune(model, how)
    return model


def step_of(
    model: nn.Module, loss_of: Callable[[], torch.Tensor], precision: str, after: Callable[[], None]
) -> Callable:
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after()

    return step


def latent_step(size: tuple[int, int, int], batch: int, how: str, precision: str) -> Callable[[], None]:
    torch.manual_seed(0)
    latent = LatentPrediction(vit(size, 0, how), LatentConfig(), steps=1000)
    latent.follow()
    noise = torch.rand(batch, LatentConfig().masks, *[size[0] // 16] * 2)
    inputs = Batch((torch.randn(batch, 3, size[0], size[0]), noise), torch.zeros(batch))
    return step_of(latent, lambda: MaskedLatents().loss(latent, inputs) / batch, precision, partial(latent.update, 1))


def supervised_step(size: tuple[int, int, int], batch: int, how: str, precision: str) -> Callable[[], None]:
    torch.manual_seed(0)
    model = vit(size, 1000, how)
    images, targets = torch.randn(batch, 3, size[0], size[0]), torch.randint(1000, (batch,))
    return step_of(model, lambda: F.cross_entropy(model(images).float(), targets), precision, lambda: None)


def rows(run: Run) -> Iterator[Row]:
    size, batch = ((32, 64, 2), 2) if run.tiny else ((224, 384, 12), 16)
    for how, named in (("full", "training step"), ("lora", "LoRA training step")):
        for precision in run.precisions:
            arguments = size, batch, how, precision
            found = interleave({"ours": latent_step(*arguments), "theirs": supervised_step(*arguments)}, **run.times(9))
            memory = (
                run.memory((latent_step, *arguments), (supervised_step, *arguments)) if precision == "fp32" else None
            )
            yield Row(
                what=f"ViT-S/16, {size[0]} px, batch {batch}, masked latent prediction",
                work=f"{named}, {precision}",
                peer="our supervised step",
                ours=found["ours"],
                theirs=found["theirs"],
                memory=memory,
                goal=Goal(ratio=1 / MOST, memory=MOST_MEMORY if how == "lora" else None),
            )
