"""SST-2 from the weights of all-MiniLM-L6-v2: LoRA, full fine-tuning, random weights and TF-IDF."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..transfer.commands import Commands, Options
from .figures import accuracy, budget, seeded


@dataclass(frozen=True)
class Sst2:
    ways: Mapping[str, Options] = field(
        default_factory=lambda: {
            "LoRA": {},
            "full": {"tune": "full", "train.lr": 5e-5},
            "random weights": {"init": "None", "tune": "full", "train.steps": 600},
        }
    )

    def run(self, commands: Commands, folder: Path, seeds: Sequence[int]) -> str:
        lines, baseline = ["| | accuracy on dev | a run |", "|---|---|---|"], {}
        for name, options in self.ways.items():
            options = {"data.path": folder, **options}
            runs = seeded(commands, name.replace(" ", "-"), "text.train sst2", options, seeds)
            lines.append(f"| {name} | {accuracy(runs)} | {budget(runs)} |")
            baseline = runs[0]["baseline"] or {}
        return "\n".join([*lines, *(f"| {name} | {value:.1%} | |" for name, value in baseline.items())])
