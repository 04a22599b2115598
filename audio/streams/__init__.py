"""The recordings in an audio file, each with a length that libsndfile can rely on.

libsndfile stops where a header says that the audio ends; for MP3 without such a header it guesses. The headers of
streamed, joined or cut files are wrong. Therefore the bytes themselves are read: files that were joined end to end are
separated, tags are removed, and a wrong length is corrected. A file that holds less audio than its header promises is
an error.
"""

import re
from collections.abc import Iterator
from itertools import pairwise

from soundfile import LibsndfileError, SoundFile

from .chunks import read_au, read_chunks
from .mpeg import is_header, read_mpeg
from .recording import CUT_SHORT, Bytes, Recording, Unreadable
from .tags import without_tags

__all__ = ["Bytes", "Recording", "Unreadable", "recordings"]


def recordings(content: bytes) -> Iterator[Recording]:
    """The recordings in an audio file, whose format is found from its content alone: suffixes may be wrong.

    The content of an unknown format is returned as it is.
    """
    content, rest = without_tags(content), b""
    match content[:4]:
        case b"RIFF" | b"RIFX" | b"RF64" | b"FORM":
            found, rest = read_chunks(content)
        case b".snd" | b"dns.":
            found, rest = read_au(content)
        case b"fLaC":
            found = _flac(content)
        case b"OggS":
            found = _ogg(content)
        case head if not is_header(head) and _is_known(content):
            found = iter([Recording(content)])
        case _:
            found = read_mpeg(content)
    yield from found
    if rest:
        yield from recordings(rest)


def _is_known(content: bytes) -> bool:
    """Whether libsndfile finds a format other than MPEG, whose frames may occur in other audio by chance."""
    try:
        with SoundFile(Bytes(content)) as file:
            return file.format != "MP3"
    except LibsndfileError:
        return False


def _flac(content: bytes) -> Iterator[Recording]:
    """FLAC files, whose headers state a number of samples, or 0 if it is unknown."""
    joined = [found.start() for found in re.finditer(rb"fLaC[\x00\x80]\x00\x00\x22", content) if found.start()]
    for start, end in pairwise([0, *joined, len(content)]):
        head, sizes, rest = content[start : start + 21], content[start + 21 : start + 26], content[start + 26 : end]
        stated = int.from_bytes(sizes, "big") & (1 << 36) - 1
        unstated = bytes([sizes[0] & 0xF0, 0, 0, 0, 0]) if rest else sizes  # then libsndfile reads to the end
        yield Recording(head + unstated + rest, stated or None)


def _ogg(content: bytes) -> Iterator[Recording]:
    """Ogg streams, which may be chained: a page that is marked as the first, after other pages, begins a new stream."""
    starts, at, first = [0], 0, True
    while (at := content.find(b"OggS", at)) >= 0:
        head = content[at : at + 27]
        table = content[at + 27 : at + 27 + head[-1]]
        end = at + 27 + len(table) + sum(table)
        if len(head) < 27 or len(table) < head[-1] or end > len(content):
            raise Unreadable(CUT_SHORT)
        begins = bool(head[5] & 2)
        if begins and not first:
            starts.append(at)
        at, first = end, begins
    for start, end in pairwise([*starts, len(content)]):
        yield Recording(content[start:end])
