"""Text files of biology, which may be gzipped."""

import gzip
import zlib
from pathlib import Path

from core import UserError
from core.files import BOMS, read_bytes


def read_unpacked(path: Path, what: str) -> str:
    """The text of a file, unpacked if it is gzipped, each line ended by a line feed alone.

    Sequences and coordinates are ASCII; names that are not valid UTF-8 are read as Windows-1252.
    """
    content = read_bytes(path, what)
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise UserError(f"{path} cannot be unpacked: {str(error).rstrip('.')}.") from None
    encoding = next((known for mark, known in BOMS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
