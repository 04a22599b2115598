"""Texts of which no labels are needed, to learn from by themselves."""

from pathlib import Path
from typing import Literal

from core.config import configclass
from core.data.dataset import Name, SplitFractions, required
from core.data.shards import ShardSource, in_shards

from .corpora import Corpus, read_lines, read_manuals, read_shards
from .datasets import TextDataset


@configclass
class UnlabelledTexts(SplitFractions, TextDataset):
    """What text data sets without labels share; texts of more tokens than the model takes are cut in pieces."""

    @property
    def masks_tokens(self) -> bool:
        return True


@configclass
class Manuals(UnlabelledTexts):
    """Python's language reference and docstrings."""

    name: Name[Literal["manuals"]] = "manuals"

    def corpus(self) -> Corpus:
        return read_manuals(self)


@configclass
class Lines(ShardSource, UnlabelledTexts):
    """The lines of a text file, or of all .txt files below a folder; or the column `text` of a table or of shards."""

    name: Name[Literal["lines"]] = "lines"
    path: str | Path | None = None
    """The text file, the folder of text files, the manifest, or shards: their folder, or an address."""
    encoding: str = "utf-8"
    """Of the files, as Python names it: utf-8, latin-1, utf-16, cp1252."""

    def corpus(self) -> Corpus:
        if in_shards(self.path):
            return read_shards(self, ("text",), "tokens")
        return read_lines(Path(required(self.path, self.name)), self, self.encoding)
