"""Protein sequences from FASTA files."""

from dataclasses import dataclass
from pathlib import Path

from core import UserError

from .inputs import read_unpacked


@dataclass(frozen=True)
class Record:
    name: str
    """The first word of the header."""
    sequence: str
    """Upper case, without the stop."""


def read_fasta(path: Path) -> list[Record]:
    """The records of a file, which may be gzipped: headers begin with > and name their record, sequences may go over
    several lines, be of either case, and end with * (the stop). Any letter is a residue; lines that begin with ; are
    comments. An error names the line."""
    text = read_unpacked(path, "FASTA file")
    if not text.lstrip().startswith((">", ";")) and not text.isascii():
        raise UserError(f"{path} is not a FASTA file: it is not text.")
    lines = text.split("\n")
    starts: dict[str, int] = {}
    parts: dict[str, list[str]] = {}
    name = None
    for number, line in enumerate(lines, 1):
        line, where = line.strip(), f"{path}, line {number}"
        if line.startswith(">"):
            words = line[1:].replace("\x01", " ").split(maxsplit=1)  # \x01 parts the headers of one sequence
            name = words[0] if words else None
            if name is None:
                raise UserError(f"{where}: a name must follow the >.")
            if name in starts:
                raise UserError(f"{where}: there is a record {name} in line {starts[name]} already.")
            starts[name], parts[name] = number, []
        elif line and not line.startswith(";"):
            if name is None:
                raise UserError(f"{where}: a sequence needs a header before it, a line of > and a name.")
            if parts[name] and parts[name][-1].endswith("*"):
                raise UserError(f"{where}: record {name} goes on behind its stop (*).")
            letters = "".join(line.split())
            if wrong := [c for c in letters.removesuffix("*") if not (c.isascii() and c.isalpha())]:
                raise UserError(f"{where}: {wrong[0]!r} is not a residue; a sequence has letters only (gaps left out).")
            parts[name].append(letters.upper())
    if not starts:
        raise UserError(f"{path} holds no sequence.")
    sequences = {name: "".join(lines).removesuffix("*") for name, lines in parts.items()}
    if empty := [name for name, sequence in sequences.items() if not sequence]:
        raise UserError(f"{path}, line {starts[empty[0]]}: record {empty[0]} has no sequence.")
    return [Record(name, sequence) for name, sequence in sequences.items()]
