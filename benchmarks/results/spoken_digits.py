"""Spoken digits: the recipes on the official split and on held-out speakers, beside a small convolutional network."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..transfer.commands import Commands, Options
from ..transfer.real_data import rows_of
from .figures import accuracy, budget, mean_accuracy, seeded

RECIPE, VOICES = "audio.train spoken-digits", "audio.train spoken-digits-voices"
NETWORK = "benchmarks.results.small_cnn spoken-digits"
CONVOLUTIONS = {"train.optimizer": "adamw", "train.lr": 1e-3}  # Muon is for the matrices of an encoder's layers
OFFICIAL = "official test set"


@dataclass(frozen=True)
class SpokenDigits:
    options: Options = field(default_factory=dict)
    """Further ones of each run."""

    def run(self, commands: Commands, folder: Path, seeds: Sequence[int]) -> str:
        listed = folder / "spoken-digits.csv"
        speakers = sorted({row["speaker"] for row in rows_of(listed)})

        def tested(name: str, command: str, own: Options) -> dict[str, list[dict[str, Any]]]:
            """The summaries of each seed, by the speaker who is held out; by "" on the official test set."""
            options = {**own, **self.options, "data.path": listed}
            found = {}
            for speaker in ("", *speakers):
                held_out = {"data.speaker": speaker} if speaker else {}
                run = f"{name}-{speaker or 'official'}"
                found[speaker] = seeded(commands, run, command, {**options, **held_out}, seeds)
            return found

        all_ways = tested("ast", RECIPE, {}), tested("voices", VOICES, {}), tested("cnn", NETWORK, CONVOLUTIONS)
        head = "| tested on | AST (spoken-digits) | with voices (spoken-digits-voices) | small convolutional network |"
        lines = [head, "|---|---|---|---|"]
        for speaker in ("", *speakers):
            name = f"{speaker}, held out" if speaker else OFFICIAL
            lines.append(f"| {name} | {' | '.join(accuracy(found[speaker]) for found in all_ways)} |")
        means = (mean_accuracy([found[speaker] for speaker in speakers]) for found in all_ways)
        lines.append(f"| mean of the held-out speakers | {' | '.join(means)} |")
        lines.append(f"| a run | {' | '.join(budget(found['']) for found in all_ways)} |")
        return "\n".join(lines)
