"""SST-2 from the weights of all-MiniLM-L6-v2: LoRA, full fine-tuning, random weights and TF-IDF."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..transfer.commands import Commands, Options
from .recipes import row_of, run_seeds, table


@dataclass(frozen=True)
class Sst2:
    ways: Mapping[str, Options] = field(
        default_factory=lambda: {
            "LoRA": {},
            "full": {"tune": "full", "train.lr": 5e-5},
            "random weights": {"init": "None", "tune": "full", "train.steps": 600},
        }
    )
    common: Options = field(default_factory=dict)
    """Options of all runs."""

    def run(self, commands: Commands, folder: Callable[[str], Path], seeds: Sequence[int]) -> str:
        rows, baseline = {}, {}
        for name, options in self.ways.items():
            options = {"data.path": folder("sst2"), **options, **self.common}
            runs = run_seeds(commands, name.replace(" ", "-"), "text.train sst2", options, seeds)
            rows[name], baseline = row_of(runs), runs[0]["baseline"] or baseline
        rows |= {name: (f"{accuracy:.1%}", "", "") for name, accuracy in baseline.items()}
        return table(rows)
