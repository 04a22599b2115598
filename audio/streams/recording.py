"""A recording is a piece of an audio file that libsndfile reads to its end."""

import os
from io import BytesIO
from typing import NamedTuple

CUT_SHORT = "is cut short: its header promises more audio than the file holds"


class Recording(NamedTuple):
    content: bytes
    """A file that libsndfile reads to its end."""
    samples: int | None = None
    """The least number of samples that must be read; None: the number that libsndfile gives."""


class Unreadable(Exception):
    """A file cannot be read; the message is the end of a sentence that begins with its name."""


class Bytes(BytesIO):
    """A file in memory. Broken files may point before their start, but soundfile's callbacks must not raise."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()
