"""Tags with titles and the like, which players put before and after audio of any kind: ID3, APE and Lyrics3."""


def without_tags(content: bytes) -> bytes:
    """The content of a file without the tags at its start and end."""
    start, end = 0, len(content)
    while size := tag_before(content, start):
        start += size
    while 0 < (size := _tag_after(content[max(end - 256, start) : end])) <= end - start:
        end -= size
    return content[start:end]


def tag_before(content: bytes, at: int) -> int:
    """Bytes of the tag that begins at a position; 0 if there is none, or if the file ends before the tag."""
    head, size = content[at : at + 32], 0
    if head[:3] == b"ID3" and len(head) >= 10 and max(head[6:10]) < 128:
        size = 10 + _seven_bits(head[6:10]) + (10 if head[5] & 0x10 else 0)
    elif head[:8] == b"APETAGEX" and len(head) == 32:
        size = 32 + int.from_bytes(head[12:16], "little")
    elif head[:3] == b"TAG":
        size = 128
    return size if at + size <= len(content) else 0


def _tag_after(end: bytes) -> int:
    """Bytes of the tag that ends there; 0 if there is none."""
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
    """Numbers of ID3 use seven bits of each byte."""
    return sum(byte << 7 * (3 - place) for place, byte in enumerate(size))
