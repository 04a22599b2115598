"""Shards at an address of the web or of a store of objects: each is fetched when it is needed, and kept for a while."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..errors import UserError
from ..files import first_line
from .arrow_files import ParquetShard, to_arrow
from .downloads import UNFINISHED, Downloads
from .shard_files import OpenShard, Shard, ShardError, TarShard, checksum, key_of
from .shard_store import ShardStore

T = TypeVar("T")
TRIES, DELAY = 5, 1.0  # seconds before the second try, and twice as many before each further one
STALLED = 30  # seconds in which a server says nothing, after which its answer is asked for again


class RemoteStore(ShardStore):
    """A folder of shards at an address that fsspec knows: http(s), s3, gs, hf and others."""

    def __init__(self, address: str, downloads: Downloads):
        super().__init__(Path(), downloads)
        self.address = address.rstrip("/")
        self._process, self._system = 0, None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": 0, "_system": None}

    def name(self, url: str) -> str:
        return f"{self.address}/{url}"

    def read(self, url: str) -> bytes:
        return self._asked(url, lambda system, path: system.cat_file(path))

    def check(self, shard: Shard) -> None:
        """Nothing is asked of a server before a shard is needed."""

    def open(self, shard: Shard) -> OpenShard:
        name = self.name(shard.url)

        def fetch(file: Path) -> None:
            def work(system: Any, path: str) -> None:
                system.get_file(path, str(file))
                found = file.stat().st_size
                if found != shard.size:
                    raise Damaged(f"it has {found:,} bytes, and its index says {shard.size:,}")
                if shard.sha256 and checksum(file) != shard.sha256:
                    raise Damaged("its checksum is not that of the index")

            self._tried(shard.url, work)

        def fetch_rows(file: Path) -> None:
            fetched = file.with_name(f"{file.name}.parquet{UNFINISHED}")
            try:
                fetch(fetched)
                to_arrow(fetched, name, file)
            finally:
                fetched.unlink(missing_ok=True)

        key, size = key_of(shard, name), shard.size
        if shard.url.endswith(".parquet"):
            return self.downloads.open(f"{key}.arrow", size, fetch_rows, lambda file: ParquetShard(name, file))
        return self.downloads.open(f"{key}.tar", size, fetch, lambda file: TarShard(name, file))

    def has(self, url: str) -> bool:
        if self.address.startswith(("http://", "https://")):  # which have no folders that could be listed
            return True
        return self._asked(url, lambda system, path: system.exists(path))

    def parquet_files(self) -> list[str]:
        def work(system: Any, path: str) -> list[str]:
            return sorted(found.removeprefix(path.rstrip("/")).lstrip("/") for found in system.find(path))

        return [url for url in self._asked("", work) if url.endswith(".parquet")]

    def file(self, url: str) -> Any:
        return self._asked(url, lambda system, path: system.open(path, "rb"))

    def _asked(self, url: str, work: Callable[[Any, str], T]) -> T:
        try:
            return self._tried(url, work)
        except ShardError as error:
            raise UserError(str(error)) from None

    def _tried(self, url: str, work: Callable[[Any, str], T]) -> T:
        """The result of `work` with the file system and the path in it; tried several times before it is an error."""
        for number in range(TRIES):
            try:
                system, root = self.connected()
                return work(system, f"{root.rstrip('/')}/{url}")
            except (UserError, MemoryError):
                raise
            except Exception as error:  # each kind of store raises others
                if isinstance(error, OSError) and str(error.filename or "").startswith(str(self.downloads.folder)):
                    raise  # the disk is full, or may not be written
                if number + 1 == TRIES:
                    raise ShardError(_sentence(self.name(url), error)) from None
                time.sleep(DELAY * 2**number)
        raise AssertionError

    def connected(self) -> tuple[Any, str]:
        """fsspec's file system and the path in it, one for each process: a connection does not survive a fork."""
        if self._process != os.getpid():
            self._system, self._process = connect(self.address), os.getpid()
        assert self._system is not None
        return self._system


class Damaged(Exception):
    """What was fetched is not what the index promises."""


def connect(address: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path in it."""
    options: dict[str, Any] = {"skip_instance_cache": True}
    try:
        import fsspec

        if address.startswith(("http://", "https://")):
            import aiohttp

            waits = aiohttp.ClientTimeout(total=None, sock_connect=STALLED, sock_read=STALLED)
            options["client_kwargs"] = {"timeout": waits}
        return fsspec.core.url_to_fs(address, **options)
    except ImportError as error:
        raise UserError(
            f'{address} needs a package that is not installed ({first_line(error)}): pip install -e ".[shards]", or '
            "what that address needs."
        ) from None
    except ValueError as error:
        raise UserError(f"{address} is no address that shards can be read from: {first_line(error)}.") from None


def _sentence(name: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{name} is missing: there is no such file, or the server does not give it."
    if isinstance(error, Damaged):
        return f"The shard {name} is damaged: {error}."
    if isinstance(error, TimeoutError):
        return f"{name} cannot be fetched: the server says nothing for {STALLED} seconds."
    return f"{name} cannot be fetched, tried {TRIES} times: {first_line(error)}."
