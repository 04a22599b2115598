import errno
import os
from pathlib import Path

import numpy as np
import pytest

from core.data.cache import DecodeCache


class Decoder:
    """Decodes a file of letters into their numbers, and counts how often."""

    def __init__(self, path: Path):
        self.path, self.calls = path, 0

    def __call__(self) -> np.ndarray:
        self.calls += 1
        return np.frombuffer(self.path.read_bytes(), np.uint8)


@pytest.fixture
def decoder(tmp_path):
    (tmp_path / "a.txt").write_text("letters")
    return Decoder(tmp_path / "a.txt")


def ask(cache, decoder, form="letters"):
    array = cache.get(decoder.path, form, decoder)
    assert array.dtype == np.uint8 and array.tobytes() == decoder.path.read_bytes()


def test_a_file_is_decoded_once(decoder, tmp_path):
    ask(DecodeCache(tmp_path / "new" / "cache"), decoder)
    again = DecodeCache(tmp_path / "new" / "cache")
    ask(again, decoder)
    assert decoder.calls == 1
    ask(again, decoder, form="other letters")
    assert decoder.calls == 2
    assert [entry.suffix for entry in again.directory.iterdir()] == [".npy", ".npy"]


@pytest.mark.parametrize("change", ["size", "time", "place"])
def test_a_file_that_changed_is_decoded_again(change, decoder, tmp_path):
    cache = DecodeCache(tmp_path / "cache")
    ask(cache, decoder)
    if change == "size":
        status = decoder.path.stat()
        decoder.path.write_text("more letters")
        os.utime(decoder.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "time":
        decoder.path.write_text("LETTERS")
        os.utime(decoder.path, ns=(0, 12345))
    else:
        (tmp_path / "b.txt").write_text("LETTERS")
        status = decoder.path.stat()
        os.utime(tmp_path / "b.txt", ns=(status.st_atime_ns, status.st_mtime_ns))
        decoder.path = tmp_path / "b.txt"
    ask(cache, decoder)
    assert decoder.calls == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[:60],
        lambda data: b"PK\x03\x04" + data[4:],
        lambda data: data.replace(b"'<f4'", b"'O'  ").replace(b"'|u1'", b"'|O' "),
        lambda data: data.replace(b"(7,)", b"(9,)"),
    ],
    ids=["empty", "a byte short", "half a header", "an archive's", "objects", "another shape"],
)
def test_a_damaged_entry_is_replaced(damage, decoder, tmp_path):
    cache = DecodeCache(tmp_path / "cache")
    ask(cache, decoder)
    (entry,) = cache.directory.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert entry.read_bytes() != whole
    ask(cache, decoder)
    assert decoder.calls == 2 and entry.read_bytes() == whole and len(list(cache.directory.iterdir())) == 1


def test_a_directory_that_cannot_be_written(decoder, tmp_path, recwarn):
    (tmp_path / "cache").write_text("a file is in the way")
    cache = DecodeCache(tmp_path / "cache")
    ask(cache, decoder)
    ask(cache, decoder)
    assert decoder.calls == 2
    (warning,) = recwarn
    assert "cache: decoded files cannot be kept there" in str(warning.message)


def test_a_full_disk(decoder, tmp_path, monkeypatch, recwarn):
    def save(file, array, allow_pickle):
        file.write(b"half of")
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = DecodeCache(tmp_path / "cache")
    monkeypatch.setattr(np, "save", save)
    ask(cache, decoder)
    ask(cache, decoder)
    assert decoder.calls == 2 and not list(cache.directory.iterdir())
    (warning,) = recwarn
    assert "No space left" in str(warning.message)


def test_what_is_read_from_a_full_cache_needs_no_writing(decoder, tmp_path, monkeypatch):
    ask(DecodeCache(tmp_path / "cache"), decoder)
    cache = DecodeCache(tmp_path / "cache")
    cache.writable = False
    ask(cache, decoder)
    assert decoder.calls == 1


def test_a_file_that_is_gone_is_not_had_from_the_cache(decoder, tmp_path):
    cache = DecodeCache(tmp_path / "cache")
    ask(cache, decoder)
    decoder.path.unlink()
    with pytest.raises(FileNotFoundError):
        cache.get(decoder.path, "letters", decoder)
