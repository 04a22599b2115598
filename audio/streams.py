"""The recordings in a sound file, each with lengths that libsndfile can believe.

libsndfile stops where a header says that the sound ends, and for MP3 without such a header where it guesses that.
Headers of sound that was streamed, joined or cut are wrong. So the bytes themselves are walked through: files that were
joined end to end are parted, tags are left out, and a wrong length is put right. What a header truly promises and the
file does not hold is an error.
"""

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from io import BytesIO
from itertools import pairwise
from typing import Literal, NamedTuple

from soundfile import LibsndfileError, SoundFile

HEAD = re.compile(rb"(RIFF|RIFX|RF64).{4}WAVE|FORM.{4}AIF[FC]", re.DOTALL)  # of a file in chunks
UNKNOWN = 2**31 - 2**16  # bytes; writers that cannot know the length state this or more, or nothing


class Recording(NamedTuple):
    content: bytes
    """A file that libsndfile reads to its end."""
    samples: int | None = None
    """How many there must be at least; None for what libsndfile says."""


class Unreadable(Exception):
    """What is wrong with a file, as the end of a sentence that begins with its name."""


CUT_SHORT = "is cut short: it promises more sound than it holds"


class Bytes(BytesIO):
    """A file in memory. Where a broken one points before its start, the callbacks of soundfile must not raise."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


def recordings(content: bytes) -> Iterator[Recording]:
    """What is in a sound file, from its content alone: suffixes lie too. Anything unknown is left as it is."""
    content = _without_tags(content)
    read = next((read for magic, read in KINDS.items() if content.startswith(magic)), None)
    if read is not None:
        yield from read(content)
    elif _header(content[:4]) is None and _is_known(content):
        yield Recording(content)
    else:
        yield from _mpeg(content)


def _is_known(content: bytes) -> bool:
    """Whether libsndfile knows it for something else than MPEG, whose frames other sound might hold by chance."""
    try:
        with SoundFile(Bytes(content)) as file:
            return file.format != "MP3"
    except LibsndfileError:
        return False


# --- Tags -----------------------------------------------------------------------------------------------------------


def _without_tags(content: bytes) -> bytes:
    """Without the ID3, APE and Lyrics3 tags that players put before and behind sound of any kind."""
    start, end = 0, len(content)
    while size := _tag_before(content, start):
        start += size
    while 0 < (size := _tag_behind(content[max(end - 256, start) : end])) <= end - start:
        end -= size
    return content[start:end]


def _tag_before(content: bytes, at: int) -> int:
    """Bytes of the tag that begins here; 0 if none does, or none that ends in the file."""
    head, size = content[at : at + 32], 0
    if head[:3] == b"ID3" and len(head) >= 10 and max(head[6:10]) < 128:
        size = 10 + _seven_bits(head[6:10]) + (10 if head[5] & 0x10 else 0)
    elif head[:8] == b"APETAGEX" and len(head) == 32:
        size = 32 + int.from_bytes(head[12:16], "little")
    elif head[:3] == b"TAG":
        size = 128
    return size if at + size <= len(content) else 0


def _tag_behind(end: bytes) -> int:
    """Bytes of the tag that ends here; 0 if none does."""
    if end[-128:-125] == b"TAG":
        return 128
    if end[-32:-24] == b"APETAGEX":
        has_header = end[-9] & 0x80
        return int.from_bytes(end[-20:-16], "little") + (32 if has_header else 0)
    if end[-9:] == b"LYRICS200" and end[-15:-9].isdigit():
        return int(end[-15:-9]) + 15
    if end[-10:-7] == b"3DI" and max(end[-4:]) < 128:
        return _seven_bits(end[-4:]) + 20
    return 0


def _seven_bits(size: bytes) -> int:
    """ID3's numbers have seven bits a byte."""
    return sum(byte << 7 * (3 - place) for place, byte in enumerate(size))


# --- WAV, AIFF, AU: a length in bytes before the samples ------------------------------------------------------------


def _chunks(content: bytes) -> Iterator[Recording]:
    """RIFF, RIFX, RF64 and AIFF. What libsndfile gets are the samples and the chunks that say what they are: others
    may be broken, and are not needed."""
    order, samples = _order(content), b"SSND" if content[:4] == b"FORM" else b"data"
    at, kept, wide, encoding = 12, b"", None, 0
    while (name := content[at : at + 4]) != samples and at < len(content):
        size = int.from_bytes(content[at + 4 : at + 8], order)
        end = at + 8 + size + size % 2
        if size % 2 and not _is_chunk(content, end) and _is_chunk(content, end - 1):
            end -= 1  # some writers leave out the byte that makes an odd length even
        if name == b"ds64":
            wide = int.from_bytes(content[at + 16 : at + 24], order)
        if name == b"fmt ":
            encoding, channels, *_, frame, bits = (
                int.from_bytes(content[n : n + 2], order) for n in range(at + 8, at + 24, 2)
            )
            if frame == 4 * channels and bits == 24:  # as many bits as count, but not as many as there are
                content = content[: at + 22] + (32).to_bytes(2, order) + content[at + 24 :]
        if name in (b"fmt ", b"fact", b"COMM", b"FVER"):
            kept += content[at : at + 8 + size] + b"\0" * (size % 2)
        at = end
    if not kept or len(content) < at + 8:  # in another order, or incomplete: libsndfile will say what is wrong
        yield Recording(content)
        return
    start, stated = at + 8, int.from_bytes(content[at + 4 : at + 8], order)
    if wide is not None and stated == 2**32 - 1:
        stated = wide
    end, joined = _end(content, start, stated)
    if content[end + (end - start) % 2 :].startswith(samples):
        raise Unreadable("has its samples in several chunks, which cannot be read: save it anew")
    if encoding == MP3_IN_WAV:
        yield from _mpeg(content[start:end])
    elif end - start >= 2**32:
        raise Unreadable("holds more than 4 GiB of samples, which is too much at once: cut it up")
    else:
        head = content[8:12] + kept + samples + (end - start).to_bytes(4, order)
        size = min(len(head) + end - start, 2**32 - 1).to_bytes(4, order)
        magic = content[:4].replace(b"RF64", b"RIFF")
        yield Recording(b"".join((magic, size, head, memoryview(content)[start:end])))
    if joined:
        yield from recordings(content[end:])


def _au(content: bytes) -> Iterator[Recording]:
    order = "big" if content[:4] == b".snd" else "little"
    start, stated = (int.from_bytes(content[at : at + 4], order) for at in (4, 8))
    end, joined = _end(content, start, stated)
    yield Recording(content[:8] + b"\xff" * 4 + content[12:end])  # a length that is not known is allowed
    if joined:
        yield from recordings(content[end:])


def _end(content: bytes, start: int, stated: int) -> tuple[int, bool]:
    """Where the samples end that begin at `start` and should be `stated` bytes; whether a file is joined to them."""
    there = len(content) - start
    if there + 1 < stated < UNKNOWN:  # the byte that makes an odd length even may be missing
        raise Unreadable(CUT_SHORT)
    if stated <= there + 1:
        for end in (start + stated + stated % 2, start + stated):  # some writers leave that byte out
            if content[end : end + 4] in KINDS:
                return end, True
            if _is_chunk(content, end) or len(content) < end + 2:
                return min(start + stated, len(content)), False
    # The length was unknown, or stated before all was written: to the next file that is joined, or to the end.
    joined = HEAD.search(content, start)
    return (joined.start(), True) if joined else (len(content), False)


def _is_chunk(content: bytes, at: int) -> bool:
    """Whether a chunk begins here: one that ends in the file, or of a kind that is well known."""
    name, size = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], _order(content))
    fits = re.fullmatch(rb"[A-Za-z0-9_ ]{4}", name) and size <= len(content) - at - 8
    return bool(fits) or name in (b"LIST", b"id3 ", b"ID3 ", b"bext", b"iXML", b"JUNK", b"PEAK", b"cue ", b"smpl")


def _order(content: bytes) -> Literal["big", "little"]:
    return "big" if content[:4] in (b"FORM", b"RIFX") else "little"


# --- FLAC: a number of samples, which may be 0 for unknown ----------------------------------------------------------


def _flac(content: bytes) -> Iterator[Recording]:
    joined = [found.start() for found in re.finditer(rb"fLaC[\x00\x80]\x00\x00\x22", content) if found.start()]
    for start, end in pairwise([0, *joined, len(content)]):
        head, sizes, rest = content[start : start + 21], content[start + 21 : start + 26], content[start + 26 : end]
        stated = int.from_bytes(sizes, "big") & (1 << 36) - 1
        unstated = bytes([sizes[0] & 0xF0, 0, 0, 0, 0]) if rest else sizes  # then libsndfile reads on to the end
        yield Recording(head + unstated + rest, stated or None)


# --- Ogg: streams that may be chained -------------------------------------------------------------------------------


def _ogg(content: bytes) -> Iterator[Recording]:
    """A stream begins with pages that say so. Where one comes after other pages, a new stream begins."""
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


# --- MPEG: frames one after another, their number perhaps in the first ----------------------------------------------

FIELDS = ((19, 3), (17, 3), (12, 15), (10, 3), (9, 1), (6, 3))  # of a header: where, and of how many bits
RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # by version
KBITS = {  # by whether the version is 1, and layer
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MP3_IN_WAV = 0x55
IN_A_ROW = 3  # frames of a kind that are no coincidence


class Kind(NamedTuple):
    """What does not change within a stream."""

    version: int
    layer: int
    rate: int
    is_mono: bool
    is_free: bool
    """Frames may have any size, which their headers do not say."""


class Header(NamedTuple):
    kind: Kind
    size: int
    """Bytes of the frame; without its padding where the header does not say (free format)."""
    padding: int
    samples: int
    tag: int
    """Where in a first frame the count of frames is, if there is one."""


class Frame(NamedTuple):
    start: int
    end: int
    header: Header


@lru_cache(maxsize=4096)
def _header(head: bytes) -> Header | None:
    """What the first 4 bytes of a frame say; None if they do not begin one."""
    bits = int.from_bytes(head, "big")
    version, layer, kbits, rate, padded, mode = (bits >> n & m for n, m in FIELDS)
    if len(head) < 4 or bits >> 21 != 0x7FF or version == 1 or layer == 0 or kbits == 15 or rate == 3:
        return None
    layer, mono, first = 4 - layer, mode == 3, version == 3
    samples = 384 if layer == 1 else 576 if layer == 3 and not first else 1152
    unit = 4 if layer == 1 else 1
    size = unit * (samples // 8 // unit * 1000 * KBITS[first, layer][kbits] // RATES[version][rate])
    tag = 4 + ((17 if mono else 32) if first else (9 if mono else 17))
    return Header(Kind(version, layer, rate, mono, kbits == 0), size, unit * padded, samples, tag)


def _frames(content: bytes) -> Iterator[Frame]:
    """The whole frames in it; what stands between them is passed over."""
    at, last = 0, None
    while at >= 0:
        while size := _tag_before(content, at):
            at += size
        frame = _frame(content, at, last)
        if frame and ((last and frame.header.kind == last.header.kind) or _begins_row(content, frame)):
            yield frame
            at, last = frame.end, frame
        else:
            at, last = content.find(b"\xff", at + 1), None


def _frame(content: bytes, at: int, last: Frame | None) -> Frame | None:
    """The whole frame that begins here."""
    header = _header(content[at : at + 4])
    if header is None:
        return None
    size = header.size
    if header.kind.is_free:  # all frames are as long as the first, which lasts until the next header
        if last and last.header.kind == header.kind:
            size = last.end - last.start - last.header.padding
        else:
            size = _next_header(content, at, header.kind) - at - header.padding
    end = at + size + header.padding
    return Frame(at, end, header) if at < end <= len(content) else None


def _next_header(content: bytes, at: int, kind: Kind) -> int:
    """Where the next header of this kind is; `at` if there is none near."""
    following = at + 24
    while (following := content.find(content[at : at + 2], following, at + 8192)) >= 0:
        header = _header(content[following : following + 4])
        if header and header.kind == kind:
            return following
        following += 1
    return at


def _begins_row(content: bytes, frame: Frame) -> bool:
    """Whether others of its kind follow, as many as there is room for."""
    for number in range(IN_A_ROW - 1):
        if frame.end > len(content) - 4:
            return number > 0 or frame.start == 0
        following = _frame(content, frame.end, frame)
        if following is None or following.header.kind != frame.header.kind:
            return False
        frame = following
    return True


def _streams(content: bytes) -> Iterator[list[Frame]]:
    """Frames that belong together: until their kind changes, or one comes that counts those that follow."""
    stream = []
    for frame in _frames(content):
        if stream and (frame.header.kind != stream[0].header.kind or _tag(content, frame)):
            yield stream
            stream = []
        stream.append(frame)
    if stream:
        yield stream


def _tag(content: bytes, frame: Frame) -> bytes:
    """The name of the tag that makes this frame count those that follow, and hold no sound; empty for none."""
    if frame.header.kind.layer != 3:
        return b""
    name, other = (content[at : at + 4] for at in (frame.start + frame.header.tag, frame.start + 36))
    return name if name in (b"Xing", b"Info") else other if other == b"VBRI" else b""


def _mpeg(content: bytes) -> Iterator[Recording]:
    """Streams of frames, each behind a frame that counts them rightly; the content as it is if there are none."""
    found = False
    for stream in _streams(content):
        found, first = True, stream[0]
        tag = _tag(content, first)
        sound = stream[1:] if tag else stream
        body = b"".join(content[frame.start : frame.end] for frame in sound)
        if first.header.kind.layer != 3:
            yield Recording(body, len(sound) * first.header.samples)
            continue
        if tag in (b"Xing", b"Info") and content[first.start + first.header.tag + 7] & 3 == 3:
            head = bytearray(content[first.start : first.end])
            at = first.header.tag + 8
            if int.from_bytes(head[at : at + 4], "big") > len(sound) + (not _breaks_off(content, stream[-1])):
                raise Unreadable(CUT_SHORT)
        else:
            head = _empty_frame(content[first.start : first.start + 4])
            at = first.header.tag + 8
            head[at - 8 : at] = b"Xing\0\0\0\3"
        head[at : at + 8] = len(sound).to_bytes(4, "big") + (len(head) + len(body)).to_bytes(4, "big")
        yield Recording(bytes(head) + body)
    if not found:
        yield Recording(content)


def _empty_frame(head: bytes) -> bytearray:
    """A frame of the same kind, large enough for a count."""
    head = bytes([head[0], head[1] | 1, head[2] & 0x0C | 0xE0, head[3]])  # no checksum, the greatest bit rate
    return bytearray(head.ljust(_header(head).size, b"\0"))


def _breaks_off(content: bytes, last: Frame) -> bool:
    """Whether a frame begins behind the last whole one. (Without, a count that is one too great counts itself.)"""
    header = _header(content[last.end : last.end + 4])
    return header is not None and header.kind == last.header.kind and _frame(content, last.end, last) is None


KINDS = {
    b"RIFF": _chunks,
    b"RIFX": _chunks,
    b"RF64": _chunks,
    b"FORM": _chunks,
    b".snd": _au,
    b"dns.": _au,
    b"fLaC": _flac,
    b"OggS": _ogg,
}
