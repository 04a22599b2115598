"""ListOps of Long Range Arena: dense and sparse attention, each from random weights and after masked tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..transfer.commands import Commands, Options
from .figures import accuracy, budget, seeded

COMMAND = "text.train listops"


@dataclass(frozen=True)
class ListOps:
    ways: Mapping[str, Options] = field(default_factory=lambda: {"dense": {"model.patterns": "None"}, "sparse": {}})
    options: Options = field(default_factory=dict)
    """Further ones of each run."""

    def run(self, commands: Commands, folder: Path, seeds: Sequence[int]) -> str:
        """folder: keeps the generated data."""
        lines, own = ["| | accuracy | a run |", "|---|---|---|"], {**self.options, "data.cache": folder}
        for way, model in self.ways.items():
            random = seeded(commands, f"{way}-random", COMMAND, {**own, **model}, seeds)
            masked = seeded(commands, f"{way}-masked", COMMAND, {**own, **model, "data.target": "tokens"}, seeds)
            tuned = [
                commands.train(
                    f"{way}-tuned-{seed}",
                    COMMAND,
                    {**own, "init": commands.out / f"{way}-masked-{seed}", "train.seed": seed},
                )
                for seed in seeds
            ]
            losses = ", ".join(f"{run['metrics']['loss']:.3f}" for run in masked)
            lines.append(f"| {way}, from random weights | {accuracy(random)} | {budget(random)} |")
            lines.append(f"| {way}, masked tokens first | loss {losses} | {budget(masked)} |")
            lines.append(f"| {way}, then the values | {accuracy(tuned)} | {budget(tuned)} |")
        return "\n".join(lines)
