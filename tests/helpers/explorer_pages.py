"""The page of an attention explorer, read back in Python: what it holds, and its matrices."""

import base64
import json
import re
import zlib

import numpy as np


class ReadPage:
    def __init__(self, path):
        self.text = path.read_text()
        self.content = json.loads(re.search(r'id="content">(.*?)</script>', self.text, re.S)[1])
        self.chunks = re.findall(r'id="chunk-\d+">(.*?)</script>', self.text, re.S)

    def look(self, sample=0, number=0):
        return self.content["samples"][sample]["looks"][number]

    def bytes(self, chunk):
        return zlib.decompress(base64.b64decode(self.chunks[chunk]))

    def matrices(self, look, layer, kind):
        """Those of a chunk, each with 0 for what it does not hold."""
        data, n = self.bytes(look["layers"][layer][kind]), look["tokens"]
        found = []
        while data:
            (count,), (most,), data = np.frombuffer(data, "<u4", 1), np.frombuffer(data[4:], "<f4", 1), data[8:]
            rows, columns = np.full(n, n), np.tile(np.arange(n), n)
            if not look["whole"]:
                rows, data = _short(data, n)
                columns, data = _short(data, count)
            values, data = _short(data, count, "<f2")
            matrix = np.zeros((n, n), dtype=np.float32)
            matrix[np.repeat(np.arange(n), rows), columns] = values.astype(np.float32) * most
            found.append(matrix)
        return found

    def forbidden(self, look, layer):
        packed = np.frombuffer(self.bytes(look["layers"][layer]["forbidden"]), np.uint8).reshape(look["tokens"], -1)
        return np.unpackbits(packed, axis=1, bitorder="little")[:, : look["tokens"]].astype(bool)


def _short(data, count, kind="<u2"):
    """Numbers of two bytes, and the bytes after them."""
    planes = np.frombuffer(data, np.uint8, 2 * count).reshape(2, count)
    return np.ascontiguousarray(planes.T).view(kind)[:, 0], data[2 * count :]
