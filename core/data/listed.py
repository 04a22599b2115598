"""The options of files that are listed in a manifest with what is to be predicted of each."""

from pathlib import Path
from typing import Any, Literal

from ..config import configclass
from ..errors import UserError
from .dataset import Folds
from .labelled import Sample, read_files
from .splits import DataSplits


@configclass
class ListedFiles(Folds):
    """Files, listed in a CSV or JSON Lines file with `path` and `label`, and perhaps `split` and `group`."""

    target: Literal["classes", "number"] = "classes"
    """What is predicted: labels as classes, or labels as numbers."""
    multilabel: bool = False
    """Labels are separated by semicolons or a list of JSON: a sample may be of several classes."""
    group: str = ""
    """Column of the manifest whose equal values are never in two splits (a patient, a speaker); `group` by default, if
    there."""

    @property
    def predicts_number(self) -> bool:
        return self.target == "number"

    def listed(self, path: Path) -> DataSplits[list[Sample]]:
        """The samples of the manifest `path`."""
        if self.multilabel and self.predicts_number:
            raise UserError("--data.multilabel is for labels as classes: leave it out, or --data.target number.")
        check_targets(self, self.multilabel, self.predicts_number)
        kind = "number" if self.predicts_number else "classes" if self.multilabel else "class"
        return read_files(path, self, kind, group=self.group)


def check_targets(options: Any, multilabel: bool, predicts_number: bool) -> None:
    """Refuse options that are for samples of one class each."""
    if getattr(options, "per_class", None) is not None and (multilabel or predicts_number):
        raise UserError("--data.per-class is for samples of one class each: leave it out.")
    mixed = [name for name in ("mixup", "cutmix") if getattr(getattr(options, "augment", None), name, 0)]
    if mixed and predicts_number:
        raise UserError(f"--data.augment.{mixed[0]} is for classes: leave it out, or --data.target number.")
