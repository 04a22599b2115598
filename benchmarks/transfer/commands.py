"""The public commands, each run once with its figures kept: a study that was interrupted goes on where it stopped."""

import json
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import UserError

Options = Mapping[str, Any]
"""Of a command, such as {"train.steps": 500, "model.patch-size": (16, 4), "data.augment.flip": True}."""
PROBED = re.compile(r"linear probe ([\d.]+)%, nearest neighbours ([\d.]+)%")


def words_of(options: Options) -> list[str]:
    words = []
    for name, value in options.items():
        values = () if value is True else value if isinstance(value, tuple) else (value,)
        words += [f"--{name}", *map(str, values)]
    return words


def call(words: Sequence[str]) -> str:
    """What `python -m WORDS` prints; its messages and its progress are shown."""
    command = [sys.executable, "-m", *words]
    print(f"python -m {shlex.join(words)}", file=sys.stderr, flush=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            said, _ = process.communicate()
        except KeyboardInterrupt:  # the command has been interrupted as well, and saves a checkpoint
            process.wait()
            raise
    if process.returncode:
        raise UserError(f"python -m {words[0]} ended with status {process.returncode}: its message is above.")
    return said


@dataclass(frozen=True)
class Commands:
    """The commands of a study, whose runs and figures are in the directory `out`."""

    out: Path
    call: Callable[[Sequence[str]], str] = call

    def train(self, name: str, command: str, options: Options) -> dict[str, Any]:
        """Do a training run, unless it is done, and return its summary. command: such as `vision.train folder`."""
        run = self.out / name
        words = self._words(name, command, {"size": None, **options, "out": run})  # no setting follows the data
        if not (run / "summary.json").exists():
            self.call([*words, *(["--resume"] if (run / "config.json").exists() else [])])
        return json.loads((run / "summary.json").read_text(encoding="utf-8"))

    def probe(self, name: str, command: str, options: Options) -> list[float]:
        """Test accuracies of the linear probe and of nearest neighbours: of a model, and then of random weights."""
        kept = self.out / f"{name}.json"
        words = self._words(name, command, options)
        if not kept.exists():
            found = [float(percent) / 100 for line in PROBED.findall(self.call(words)) for percent in line]
            kept.write_text(json.dumps(found), encoding="utf-8")
        return json.loads(kept.read_text(encoding="utf-8"))

    def fine_tune(
        self,
        name: str,
        command: str,
        options: Callable[[int, int], Options],
        rates: Sequence[float],
        seeds: Sequence[int],
    ) -> tuple[list[float], float]:
        """Test accuracy of each seed, and the learning rate: the best on the validation split, with other labels.

        options: of the labels of a seed, and of the start of a seed. rates: a single one is not tried before.
        """
        validation = {}
        for rate in rates if len(rates) > 1 else ():
            tried = {**options(max(seeds) + 1, seeds[0]), "train.lr": rate, "train.seed": max(seeds) + 1}
            validation[rate] = self.train(f"{name}-rate-{rate:g}", command, tried)["validation"]["accuracy"]
        best = max(rates, key=lambda rate: validation.get(rate, 0))
        runs = {seed: {**options(seed, seed), "train.lr": best, "train.seed": seed} for seed in seeds}
        return [self.train(f"{name}-{seed}", command, runs[seed])["metrics"]["accuracy"] for seed in seeds], best

    def step_seconds(self, name: str, command: str, options: Options, steps: int = 40) -> float:
        """Of a training step, the median over a few."""
        plain = {"train.steps": steps, "train.warmup": steps, "train.eval-every": steps, "train.log-every": steps // 4}
        self.train(name, command, {**options, **plain})
        rows = [json.loads(row) for row in (self.out / name / "metrics.jsonl").open(encoding="utf-8")]
        return options["train.batch-size"] / statistics.median(row["samples_per_second"] for row in rows[1:])

    def _words(self, name: str, command: str, options: Options) -> list[str]:
        """The command, which is written down; what was found by another command is not taken for its own."""
        words = [*command.split(), *words_of(options)]
        written = self.out / f"{name}.command"
        written.parent.mkdir(parents=True, exist_ok=True)
        if written.exists() and written.read_text(encoding="utf-8") != shlex.join(words):
            raise UserError(f"{written} is another command than this study's now: choose another --out.")
        written.write_text(shlex.join(words), encoding="utf-8")
        return words


def cell(accuracies: Sequence[float]) -> str:
    """Mean and, in brackets, each seed."""
    return f"{statistics.mean(accuracies):.1%} ({', '.join(f'{100 * a:.1f}' for a in accuracies)})"


def probed(name: str, summaries: Sequence[Mapping[str, Any]]) -> str:
    """What the runs with `--probe.path` say of the features before and after training, on validation data."""
    before, after = ([summary[when]["probe_linear"] for summary in summaries] for when in ("start", "end"))
    return f"{name}: linear probe on validation data {cell(before)} before, {cell(after)} after."


def table(columns: Sequence[str], rows: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """In Markdown; each row has for some columns the accuracies of the seeds."""
    lines = [f"| | {' | '.join(columns)} |", f"|{'---|' * (1 + len(columns))}"]
    for name, found in rows.items():
        cells = (cell(found[column]) if column in found else "" for column in columns)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
