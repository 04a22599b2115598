"""CIFAR-10 from random weights: the recipe beside a plain vision transformer of the same cost, trained by AdamW."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..transfer.commands import Commands, Options
from .figures import accuracy, budget, seeded

PLAIN = {"model.stem": (), "model.depth": 3, "model.mlp-dim": 512}  # as timm's VisionTransformer computes it
USUAL = {"train.optimizer": "adamw", "train.schedule": "cosine", "train.lr": 1e-3}


@dataclass(frozen=True)
class Cifar10:
    ways: Mapping[str, Options] = field(
        default_factory=lambda: {
            "this recipe": {},
            "images that grow from 20 pixels": {"data.augment.start-size": 20},
            "plain ViT, AdamW, cosine": {**PLAIN, **USUAL},
        }
    )

    def run(self, commands: Commands, folder: Path, seeds: Sequence[int]) -> str:
        lines = ["| | test accuracy | a run |", "|---|---|---|"]
        for name, options in self.ways.items():
            short = name.split(",")[0].replace(" ", "-")
            runs = seeded(commands, short, "vision.train cifar10", {"data.path": folder, **options}, seeds)
            lines.append(f"| {name} | {accuracy(runs)} | {budget(runs)} |")
        return "\n".join(lines)
