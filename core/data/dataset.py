"""What the data sets of all modalities share: each is a config class, and an experiment's field holds one of several.

    @configclass
    class Digits(SplitFractions):
        name: Name[Literal["digits"]] = "digits"

    @configclass
    class Experiment:
        data: OneOf[Digits | Folder] = field(default_factory=Digits)

The command line has the options of the default's class only, and `name` is not among them; config.json holds `name`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import tyro
from annotated_types import Interval
from pydantic import Field

from ..config import BetweenZeroAndOne, Count, Whole, configclass
from ..errors import UserError
from ..files import File
from .cache import DecodeCache, open_cache
from .splits import DataSplits
from .targets import Label

T = TypeVar("T")
P = TypeVar("P", bound=Path | str)

Name = Annotated[T, tyro.conf.Fixed, tyro.conf.Suppress]
"""A field that is no option of the command line."""
OneOf = Annotated[T, Field(discriminator="name"), tyro.conf.AvoidSubcommands]
NamedSamples = Mapping[str, Sequence[tuple[str, str]]]
"""For each split the name and the label of every sample, in order; a resumed run must find the same."""


@configclass
class ValidationFraction:
    """An option of data sets that come without a validation split, but with a test split or with no need of one."""

    validation_fraction: BetweenZeroAndOne = 0.1
    """Share of the training samples that is held out for validation, if the data have no validation split."""


@configclass
class SplitFractions(ValidationFraction):
    """Options of data sets that may come without a validation and without a test split."""

    test_fraction: BetweenZeroAndOne = 0.2
    """Share of the samples that is held out for testing, if the data have no test split."""


@configclass
class Folds(SplitFractions):
    """Options of data sets that can be cut into folds for cross-validation."""

    folds: Annotated[Whole, Interval(ge=2, le=1000)] | None = None
    """K-fold cross-validation: the samples are cut into so many folds, and of as many runs, one after the other, each
    is tested on another fold. None: a single run."""
    fold: Count | None = None
    """The one of those folds, from 1, that a single run is tested on; None: each in turn."""

    def __post_init__(self):
        if self.fold is not None and (self.folds is None or self.fold > self.folds):
            number = "how many there are" if self.folds is None else f"at least {self.fold}"
            raise UserError(f"--data.fold {self.fold} is no fold: --data.folds must say {number}.")


def required(path: P | None, name: str) -> P:
    """The path of a data set that cannot do without."""
    if path is None:
        raise UserError(f"The {name} data need --data.path.")
    return path


@configclass
class FileDataset:
    """A data set of files."""

    path: Path | None = None
    """The folder or the manifest."""
    cache: Path | None = None
    """Directory that keeps decoded files, so that each is decoded once; None for none."""

    def given_path(self) -> Path:
        return required(self.path, getattr(self, "name", "chosen"))

    def open_cache(self) -> DecodeCache | None:
        return open_cache(self.cache, self.path)

    def named_samples(self, data: DataSplits) -> NamedSamples:
        """The samples of each split by their paths, from the folder or from where the manifest is, and their labels."""
        root = self.given_path()
        root = root if root.is_dir() else root.parent

        def name(path: File) -> str:
            if isinstance(path, Path) and path.is_relative_to(root):
                return path.relative_to(root).as_posix()
            return str(path)

        def label(of_sample: Label) -> str:
            if isinstance(of_sample, float):
                return str(of_sample)
            numbers = [of_sample] if isinstance(of_sample, int) else of_sample
            return "; ".join(data.labels[number] for number in numbers)

        return {
            split: [(name(path), label(of_sample)) for path, of_sample in part.samples]
            for split, part in data.parts().items()
        }
