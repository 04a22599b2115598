"""SST-2: sentences of film reviews, positive or negative (Socher et al. 2013), as GLUE has them or as a manifest."""

from pathlib import Path
from typing import Literal

from core import UserError
from core.config import configclass
from core.data.dataset import Name, SplitFractions, required
from core.data.labelled import Entry, split_entries
from core.files import read_text

from .corpora import Corpus, corpus_of, read_manifest
from .datasets import LabelledTexts

GLUE = {"train": "train.tsv", "test": "dev.tsv"}  # the labels of GLUE's own test split are not public
HEADER = "sentence\tlabel"
LABELS = {"0": "negative", "1": "positive"}
MANIFEST = "sst2.csv"


@configclass
class Sst2(SplitFractions, LabelledTexts):
    """The Stanford Sentiment Treebank with two classes."""

    name: Name[Literal["sst2"]] = "sst2"
    path: Path | None = None
    """The folder with GLUE's train.tsv and dev.tsv, or a manifest (text, label, split); dev is tested on."""

    def corpus(self) -> Corpus:
        return read_sst2(required(self.path, self.name), self)


def read_sst2(path: Path, fractions: SplitFractions) -> Corpus:
    """Sentences to train on, and those of the development set to test on."""
    if path.is_dir() and any((path / file).exists() for file in GLUE.values()):
        entries = {split: _read_glue(path / file) for split, file in GLUE.items()}
        return corpus_of(split_entries(path, entries, fractions))
    manifest = path / MANIFEST if path.is_dir() else path
    if path.is_dir() and not manifest.exists():
        raise UserError(f"{path} holds neither {' and '.join(GLUE.values())}, as GLUE has them, nor {MANIFEST}.")
    return read_manifest(manifest, "classes", fractions, "utf-8")


def _read_glue(file: Path) -> list[Entry]:
    """Each line has a sentence, in which quotes are letters like others, and its label."""
    header, *lines = read_text(file).rstrip("\n").split("\n")
    if header != HEADER:
        raise UserError(f"{file} begins with {header[:60]!r}, but GLUE's SST-2 with {HEADER!r}.")
    entries = []
    for number, line in enumerate(lines, 2):
        text, _, label = line.rpartition("\t")
        if not text.strip() or label not in LABELS:
            raise UserError(f"{file}, line {number}: a sentence, a tab and 0 or 1 are expected, not {line[:60]!r}.")
        entries.append(Entry(f"{file}, line {number}", [text.strip()], LABELS[label]))
    return entries
