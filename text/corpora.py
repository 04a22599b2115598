"""Where texts come from: the running Python's own docstrings and manuals, files, and Hugging Face data sets."""

import ast
import math
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from core import UserError
from core.data import stratified_split
from core.data.folders import find_files
from core.data.manifest import as_text, manifest_rows, parts_of
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
# The packages' names, and whatever is named as a part of them: what is left must be told by its sense.
GIVEAWAY = re.compile(rf"\b(?:{'|'.join(PACKAGES)}|idle)\b(?:\.\w+)*", re.IGNORECASE)
FEWEST_WORDS = 4  # a docstring shorter than this could be from anywhere
HELD_OUT = 0.25  # of the docstrings; not an option, so that `manuals` never sees what `docstrings` is tested on


class Text(NamedTuple):
    text: str
    target: int | float
    """Class number, or the number to be told; 0 where hidden words are all there is to tell."""
    where: str
    """Names the text in messages: file and row."""


class Corpus(NamedTuple):
    train: list[Text]
    test: list[Text]
    labels: tuple[str, ...] = ()
    """Names of the classes; none for numbers and hidden words."""


@cache  # they are the same as long as this process runs
def read_docstrings() -> Corpus:
    """Which standard-library package does this docstring come from? Read from the running Python's own source.

    Names of the packages are masked. No text is there twice, so none is in both parts.
    """
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
    return Corpus(*_split(texts, HELD_OUT), labels)


def read_manuals(test_fraction: float) -> Corpus:
    """Python's language reference, and the docstrings that `docstrings` trains on: never those it tests on."""
    from pydoc_data.topics import topics

    texts = [Text(topics[name], 0, f"pydoc topic {name}") for name in sorted(topics)]
    texts += [text._replace(target=0) for text in read_docstrings().train]
    return Corpus(*_split(texts, test_fraction))


def read_lines(path: Path, test_fraction: float, encoding: str) -> Corpus:
    """Each line that is not blank of a text file, or of all .txt files below a folder."""
    files = find_files(path, (".txt",)) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path} holds no .txt files.")
    texts = [
        Text(line, 0, f"{file}, line {number}")
        for file in files
        for number, line in enumerate(read_text(file, encoding).split("\n"), 1)
        if line.strip()
    ]
    if len(texts) < 2:
        raise UserError(f"{path} holds fewer than two lines of text: one is needed to train on and one to test.")
    return Corpus(*_split(texts, test_fraction))


def read_manifest(path: Path, target: Target, test_fraction: float, encoding: str) -> Corpus:
    """A CSV (with a header) or JSON Lines file with `text`, `label` (not for hidden words), and perhaps `split`."""
    required = ("text",) if target == "tokens" else ("text", "label")
    rows = manifest_rows(path, required, encoding, optional=("split",))
    train, test = (
        [(rows[where]["text"], rows[where].get("label", ""), where) for where in part] for part in parts_of(path, rows)
    )
    return labelled({"train": train, "test": test}, target, test_fraction, str(path))


def read_huggingface(name: str, target: Target, test_fraction: float, fields: tuple[str, str]) -> Corpus:
    """A data set of the Hugging Face hub, or a local one in its format; tested on its test or validation split.

    fields: the names of its columns of texts and of labels.
    """
    try:
        import datasets
    except ImportError:
        raise UserError("Hugging Face data sets need the package `datasets`: pip install datasets.") from None
    try:
        found = datasets.load_dataset(name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"The data set {name!r} cannot be loaded: {str(error).splitlines()[0]}") from None
    splits = {"train": "train", "test": next((split for split in ("test", "validation") if split in found), None)}
    parts: dict[str, list[tuple[str, str, str]]] = {"train": [], "test": []}
    for part, split in splits.items():
        if split is None:
            continue
        if split not in found:
            raise UserError(f"The data set {name!r} has no split {split!r}; its splits are: {', '.join(found)}.")
        features = found[split].features
        if absent := [field for field in fields[: 1 if target == "tokens" else 2] if field not in features]:
            raise UserError(
                f"The data set {name!r} has no column {absent[0]!r}; its columns are: {', '.join(features)}."
            )
        label = features.get(fields[1])
        for number, row in enumerate(found[split], 1):
            where, value = f"{name}, {split} row {number}", None if target == "tokens" else row[fields[1]]
            if value is not None and isinstance(label, datasets.ClassLabel):
                value = label.int2str(value) if value >= 0 else None  # -1: not labelled
            try:
                parts[part].append((as_text(row[fields[0]]), as_text(value), where))
            except TypeError as error:
                raise UserError(f"{where} holds {error} where text or a number belongs.") from None
            if target != "tokens" and not parts[part][-1][1]:
                raise UserError(f"{where} has no {fields[1]!r}.")
    return labelled(parts, target, test_fraction, name)


def labelled(parts: dict[str, list[tuple[str, str, str]]], target: Target, test_fraction: float, source: str) -> Corpus:
    """A corpus from its parts' rows of (text, label, where); without a test part, some of the rest becomes one."""
    labels: tuple[str, ...] = ()
    if target == "classes":
        labels = tuple(sorted({label for part in parts.values() for _, label, _ in part}))
        if len(labels) < 2:
            raise UserError(f"{source} has a single class, {labels[0]!r}: at least two are needed.")
        counts = Counter(label for _, label, _ in parts["train"])
        if unlearnt := [label for label in labels if not counts[label]]:
            raise UserError(f"{source}: label {unlearnt[0]!r} is only in the test split, so it can't be learnt.")
        if not parts["test"] and min(counts.values()) < 2:
            label = min(counts, key=counts.get)
            raise UserError(f"{source}: label {label!r} has a single text: it needs one to train on and one to test.")
    number = {label: index for index, label in enumerate(labels)}

    def read(text: str, label: str, where: str) -> Text:
        if not text.strip():
            raise UserError(f"{where}: the text is empty.")
        match target:
            case "classes":
                return Text(text, number[label], where)
            case "tokens":
                return Text(text, 0, where)
        try:
            value = float(label)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(
                f"{where}: the label {label!r} is not a number: correct it, or choose --data.target classes."
            )
        return Text(text, value, where)

    train, test = ([read(*row) for row in part] for part in parts.values())
    if not test:
        if len(train) < 2:
            raise UserError(f"{source} has a single text: it needs one to train on and one to test.")
        train, test = _split(train, test_fraction, stratify=target == "classes")
    learnt = {text.text.strip(): text.where for text in train}
    if known := [text for text in test if text.text.strip() in learnt]:
        first = f"{learnt[known[0].text.strip()]} and {known[0].where}"
        warnings.warn(
            f"{len(known)} of {len(test)} texts to test on are trained on too, such as {first}.", stacklevel=2
        )
    return Corpus(train, test, labels)


def _split(texts: Sequence[Text], test_fraction: float, stratify: bool = True) -> tuple[list[Text], list[Text]]:
    train, test = stratified_split([text.target if stratify else 0 for text in texts], test_fraction)
    return [texts[i] for i in train], [texts[i] for i in test]


def _docstrings_of(path: Path) -> list[tuple[int, str]]:
    """Line and text of each docstring in a source file."""
    with warnings.catch_warnings(action="ignore"):  # about escapes in other people's strings
        tree = ast.parse(path.read_bytes())
    documented = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    nodes = [node for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)]
    return [(node.body[0].lineno, ast.get_docstring(node)) for node in nodes]
