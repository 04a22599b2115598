"""Where texts come from: the running Python's own docstrings and manuals, files, and Hugging Face data sets."""

import ast
import importlib
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from core import UserError
from core.data import DataSplits, labelled, make_splits
from core.data.dataset import SplitFractions
from core.data.folders import find_files
from core.data.labelled import Entry, split_entries
from core.data.manifest import JSON_LINES, SPLITS, TABLES, Row, as_text
from core.data.shards import ShardSource, rows_of
from core.data.targets import number_of
from core.files import read_text

Target = Literal["classes", "number", "tokens"]

PACKAGES = (
    "asyncio",
    "email",
    "encodings",
    "http",
    "idlelib",
    "importlib",
    "logging",
    "multiprocessing",
    "tkinter",
    "unittest",
    "urllib",
    "xml",
)
# The packages' names and those of their parts: the model must recognise a text by the rest.
GIVEAWAY = re.compile(rf"\b(?:{'|'.join(PACKAGES)}|idle)\b(?:\.\w+)*", re.IGNORECASE)
FEWEST_WORDS = 4  # a docstring shorter than this could be from anywhere
HELD_OUT = 0.25  # of the docstrings; not an option, so that `manuals` never sees what `docstrings` is tested on


class Text(NamedTuple):
    text: str
    target: int | float
    """Class number, or the number to be predicted; 0 where masked tokens or tags are predicted."""
    where: str
    """Names the text in messages: file and row."""
    words: tuple[str, ...] = ()
    """Of a text whose words have tags."""
    tags: tuple[int, ...] = ()
    """Number of the tag of each word."""
    second: str = ""
    """The second text of a pair."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The text, or both texts of a pair."""
        return (self.text, self.second) if self.second else (self.text,)


Corpus = DataSplits[list[Text]]
"""Texts in three splits; `labels` are the names of the classes, none for numbers and masked tokens."""


@cache  # they are the same as long as this process runs
def read_docstrings() -> Corpus:
    """Which standard-library package is this docstring from? Read from the running Python's own source.

    The packages' names are replaced. No text is there twice, so none is in two splits.
    """
    texts, labels = _docstrings()
    return make_splits(texts, labels=labels, classes=lambda text: int(text.target), test_fraction=HELD_OUT)


@cache
def _docstrings() -> tuple[list[Text], tuple[str, ...]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, Text] = {}
    packages: dict[str, set[str]] = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            name = path.relative_to(root)
            if {"test", "tests", "idle_test"} & set(name.parts):
                continue
            for line, docstring in _docstrings_of(path):
                text = GIVEAWAY.sub("module", docstring)
                words = re.findall(r"\w+", text.lower())
                if len(words) >= FEWEST_WORDS:
                    key = " ".join(words)
                    packages.setdefault(key, set()).add(package)
                    found.setdefault(key, Text(text, 0, f"{name}, line {line}"))
    own = {key: min(names) for key, names in packages.items() if len(names) == 1}
    counts = Counter(own.values())
    labels = tuple(package for package in PACKAGES if counts[package] > 1)
    if len(labels) < 2:
        raise UserError(f"The source of Python's standard library is not in {root}: install it, or use other data.")
    texts = [found[key]._replace(target=labels.index(name)) for key, name in own.items() if name in labels]
    return texts, labels


def read_manuals(fractions: SplitFractions) -> Corpus:
    """Python's language reference, and docstrings; never trained on those that `docstrings` holds out."""
    from pydoc_data.topics import topics

    docstrings = read_docstrings()
    tested, validated = ({text.where for text in part} for part in (docstrings.test, docstrings.validation))
    texts = [Text(topics[name], 0, f"pydoc topic {name}") for name in sorted(topics)]
    texts += [text._replace(target=0) for text in _docstrings()[0] if text.where not in tested]
    data = _without_classes(texts, fractions)
    return replace(data, train=[text for text in data.train if text.where not in validated])


def read_lines(path: Path, fractions: SplitFractions, encoding: str) -> Corpus:
    """Each line that is not blank of a text file, or of all .txt files below a folder; or the texts of a manifest."""
    if path.suffix.lower() in (*TABLES, *JSON_LINES) and not path.is_dir():
        return read_manifest(path, "tokens", fractions, encoding)
    files = find_files(path, (".txt",)) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path} holds no .txt files.")
    texts = [
        Text(line, 0, f"{file}, line {number}")
        for file in files
        for number, line in enumerate(read_text(file, encoding).split("\n"), 1)
        if line.strip()
    ]
    if len(texts) < 3:
        raise UserError(f"{path} holds fewer than three lines of text: each split needs one.")
    return _without_classes(texts, fractions)


def read_manifest(
    path: Path,
    target: Target,
    fractions: SplitFractions,
    encoding: str,
    group: str = "",
    columns: Sequence[str] = ("text",),
) -> Corpus:
    """A CSV (with a header) or JSON Lines file with `label` (not for masked tokens), and perhaps `split` and `group`.

    columns: of the text, or of both texts of a pair.
    """
    names = [name.strip().casefold() for name in columns]
    if target != "tokens" and "label" in names:
        raise UserError("--data.columns names the column `label`, which is what is to be predicted: leave it out.")

    def entry(where: str, row: Row) -> Entry:
        return make_entry(where, [row[name] for name in names], row.get("label", ""), target)

    required = names if target == "tokens" else [*names, "label"]
    options = {"required": required, "prose": names, "encoding": encoding, "group": group}
    return corpus_of(labelled.read_manifest(path, entry, fractions, **options))


def read_huggingface(name: str, target: Target, fractions: SplitFractions, fields: Sequence[str]) -> Corpus:
    """A data set of the Hugging Face hub, or a local one in its format.

    fields: the names of its columns of texts, or of both texts of pairs, and of labels.
    """
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError:
        raise UserError("Hugging Face data sets need the package `datasets`: pip install datasets.") from None
    try:
        found = datasets.load_dataset(name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"The data set {name!r} cannot be loaded: {str(error).splitlines()[0]}") from None
    names = {SPLITS[split.casefold()]: split for split in found if split.casefold() in SPLITS}
    if "train" not in names:
        raise UserError(f"The data set {name!r} has no split 'train'; its splits are: {', '.join(found)}.")
    entries: dict[str, list[Entry]] = {}
    for split, own_name in names.items():
        features = found[own_name].features
        if absent := [field for field in (fields[:1] if target == "tokens" else fields) if field not in features]:
            raise UserError(
                f"The data set {name!r} has no column {absent[0]!r}; its columns are: {', '.join(features)}."
            )
        label, entries[split] = features.get(fields[-1]), []
        for number, row in enumerate(found[own_name], 1):
            where, value = f"{name}, {own_name} row {number}", None if target == "tokens" else row[fields[-1]]
            if value is not None and isinstance(label, datasets.ClassLabel):
                value = label.int2str(value) if value >= 0 else None  # -1: not labelled
            try:
                texts, written = [as_text(row[field]) for field in fields[:-1]], as_text(value)
            except TypeError as error:
                raise UserError(f"{where} holds {error} where text or a number belongs.") from None
            if target != "tokens" and not written:
                raise UserError(f"{where} has no {fields[-1]!r}.")
            entries[split].append(make_entry(where, texts, written, target))
    return corpus_of(labelled.split_entries(name, entries, fractions))


def read_shards(source: ShardSource, columns: Sequence[str], target: Target) -> Corpus:
    """Texts in shards; with `target` tokens, their labels are not needed."""
    column = source.label_column
    required = [*columns, *(() if target == "tokens" else (column,))]
    found, entries = source.read_shards(()), {}
    for split, samples in found.parts().items():
        entries[split] = []
        for where, row in rows_of(samples, found.labels, column):
            if absent := next((name for name in required if not row.get(name)), None):
                raise UserError(f"{where} has no {absent!r}.")
            texts = [row[name] for name in columns]
            entries[split].append(make_entry(where, texts, row.get(column, ""), target))
    return corpus_of(split_entries(source.path or "", entries, source))


def make_entry(where: str, texts: Sequence[str], label: str, target: Target) -> Entry:
    """texts: one, or the two of a pair. label: as it is written."""
    if not all(text.strip() for text in texts):
        raise UserError(f"{where}: the text is empty.")
    if target == "tokens":
        return Entry(where, texts)
    if target == "classes":
        return Entry(where, texts, label)
    return Entry(where, texts, target=number_of(where, label))


def corpus_of(data: DataSplits[list[Entry]]) -> Corpus:
    """The entries, whose samples are the texts of each, as texts; a warning counts those that are in two splits."""
    corpus = data.map(lambda entries: [_text(*entry.sample, entry=entry) for entry in entries])
    warn_of_copies(corpus)
    return corpus


def _text(first: str, second: str = "", *, entry: Entry) -> Text:
    return Text(first, 0 if entry.target is None else entry.target, entry.where, second=second)


def _key(text: Text) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.texts)


def warn_of_copies(corpus: Corpus) -> None:
    """Warn of texts that are trained on and tested on."""
    known = {_key(text): text.where for text in corpus.train}
    for texts, purpose in ((corpus.validation, "validate"), (corpus.test, "test")):
        if seen := [text for text in texts if _key(text) in known]:
            example = f"{known[_key(seen[0])]} and {seen[0].where}"
            warnings.warn(
                f"{len(seen)} of {len(texts)} texts to {purpose} on are trained on too, such as {example}.",
                stacklevel=3,
            )


def _without_classes(texts: Sequence[Text], fractions: SplitFractions) -> Corpus:
    return make_splits(
        texts,
        classes=lambda text: None,
        test_fraction=fractions.test_fraction,
        validation_fraction=fractions.validation_fraction,
    )


def _docstrings_of(path: Path) -> list[tuple[int, str]]:
    """Line and text of each docstring in a source file."""
    with warnings.catch_warnings(action="ignore"):  # about escapes in other people's strings
        tree = ast.parse(path.read_bytes())
    documented = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    nodes = [node for node in ast.walk(tree) if isinstance(node, documented)]
    return [(node.body[0].lineno, text) for node in nodes if (text := ast.get_docstring(node))]
