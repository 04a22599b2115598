"""Image files that Pillow cannot write itself: more than 8 bits a channel, in the formats' plainest form."""

import struct
import zlib
from pathlib import Path

import numpy as np


def write_png(path: Path, values: np.ndarray, clear: int | None = None) -> None:
    """values: uint16 "h w", or "h w c" of 2 (grey and alpha), 3 or 4 channels. clear: the grey that is transparent."""
    rows, columns = values.shape[:2]
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[values.size // (rows * columns)]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 16, color_type, 0, 0, 0))]
    chunks += [] if clear is None else [(b"tRNS", struct.pack(">H", clear))]
    chunks += [(b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    parts = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def write_tiff(path: Path, values: np.ndarray, order: str = "<", photometric: int = 1, bits: int | None = None) -> None:
    """values: "h w", or "h w 3" of photometric 2. order: < or >. photometric: 0 if 0 is white. bits: 12 are packed."""
    rows, columns = values.shape[:2]
    channels = values.size // (rows * columns)
    if bits == 12:
        lines = ("".join(f"{value:03x}" for value in line) for line in values)
        data = b"".join(bytes.fromhex(line + "0" * (len(line) % 2)) for line in lines)
    else:
        bits, data = values.itemsize * 8, values.astype(values.dtype.newbyteorder(order)).tobytes()
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    several = struct.pack(f"{order}{channels}H", *[bits] * channels)
    start = 8 + len(several)
    after = start + len(data)
    entries = [(256, columns), (257, rows), (258, bits if channels == 1 else 8), (259, 1), (262, photometric)]
    entries += [(273, start), (277, channels), (278, rows), (279, len(data)), (339, kind)]
    table = struct.pack(f"{order}H", len(entries))
    for tag, value in entries:
        several_here = tag == 258 and channels > 1
        short = tag in (258, 259, 262, 277, 339) and not several_here
        packed = struct.pack(f"{order}HH", value, 0) if short else struct.pack(f"{order}I", value)
        kind_of_entry = 3 if tag in (258, 259, 262, 277, 339) else 4
        table += struct.pack(f"{order}HHI", tag, kind_of_entry, channels if several_here else 1) + packed
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", after)
    path.write_bytes(head + several + data + table + struct.pack(f"{order}I", 0))
