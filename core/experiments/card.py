"""The model card of a run: README.md beside the model's weights, as the Hugging Face hub shows it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from yaml import YAMLError

from ..config import to_dict
from ..files import printable, write_text
from .config import Experiment

TEXT = """---
{header}
---
# {name}

A {kind} of {parameters:,} parameters{shape}, trained on `{data}` by Trivium's
experiment `{modality}.train {experiment}`{start}.

| | |
|---|---|
| test {metric} | {value} |
{beside}| trained on | {train_samples:,} samples, tested on {test_samples:,} |
| training | {steps:,} steps of {batch_size}, {precision}, seed {seed} |

```python
from {modality} import {kind}

model = {kind}.from_pretrained("this directory, or its name on the hub")
```

`config.json` holds the architecture, and what an input goes through before the model; nothing else is needed to rebuild
it. Licence: {licence}.
"""


def write_card(folder: Path, modality: str, kind: str, experiment: Experiment, summary: Mapping[str, Any]) -> None:
    """folder: where the model was saved. kind: the model's class."""
    metric, figures = summary["metric"], summary["metrics"]
    licence = None if experiment.init is None else licence_of(Path(experiment.init))
    show = "{:.2%}".format if summary["percent"] else "{:.4g}".format
    data = to_dict(experiment.data)
    named = data.get("name", summary["experiment"])
    source = data.get("dataset") or (data.get("path") if named in ("folder", "manifest", "lines") else None) or named
    source, package = _public(str(source)), modality.rpartition(".")[2]
    result = EvalResult(
        task_type=f"{package}-encoding",
        dataset_type=named,
        dataset_name=source,
        metric_type=metric,
        metric_value=round(figures[metric], 5),
    )
    header = ModelCardData(
        model_name=summary["experiment"],
        library_name="trivium",
        tags=[package, "transformer"],
        license=licence,
        eval_results=[result],
    )
    encoder = getattr(experiment.model, "encoder", None)
    shape = f" ({encoder.depth} layers of width {encoder.dim}, {encoder.heads} heads)" if encoder else ""
    start = (
        "" if experiment.init is None else f", starting from `{_public(experiment.init)}` (`--tune {experiment.tune}`)"
    )
    without = "that of what it was started from" if experiment.init else "none was chosen"
    text = TEXT.format(
        header=header.to_yaml(),
        name=summary["experiment"],
        kind=kind,
        modality=modality,
        experiment=summary["experiment"],
        parameters=summary["parameters"],
        shape=shape,
        data=source,
        start=start,
        metric=metric,
        value=show(figures[metric]),
        beside="".join(
            f"| {name} beside it | {show(value)} |\n" for name, value in (summary["baseline"] or {}).items()
        ),
        train_samples=summary["train_samples"],
        test_samples=summary["test_samples"],
        steps=summary["steps"],
        batch_size=experiment.train.batch_size,
        precision=summary["precision"],
        seed=experiment.train.seed,
        licence=licence or without,
    )
    write_text(folder / "README.md", text)


def licence_of(base: Path) -> str | None:
    """What the card of a local model says."""
    for card in (base / "model" / "README.md", base / "README.md"):
        if card.is_file():
            try:
                return ModelCard.load(card, ignore_metadata_errors=True).data.license
            except (OSError, ValueError, YAMLError):  # somebody else's card: ours does without
                return None
    return None


def _public(source: str) -> str:
    """A path of this machine by its name alone."""
    return printable(Path(source).name if Path(source).exists() else source)
