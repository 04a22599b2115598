"""Tables of predictions (CSV, JSON Lines, Parquet), and the file in which their rows wait until all are there."""

import csv
import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Literal

from ..data.arrow_files import arrow
from ..errors import UserError
from ..files import reason, replacing

Kind = Literal["text", "number", "vector", "json"]
"""Of a column. A vector is a list of numbers, json any value that JSON has, which is text in CSV and Parquet; so is a
vector in CSV."""
Columns = Mapping[str, Kind]
Row = dict[str, Any]
FORMATS = (".csv", ".jsonl", ".parquet")
ERROR = "error"  # the column that says why there is no prediction
GROUP = 10_000  # rows of a row group of Parquet


def check_table(path: Path) -> None:
    """Refuse a name that no table can be written to, before anything is computed."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--out {path} must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}; plots go to --plots.")
    if path.suffix.lower() == ".parquet":
        arrow()
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: there is no directory {path.parent}.")


def write_table(path: Path, columns: Columns, rows: Iterable[Row]) -> None:
    """Whole or not at all. Raises OSError if it cannot be written."""
    write = {".csv": _write_csv, ".jsonl": _write_json_lines, ".parquet": _write_parquet}[path.suffix.lower()]
    with replacing(path) as partial:
        write(partial, columns, rows)


def _write_csv(path: Path, columns: Columns, rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow([row[n] if kind == "number" else _as_text(row[n], kind) for n, kind in columns.items()])


def _write_json_lines(path: Path, columns: Columns, rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for row in rows:
            file.write(json.dumps({name: row[name] for name in columns}, ensure_ascii=False) + "\n")


def _write_parquet(path: Path, columns: Columns, rows: Iterable[Row]) -> None:
    pyarrow = arrow()
    types = {
        "text": pyarrow.string(),
        "number": pyarrow.float64(),
        "vector": pyarrow.list_(pyarrow.float32()),
        "json": pyarrow.string(),
    }
    schema = pyarrow.schema([(name, types[kind]) for name, kind in columns.items()])
    plain = {name for name, kind in columns.items() if kind in ("number", "vector")}
    with pyarrow.parquet.ParquetWriter(str(path), schema) as writer:
        waiting = iter(rows)
        while group := [row for row, _ in zip(waiting, range(GROUP), strict=False)]:
            made = {
                name: [row[name] if name in plain else _as_text(row[name], kind) for row in group]
                for name, kind in columns.items()
            }
            writer.write_table(pyarrow.Table.from_pydict(made, schema))


def _as_text(value: Any, kind: Kind) -> str | None:
    """A value that is no number; bytes of a file's name that are not text are escaped."""
    if value is None:
        return None
    text = value if kind == "text" else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()


class Journal:
    """OUT.partial: the rows of a table so far, a batch on each line, behind a line that says what call they are of.

    A second call of the same kind goes on behind the batches that are there; what a kill cut short is dropped.

    header: what the rows depend on, by names for messages. A call that differs in it is refused.
    kept: what the first call chose; those that go on have it from there.
    """

    def __init__(self, out: Path, header: Mapping[str, Any], kept: Any = None):
        self.out, self.path, self.header, self.kept = out, out.with_name(f"{out.name}.partial"), dict(header), kept
        self.batches = self.failed = 0
        self.first_error = ""

    def __enter__(self) -> "Journal":
        if os.path.lexists(self.out) and not self.path.exists():
            raise UserError(f"--out {self.out} is there already: name another file, or remove it.")
        try:
            self.file: FileIO = self.path.open("ab", buffering=0)
            self.reader = self.path.open("rb")  # open until the end: a lock ends when any handle of its file is closed
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {reason(error)}.") from None
        try:
            self._lock()
            self._read()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if not self.batches:  # nothing to go on from
            self.path.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        self.reader.close()
        self.file.close()

    def _lock(self) -> None:
        """Refuse a second process. A lock ends with its process, and loading processes do not inherit it."""
        try:
            import fcntl  # not on Windows

            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            return
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                sentence = f"Another process writes {self.out}: wait until it ends, or name another file."
                raise UserError(sentence) from None

    def _read(self) -> None:
        """Count the rows that are there; what follows the last complete line is cut off."""
        header = self.reader.readline()
        if not header.endswith(b"\n"):  # a new file, or one whose process was killed at once
            self.file.truncate(0)
            self._write([self.header, self.kept])
            return
        try:
            before, self.kept = json.loads(header)
            differing = [name for name, value in json.loads(json.dumps(self.header)).items() if before[name] != value]
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{self.path} is not as it was written: remove it.") from None
        if differing:
            raise UserError(
                f"{self.path} is what another call left, with other {differing[0]}: repeat that call to finish it, or "
                "remove the file."
            )
        end = self.reader.tell()
        for rows in self._lines():
            self._count(rows)
            end = self.reader.tell()
        self.file.truncate(end)

    def _lines(self) -> Iterator[list[Row]]:
        """The rows of each complete line from here on."""
        while (line := self.reader.readline()).endswith(b"\n"):
            try:
                yield json.loads(line)
            except ValueError:  # a power cut left something else
                return

    def _count(self, rows: Sequence[Row]) -> None:
        errors = [row[ERROR] for row in rows if row[ERROR]]
        self.batches, self.failed = self.batches + 1, self.failed + len(errors)
        self.first_error = self.first_error or (errors[0] if errors else "")

    def _write(self, value: Any) -> None:
        line = json.dumps(value).encode() + b"\n"
        try:
            if self.file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written: {reason(error)}; make room, and go on with the same command."
            ) from None

    def add(self, rows: Sequence[Row]) -> None:
        """The rows of the next batch; they are in the file when this returns."""
        self._write(rows)
        self._count(rows)

    def finish(self, columns: Columns) -> None:
        """Write the table from all rows, and remove the journal."""
        self.reader.seek(0)
        self.reader.readline()
        write_table(self.out, columns, (row for rows in self._lines() for row in rows))
        self.path.unlink()
