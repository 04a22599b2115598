"""ListOps of Long Range Arena: dense and sparse attention at equal steps, from nothing and after masked tokens."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..transfer.commands import Commands, Options
from .recipes import row_of, run_seeds, table

NOTHING, PRETRAINED = "from nothing", "after masked tokens"


@dataclass(frozen=True)
class ListOps:
    ways: Mapping[str, Options] = field(default_factory=lambda: {"dense": {"model.patterns": "None"}, "sparse": {}})
    common: Options = field(default_factory=dict)
    """Options of all runs."""

    def run(self, commands: Commands, folder: Callable[[str], Path], seeds: Sequence[int]) -> str:
        rows, lines = {}, []
        for way, options in self.ways.items():
            options = {**options, **self.common}
            runs = run_seeds(commands, f"{way}-nothing", "text.train listops", options, seeds)
            rows[f"{way}, {NOTHING}"] = row_of(runs)
            masked = {"data.target": "tokens", **options}
            starts = run_seeds(commands, f"{way}-masked", "text.train listops", masked, seeds)
            minutes = sum(start["train_seconds"] for start in starts) / len(starts) / 60
            losses = ", ".join(f"{start['metrics']['loss']:.3f}" for start in starts)
            lines.append(f"{way}: masked tokens end at a test loss of {losses} after {minutes:.1f} minutes.")
            tuned = []
            for seed in seeds:
                started = {**self.common, "init": commands.out / f"{way}-masked-{seed}"}
                tuned += run_seeds(commands, f"{way}-tuned", "text.train listops", started, [seed])
            rows[f"{way}, {PRETRAINED}"] = row_of(tuned)
        return "\n\n".join([table(rows), *lines])
