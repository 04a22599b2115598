"""Manifests: CSV or JSON Lines files with one sample in each row, of any modality.

CSV (.csv, .tsv) has a header, and its delimiter is the header's: comma, semicolon, tab or bar. JSON Lines (.jsonl,
.ndjson) has an object on each line. Names of columns may be in upper or lower case. Blanks around names and values are
removed, except in the column `text`, which is kept unchanged and may have several lines.

A label is text. Other values of JSON become text as JSON writes them, whole numbers without a fraction: 1 and 1.0 are
the class "1", and true is the class "true". If all labels of a manifest are whole numbers, "1.0" in CSV is "1" too.
Letters that Unicode can write in two ways are one letter (NFC).

The column `split` names the split that a row belongs to, as in SPLITS.
"""

import csv
import io
import json
import math
import os
import re
import unicodedata
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..errors import UserError
from ..files import check_file, first_line, read_text

PROSE = ("text",)  # the columns that are kept unchanged
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
JSON_LINES = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv")
SEVERAL = ";"  # between the labels of a sample that has several
WHOLE = re.compile(r"[+-]?\d+(\.0+)?")
NO_NAME = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, and halves of surrogate pairs
LIST = re.compile(r"\[.*[,'\"].*\]")  # as Python and JSON write it
INVISIBLE = "\u200b\u200e\u200f\u2060\ufeff"  # blanks without a width, and marks of direction
NO_PROSE = re.compile("[\0\ud800-\udfff]")
Row = dict[str, str]


def manifest_rows(
    path: Path,
    required: Sequence[str],
    encoding: str = "utf-8",
    optional: Sequence[str] = ("label", "split"),
    lists: Collection[str] = (),
    prose: Collection[str] = PROSE,
) -> dict[str, Row]:
    """The rows of a manifest by their places ("file, row 3"), each with the columns that are named here.

    Each row has the required columns, and those optional ones that are not empty. lists: columns in which JSON may have
    a list; its entries are joined by semicolons, as CSV has them. prose: columns of texts, which are kept unchanged.
    """
    check_file(path, "manifest")
    suffix = path.suffix.lower()
    if suffix not in (*TABLES, *JSON_LINES):
        raise UserError(f"{path}: a manifest is a {', '.join(TABLES)}, {' or '.join(JSON_LINES)} file.")
    text = read_text(path, encoding)
    names = dict.fromkeys((*required, *optional))
    records = json_records(path, text, names) if suffix in JSON_LINES else _table_records(path, text, required, names)
    rows = {}
    for where, record in records:
        rows[where] = row = {}
        for name in names:
            if value := _cleaned(where, name, record.get(name), name in lists, name in prose):
                row[name] = value
            elif name in required:
                raise UserError(f"{where} has no {name!r}.")
    if not rows:
        raise UserError(f"{path} has no rows.")
    _unify_numbers(list(rows.values()))
    return rows


def rows_of_splits(path: Path, rows: Mapping[str, Row]) -> dict[str, list[str]]:
    """Where the rows of each split stand; all are for training where no row names a split."""
    splits: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    unnamed = [where for where, row in rows.items() if "split" not in row]
    for where, row in rows.items():
        name = row.get("split", "train")
        if name.casefold() not in SPLITS:
            raise UserError(f"{where}: split is {name!r}, but must be 'train', 'val' or 'test'.")
        splits[SPLITS[name.casefold()]].append(where)
    if not splits["train"]:
        raise UserError(f"{path} has no rows to train on: all are for {'testing' if splits['test'] else 'validation'}.")
    if unnamed and len(unnamed) < len(rows):
        warnings.warn(
            f"{len(unnamed)} rows of {path} name no split and are trained on: the first is {unnamed[0]}.", stacklevel=2
        )
    return splits


def listed_file(folder: Path, where: str, name: str) -> Path:
    """The file that a row names, from the folder that it is named in."""
    file = folder / name
    try:
        check_sample(file)
    except UserError as error:
        others = () if os.path.lexists(file) else _other_spellings(name)
        if other := next((other for other in others if os.path.lexists(folder / other)), None):
            return listed_file(folder, where, other)
        said = str(error)
        raise UserError(f"{where}: {said[0].lower() if said.startswith('The') else said[0]}{said[1:]}") from None
    return file


def check_sample(file: Path, what: str = "file") -> None:
    check_file(file, what)
    if not os.path.getsize(file):
        raise UserError(f"{file} is an empty file: fetch it again, or leave it out.")


def as_text(value: Any) -> str:
    """A value of JSON or of a table as text; that of null is empty. Raises TypeError for others."""
    if isinstance(value, str):  # by far the most frequent
        return value
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case float() if math.isfinite(value):
            return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
        case float():
            raise TypeError("not a finite number")
        case list() | tuple():
            raise TypeError("a list")
    raise TypeError("an object")


def normal_name(name: str) -> str:
    """One of the several ways in which Unicode and people may write a name."""
    return unicodedata.normalize("NFC", name.strip().strip(INVISIBLE).strip())


def _table_records(path: Path, text: str, required: Sequence[str], names: Collection[str]) -> Iterator[tuple[str, Row]]:
    """Fields of the named columns, unchanged; without blank lines."""
    first, _, rest = text.partition("\n")
    excel = re.fullmatch('"?sep=([,;\t|])"?', first)  # a line that Excel takes the delimiter from
    text, skipped = (rest, 1) if excel else (text, 0)
    choices = excel[1] if excel else "\t,;|" if path.suffix.lower() == ".tsv" else ",;\t|"
    headers = {delimiter: _lower(_first_fields(text, delimiter)) for delimiter in choices}
    delimiter = max(headers, key=lambda choice: (set(required) <= set(headers[choice]), len(headers[choice])))
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True)
    source, header, places = str(path), [], {}
    number, before = -1, 0  # of the record, the header being 0; lines read before it
    try:
        for fields in reader:
            line, before = before + 1 + skipped, reader.line_num
            if not "".join(fields).strip():
                continue
            number += 1
            if number == 0:
                header, places = fields, _columns(path, fields, required, names)
                continue
            where = _where(source, number, line, number + 1)
            if fields == header and len(header) > 1:
                raise UserError(f"{where} repeats the header: leave one, where files were put together.")
            if any(fields[len(header) :]):
                remedy = f"put quotes around one that holds {DELIMITERS[delimiter]}"
                raise UserError(f"{where} has more fields than the header: {remedy}.")
            yield where, {name: fields[place] for name, place in places.items() if place < len(fields)}
    except csv.Error as error:
        record = f"{path}, {f'row {number + 1}' if number >= 0 else 'the header'}"
        why = (
            "a quote that opens in it is never closed"
            if "unexpected end" in str(error)
            else "a field goes on behind its closing quote: write a quote inside a field twice"
            if "expected after" in str(error)
            else error
        )
        raise UserError(f"{record}, which begins in line {before + 1 + skipped}, is not CSV: {why}.") from None


def _columns(path: Path, header: Sequence[str], required: Sequence[str], names: Collection[str]) -> dict[str, int]:
    """The positions of the named columns."""
    found = _lower(header)
    if absent := [name for name in required if name not in found]:
        columns = ", ".join(" ".join(name.split()) for name in header if name.strip()) or "none"
        raise UserError(f"{path} has no column {absent[0]!r}; its columns are: {columns}.")
    if double := [name for name in names if found.count(name) > 1]:
        raise UserError(f"{path} has {found.count(double[0])} columns {double[0]!r}: leave one.")
    return {name: found.index(name) for name in names if name in found}


def _lower(names: Sequence[str]) -> list[str]:
    return [name.strip().casefold() for name in names]


def _first_fields(text: str, delimiter: str) -> list[str]:
    """The fields of the first line that is not blank."""
    try:
        rows = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
        return next((row for row in rows if "".join(row).strip()), [])
    except csv.Error:  # said when the rows are read
        return []


def json_records(path: Path, text: str, names: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Values of the named keys as JSON has them, without blank lines."""
    if text.lstrip().startswith("["):
        raise UserError(f"{path} is a JSON array: write each of its objects on a line of its own, without the array.")
    decode = json.JSONDecoder(object_pairs_hook=_no_key_twice, parse_constant=_no_constant).decode
    source, number = str(path), 0
    for line, content in enumerate(text.split("\n"), 1):  # JSON may hold other line breaks, such as U+2028
        if not content.strip():
            continue
        number += 1
        where = _where(source, number, line, number)
        try:
            record = decode(content)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not JSON: {first_line(error)}.") from None
        if not isinstance(record, dict):
            raise UserError(f"{where} is not a JSON object.")
        normal: dict[str, Any] = {}
        for key, value in record.items():
            if (name := key.strip().casefold()) in normal and name in names:
                raise UserError(f"{where} has two values of {name!r}: leave one.")
            normal[name] = value
        yield where, normal


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return record


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _where(path: str, number: int, line: int, expected: int) -> str:
    """Names a row, and the line that it begins in unless that follows from the number of the row."""
    return f"{path}, row {number}" + ("" if line == expected else f" (line {line})")


def _cleaned(where: str, name: str, value: Any, may_be_list: bool, is_prose: bool) -> str:
    try:
        text = _joined(where, value) if may_be_list and isinstance(value, list) else as_text(value)
    except TypeError as error:
        raise UserError(f"{where}: {name!r} is {error}, but must be text or a number.") from None
    if is_prose:
        if NO_PROSE.search(text):
            raise UserError(f"{where}: {name!r} has a null character or half of a surrogate pair.")
        return text
    text = normal_name(text) if name == "label" else text.strip()
    short = text if len(text) <= 60 else f"{text[:57]}..."
    if name == "label" and LIST.fullmatch(text):
        raise UserError(f"{where}: 'label' is a list written as text ({short!r}): put semicolons between its entries.")
    if not text.isprintable() and NO_NAME.search(text):
        raise UserError(f"{where}: {name!r} has a line break or another control character ({short!r}).")
    return text


def _joined(where: str, entries: list[Any]) -> str:
    texts = [as_text(entry).strip() for entry in entries]
    if bad := [text for text in texts if not text or SEVERAL in text]:
        raise UserError(f"{where}: {bad[0]!r} cannot be one of several: it is empty, or has a semicolon.")
    return SEVERAL.join(texts)


def _unify_numbers(rows: Sequence[Row]) -> None:
    """Labels that are whole numbers, all of them, are written without a fraction."""
    labels = {label: label.split(SEVERAL) for label in {row["label"] for row in rows if "label" in row}}
    if all(WHOLE.fullmatch(part.strip()) for parts in labels.values() for part in parts if part.strip()):
        plain = {label: SEVERAL.join(part.strip().split(".")[0] for part in parts) for label, parts in labels.items()}
        for row in rows:
            if "label" in row:
                row["label"] = plain[row["label"]]


def _other_spellings(name: str) -> Iterator[str]:
    """Other names that a file may have if there is no file of the given name."""
    yield from (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    yield os.path.expanduser(name)
    yield unquote(name)
    yield name.replace("\\", "/")
