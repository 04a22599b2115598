"""One shard: a tar file as WebDataset has it, or a Parquet file, whose samples are read each by itself."""

import io
import os
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int32, Int64

from ..errors import UserError
from ..files import reason

ANY = ".any"  # the suffix of a file that may be of any kind
BLOCK = tarfile.BLOCKSIZE
Files = Iterator[tuple[str, bytes]]
"""The names and the contents of the files of a sample."""


class ShardError(Exception):
    """One sentence that says which shard is missing or damaged."""


@dataclass(frozen=True)
class Shard:
    """A shard as the index lists it."""

    url: str
    """From the folder of the index."""
    size: int
    """Bytes."""
    sha256: str
    """Empty if it is not known."""
    offsets: Int64[np.ndarray, "n_plus_one"]
    """Where each sample begins, and the end of the last one; of a Parquet file the rows."""
    labels: Int32[np.ndarray, "n"] | Float64[np.ndarray, "n"] | list[tuple[int, ...]] | None
    """Of each sample: class number, number to be predicted, or the numbers of several classes."""
    column: str = ""
    """Of a Parquet file: the one of the files."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def label(self, number: int) -> int | float | tuple:
        """Of a sample; 0 without labels."""
        if self.labels is None:
            return 0
        return self.labels[number] if isinstance(self.labels, list) else self.labels[number].item()


class OpenShard(ABC):
    """A file of samples that is open for reading. name: as messages have it."""

    name: str

    @abstractmethod
    def sample(self, shard: Shard, number: int) -> Files:
        """shard: the samples of this file, or some of them. Raises UserError for a sample that is damaged."""

    @abstractmethod
    def close(self) -> None: ...


class TarShard(OpenShard):
    def __init__(self, name: str, path: Path):
        self.name, self.file = name, path.open("rb", buffering=0)

    def sample(self, shard: Shard, number: int) -> Files:
        start, end = shard.offsets[number : number + 2].tolist()
        try:  # processes that share the open file do not share a place in it
            content = os.pread(self.file.fileno(), end - start, start)
            yield from members(content)
        except OSError as error:
            raise UserError(f"The shard {self.name} cannot be read: {reason(error)}.") from None
        except tarfile.TarError:
            raise UserError(
                f"Sample {number} of the shard {self.name} is damaged: fetch or write the shard again."
            ) from None

    def close(self) -> None:
        self.file.close()


def members(content: bytes) -> Files:
    """The files in a part of a tar file. Raises TarError."""
    start = 0
    while start < len(content):
        header = tarfile.TarInfo.frombuf(content[start : start + BLOCK], "utf-8", "surrogateescape")
        if not header.isfile():  # it continues another header, such as that of a long name
            with tarfile.open(fileobj=io.BytesIO(content[start:]), mode="r:") as tar:
                yield from ((each.name, file.read()) for each in tar if (file := tar.extractfile(each)) is not None)
            return
        start += BLOCK
        if start + header.size > len(content):
            raise tarfile.ReadError("a file is cut off")
        yield header.name, content[start : start + header.size]
        start += -(-header.size // BLOCK) * BLOCK


def suffix_of(name: str) -> str:
    """What follows the first dot of a file's name, with the dot, in lower case: so WebDataset divides a name."""
    return "." + name.rpartition("/")[2].partition(".")[2].lower()


def key_of(shard: Shard, name: str) -> str:
    """What a shard is called among what was fetched. name: another one for another shard without a checksum."""
    return shard.sha256 or sha256(f"{name} {shard.size}".encode()).hexdigest()


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
