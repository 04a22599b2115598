"""MPEG audio (MP3): frames one after another, whose number the first frame may state."""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from .recording import CUT_SHORT, Recording, Unreadable
from .tags import tag_before

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
IN_A_ROW = 3  # frames of one kind are no coincidence


class Kind(NamedTuple):
    """The properties that are constant within a stream."""

    version: int
    layer: int
    rate: int
    is_mono: bool
    is_free: bool
    """Free format: frames have any one size, which their headers do not state."""


class Header(NamedTuple):
    kind: Kind
    size: int
    """Bytes of the frame; 0 in free format, where the header does not state it."""
    padding: int
    samples: int
    tag: int
    """Position in the first frame of the tag that counts frames, if there is one."""


class Frame(NamedTuple):
    start: int
    end: int
    header: Header


@lru_cache(maxsize=4096)
def _header(head: bytes) -> Header | None:
    """The header in the first 4 bytes of a frame; None if they are no header."""
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


def is_header(head: bytes) -> bool:
    """Whether these 4 bytes begin a frame."""
    return _header(head) is not None


def _frames(content: bytes) -> Iterator[Frame]:
    """The complete frames; what stands between them is skipped."""
    at, last = 0, None
    while at >= 0:
        while size := tag_before(content, at):
            at += size
        frame = _frame(content, at, last)
        if frame and ((last and frame.header.kind == last.header.kind) or _begins_row(content, frame)):
            yield frame
            at, last = frame.end, frame
        else:
            at, last = content.find(b"\xff", at + 1), None


def _frame(content: bytes, at: int, last: Frame | None) -> Frame | None:
    """The complete frame that begins at a position."""
    header = _header(content[at : at + 4])
    if header is None:
        return None
    size = header.size
    if header.kind.is_free:  # all frames are as long as the first, which ends at the next header
        if last and last.header.kind == header.kind:
            size = last.end - last.start - last.header.padding
        else:
            size = _next_header(content, at, header.kind) - at - header.padding
    end = at + size + header.padding
    return Frame(at, end, header) if at < end <= len(content) else None


def _next_header(content: bytes, at: int, kind: Kind) -> int:
    """The position of the next header of this kind; `at` if none is near."""
    following = at + 24
    while (following := content.find(content[at : at + 2], following, at + 8192)) >= 0:
        header = _header(content[following : following + 4])
        if header and header.kind == kind:
            return following
        following += 1
    return at


def _begins_row(content: bytes, frame: Frame) -> bool:
    """Whether other frames of its kind follow, at least two unless the file ends before."""
    for number in range(IN_A_ROW - 1):
        if frame.end > len(content) - 4:
            return number > 0 or frame.start == 0
        following = _frame(content, frame.end, frame)
        if following is None or following.header.kind != frame.header.kind:
            return False
        frame = following
    return True


def _streams(content: bytes) -> Iterator[list[Frame]]:
    """Frames that belong together: a stream ends when the kind changes, or before a frame that counts frames."""
    stream = []
    for frame in _frames(content):
        if stream and (frame.header.kind != stream[0].header.kind or _tag(content, frame)):
            yield stream
            stream = []
        stream.append(frame)
    if stream:
        yield stream


def _tag(content: bytes, frame: Frame) -> bytes:
    """The name of the tag with which a frame counts those that follow and holds no audio; empty if it has none."""
    if frame.header.kind.layer != 3:
        return b""
    name, other = (content[at : at + 4] for at in (frame.start + frame.header.tag, frame.start + 36))
    return name if name in (b"Xing", b"Info") else other if other == b"VBRI" else b""


def read_mpeg(content: bytes) -> Iterator[Recording]:
    """Streams of frames, each after a frame with their correct number; the content as it is if there are no frames."""
    first = None
    for stream in _streams(content):
        first = stream[0]
        tag = _tag(content, first)
        audio = stream[1:] if tag else stream
        body = b"".join(content[frame.start : frame.end] for frame in audio)
        if first.header.kind.layer != 3:
            yield Recording(body, len(audio) * first.header.samples)
            continue
        if tag in (b"Xing", b"Info") and content[first.start + first.header.tag + 7] & 3 == 3:
            head = bytearray(content[first.start : first.end])
            at = first.header.tag + 8
            if int.from_bytes(head[at : at + 4], "big") > len(audio) + (not _breaks_off(content, stream[-1])):
                raise Unreadable(CUT_SHORT)
        else:
            head = _empty_frame(content[first.start : first.start + 4])
            at = first.header.tag + 8
            head[at - 8 : at] = b"Xing\0\0\0\3"
        head[at : at + 8] = len(audio).to_bytes(4, "big") + (len(head) + len(body)).to_bytes(4, "big")
        yield Recording(bytes(head) + body)
    if first is None:
        yield Recording(content)


def _empty_frame(head: bytes) -> bytearray:
    """A frame of the same kind that has room for a count."""
    head = bytes([head[0], head[1] | 1, head[2] & 0x0C | 0xE0, head[3]])  # no checksum, the greatest bit rate
    header = _header(head)
    assert header is not None
    return bytearray(head.ljust(header.size, b"\0"))


def _breaks_off(content: bytes, last: Frame) -> bool:
    """Whether an incomplete frame follows the last complete one; without, a count that is 1 too high counts itself."""
    header = _header(content[last.end : last.end + 4])
    return header is not None and header.kind == last.header.kind and _frame(content, last.end, last) is None
