"""The model card of a run: README.md beside the model's weights, as the Hugging Face hub shows it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from yaml import YAMLError

from ..files import printable, write_text
from .report import TEMPLATES


def write_card(folder: Path, modality: str, kind: str, settings: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """folder: where the model was saved. kind: the model's class. settings: the experiment as a dict."""
    name, metric, result = summary["experiment"], summary["metric"], summary["metrics"][summary["metric"]]
    data, init = settings["data"], settings["init"]
    licence = None if init is None else licence_of(Path(init))
    show = "{:.2%}".format if summary["percent"] else "{:.4g}".format
    kind_of_data = data.get("name", name)
    path = data.get("path") if kind_of_data in ("folder", "manifest", "lines") else None
    source, package = _public(str(data.get("dataset") or path or kind_of_data)), modality.rpartition(".")[2]
    evaluation = EvalResult(
        task_type=f"{package}-encoding",
        dataset_type=kind_of_data,
        dataset_name=source,
        metric_type=metric,
        metric_value=round(result, 5),
    )
    header = ModelCardData(
        model_name=name,
        library_name="trivium",
        tags=[package, "transformer"],
        license=licence,
        eval_results=[evaluation],
    )
    baselines = {f"baseline: {name}": show(value) for name, value in (summary["baseline"] or {}).items()}
    card = ModelCard.from_template(
        header,
        template_path=str(TEMPLATES / "card.md"),
        name=name,
        kind=kind,
        modality=modality,
        encoder=settings["model"].get("encoder"),
        data=source,
        init=None if init is None else _public(init),
        tune=settings["tune"],
        results={f"test {metric}": show(result), **baselines},
        batch=_batch(settings["train"]),
        seed=settings["train"]["seed"],
        licence=licence or ("that of the model that training started from" if init else "none was chosen"),
        **{key: summary[key] for key in ("parameters", "train_samples", "test_samples", "steps", "precision")},
    )
    write_text(folder / "README.md", f"{card}\n")


def licence_of(base: Path) -> str | None:
    """The licence that the card of a local model names."""
    for card in (base / "model" / "README.md", base / "README.md"):
        if card.is_file():
            try:
                return getattr(ModelCard.load(card, ignore_metadata_errors=True).data, "license", None)
            except (OSError, ValueError, YAMLError):  # a card that others wrote
                return None
    return None


def _batch(settings: Mapping[str, Any]) -> str:
    tokens = settings.get("tokens_per_batch")
    return f"{settings['batch_size']}" if tokens is None else f"up to {tokens:,} tokens"


def _public(source: str) -> str:
    """The source; of a path on this machine only the name."""
    return printable(Path(source).name if Path(source).exists() else source)
