"""WAV, AIFF and AU files: a length in bytes stands before the samples."""

import re
from collections.abc import Iterator
from typing import Literal

from .mpeg import read_mpeg
from .recording import CUT_SHORT, Recording, Unreadable

MAGICS = (b"RIFF", b"RIFX", b"RF64", b"FORM", b".snd", b"dns.", b"fLaC", b"OggS")  # that audio files begin with
HEAD = re.compile(rb"(RIFF|RIFX|RF64).{4}WAVE|FORM.{4}AIF[FC]", re.DOTALL)  # of a file in chunks
UNKNOWN = 2**31 - 2**16  # bytes; writers that cannot know the length state this or more, or nothing
MP3_IN_WAV = 0x55


def read_chunks(content: bytes) -> tuple[Iterator[Recording], bytes]:
    """The recording of a RIFF, RIFX, RF64 or AIFF file, and what follows it.

    libsndfile gets only the samples and the chunks that describe them: other chunks are not needed and may be broken.
    """
    order, samples = _order(content), b"SSND" if content[:4] == b"FORM" else b"data"
    at, kept, wide, encoding = 12, b"", None, 0
    while (name := content[at : at + 4]) != samples and at < len(content):
        size = int.from_bytes(content[at + 4 : at + 8], order)
        end = at + 8 + size + size % 2
        if size % 2 and not _is_chunk(content, end) and _is_chunk(content, end - 1):
            end -= 1  # some writers leave out the padding byte of an odd length
        if name == b"ds64":
            wide = int.from_bytes(content[at + 16 : at + 24], order)
        if name == b"fmt ":
            encoding, channels, *_, frame, bits = (
                int.from_bytes(content[n : n + 2], order) for n in range(at + 8, at + 24, 2)
            )
            if frame == 4 * channels and bits == 24:  # it states the used bits, not the stored ones
                content = content[: at + 22] + (32).to_bytes(2, order) + content[at + 24 :]
        if name in (b"fmt ", b"fact", b"COMM", b"FVER"):
            kept += content[at : at + 8 + size] + b"\0" * (size % 2)
        at = end
    if not kept or len(content) < at + 8:  # in another order, or incomplete: libsndfile names the fault
        return iter([Recording(content)]), b""
    start, stated = at + 8, int.from_bytes(content[at + 4 : at + 8], order)
    if wide is not None and stated == 2**32 - 1:
        stated = wide
    end, rest = _end(content, start, stated)
    if content[end + (end - start) % 2 :].startswith(samples):
        raise Unreadable("has its samples in several chunks, which cannot be read: save it again")
    if encoding == MP3_IN_WAV:
        return read_mpeg(content[start:end]), rest
    if end - start >= 2**32:
        raise Unreadable("holds more than 4 GiB of samples: cut it into several files")
    head = content[8:12] + kept + samples + (end - start).to_bytes(4, order)
    size = min(len(head) + end - start, 2**32 - 1).to_bytes(4, order)
    magic = content[:4].replace(b"RF64", b"RIFF")
    return iter([Recording(b"".join((magic, size, head, memoryview(content)[start:end])))]), rest


def read_au(content: bytes) -> tuple[Iterator[Recording], bytes]:
    order = "big" if content[:4] == b".snd" else "little"
    start, stated = (int.from_bytes(content[at : at + 4], order) for at in (4, 8))
    end, rest = _end(content, start, stated)
    return iter([Recording(content[:8] + b"\xff" * 4 + content[12:end])]), rest  # the format allows an unknown length


def _end(content: bytes, start: int, stated: int) -> tuple[int, bytes]:
    """Where the samples end that begin at `start` and should be `stated` bytes; and the files joined to them."""
    there = len(content) - start
    if there + 1 < stated < UNKNOWN:  # the padding byte of an odd length may be missing
        raise Unreadable(CUT_SHORT)
    if stated <= there + 1:
        for end in (start + stated + stated % 2, start + stated):  # some writers leave that byte out
            if content[end : end + 4] in MAGICS:
                return end, content[end:]
            if _is_chunk(content, end) or len(content) < end + 2:
                return min(start + stated, len(content)), b""
    # The length is unknown, or was written before all samples: they reach to the next joined file, or to the end.
    joined = HEAD.search(content, start)
    return (joined.start(), content[joined.start() :]) if joined else (len(content), b"")


def _is_chunk(content: bytes, at: int) -> bool:
    """Whether a chunk begins here: one that ends in the file, or one with a well-known name."""
    name, size = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], _order(content))
    fits = re.fullmatch(rb"[A-Za-z0-9_ ]{4}", name) and size <= len(content) - at - 8
    return bool(fits) or name in (b"LIST", b"id3 ", b"ID3 ", b"bext", b"iXML", b"JUNK", b"PEAK", b"cue ", b"smpl")


def _order(content: bytes) -> Literal["big", "little"]:
    return "big" if content[:4] in (b"FORM", b"RIFX") else "little"
