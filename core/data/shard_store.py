"""Where shards are: in a folder."""

import os
from pathlib import Path
from typing import Any

from ..files import open_file, read_bytes, reason
from .arrow_files import ParquetShard, to_arrow
from .downloads import Downloads
from .shard_files import OpenShard, Shard, ShardError, TarShard, key_of


class ShardStore:
    """A folder of shards. downloads: where what is made of them is kept."""

    def __init__(self, folder: Path, downloads: Downloads):
        self.folder, self.downloads = folder, downloads

    def name(self, url: str) -> str:
        """As messages have it."""
        return str(self.folder / url)

    def read(self, url: str) -> bytes:
        """A whole file."""
        return read_bytes(self.folder / url)

    def has(self, url: str) -> bool:
        return (self.folder / url).exists()

    def parquet_files(self) -> list[str]:
        """The paths from the folder of all Parquet files below it, sorted."""
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*.parquet"))

    def file(self, url: str) -> Any:
        """A binary file for reading at any place."""
        return open_file(self.folder / url)

    def check(self, shard: Shard) -> None:
        """Raises ShardError for a shard that is missing, or not as large as the index says."""
        try:
            found = os.path.getsize(self.folder / shard.url)
        except OSError as error:
            raise ShardError(f"The shard {self.name(shard.url)} is missing: {reason(error)}.") from None
        if found != shard.size:
            raise ShardError(
                f"The shard {self.name(shard.url)} is damaged: it has {found:,} bytes, and its index says "
                f"{shard.size:,}."
            )

    def open(self, shard: Shard) -> OpenShard:
        """Raises ShardError if that is impossible."""
        self.check(shard)
        path, name = self.folder / shard.url, self.name(shard.url)
        try:
            if path.suffix != ".parquet":
                return TarShard(name, path)
            key = key_of(shard, f"{name} {path.stat().st_mtime_ns}") + ".arrow"
            return self.downloads.open(
                key, shard.size, lambda file: to_arrow(path, name, file), lambda file: ParquetShard(name, file)
            )
        except OSError as error:
            raise ShardError(f"The shard {self.name(shard.url)} cannot be read: {reason(error)}.") from None
