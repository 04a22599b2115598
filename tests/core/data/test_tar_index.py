"""The index of shards that WebDataset's own writer made."""

import json
import random
import tarfile
from pathlib import Path

import pytest

from core import UserError
from core.data.shards import ShardFiles
from core.experiments.shard import Arguments, shard

webdataset = pytest.importorskip("webdataset")


def write(path: Path, count: int, beside=lambda number: {"cls": number % 2}) -> list[bytes]:
    draw, contents = random.Random(path.name), []
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as sink:
        for number in range(count):
            contents.append(draw.randbytes(draw.randrange(1, 2000)))
            name = f"{'long/' * (40 * (number % 3 == 1))}{path.stem}-{number}"
            sink.write({"__key__": name, "seg.png": b"mask", "png": contents[-1], "txt": "words", **beside(number)})
    return contents


def read(folder: Path):
    return ShardFiles(path=str(folder)).read_files((".png",))


def contents_of(part) -> list[bytes]:
    return [part[index].path.read_bytes() for index in range(len(part))]


def without_mask(path: Path) -> None:
    """The masks that `write` puts first are left out."""
    kept = path.with_suffix(".kept")
    with tarfile.open(path) as tar, tarfile.open(kept, "w") as other:
        for member in tar:
            if not member.name.endswith(".seg.png"):
                other.addfile(member, tar.extractfile(member))
    kept.replace(path)


@pytest.mark.parametrize("named", [True, False])
def test_samples_of_webdatasets_writer(tmp_path, named):
    beside = (lambda number: {"json": {"label": "cd"[number % 2]}}) if named else (lambda number: {"cls": number % 2})
    written = {split: write(tmp_path / f"{split}-0.tar", 9, beside) for split in ("train", "val", "test")}
    for path in tmp_path.glob("*.tar"):
        without_mask(path)
    shard(Arguments(source=tmp_path))
    found = read(tmp_path)
    for split, part in zip(written, found.parts().values(), strict=True):
        assert contents_of(part) == written[split] and [label for _, label in part] == [n % 2 for n in range(9)]
    assert found.labels == (("c", "d") if named else ("0", "1"))
    assert found.note == "The validation and the test split are the data's own."


def test_whole_shards_are_held_out(tmp_path):
    written = {number: write(tmp_path / "data" / f"{number:03d}.tar", 4) for number in range(10)}
    for path in (tmp_path / "data").glob("*.tar"):
        without_mask(path)
    shard(Arguments(source=tmp_path / "data"))
    found = read(tmp_path / "data")
    held_out = contents_of(found.test), contents_of(found.validation)
    assert held_out[0] == [*written[2], *written[7]] and len(held_out[1]) == 4
    assert len(found.train) == 28 and not {*contents_of(found.train)} & {*held_out[0], *held_out[1]}
    assert found.note.startswith("2 of 10 training shards were held out for testing, and 1 of 8")


@pytest.mark.parametrize(
    "beside, options, words",
    [
        (lambda number: {}, {}, "has no class in a .cls"),
        (lambda number: {"cls": 3}, {}, "have 1 classes: at least two"),
        (lambda number: {"json": {"label": [1, 2]}}, {}, "its class cannot be read: a list"),
        (lambda number: {"cls": number}, {"shards": Path("elsewhere")}, "leave out elsewhere"),
    ],
)
def test_what_cannot_be_indexed_is_named(tmp_path, beside, options, words):
    for split in ("train", "test", "val"):
        write(tmp_path / f"{split}.tar", 4, beside)
    with pytest.raises(UserError, match=words):
        shard(Arguments(source=tmp_path, **options))
    assert not (tmp_path / "index.json").exists()


def test_a_file_that_is_cut_off_or_no_tar_file_is_named(tmp_path):
    for split in ("train", "test", "val"):
        write(tmp_path / f"{split}.tar", 40)
    whole = (tmp_path / "train.tar").read_bytes()
    for content in (whole[: len(whole) // 2], b"nothing" * 500):
        (tmp_path / "train.tar").write_bytes(content)
        with pytest.raises(UserError, match=r"train.tar is (cut off|no tar file, or damaged)"):
            shard(Arguments(source=tmp_path))


def test_classes_are_not_needed_for_texts_and_masked_patches(tmp_path):
    for split in ("train", "test", "val"):
        write(tmp_path / f"{split}.tar", 3, lambda number: {"json": {"text": "a"}})
        without_mask(tmp_path / f"{split}.tar")
    shard(Arguments(source=tmp_path, target="none"))
    assert read(tmp_path).labels == () and [label for _, label in read(tmp_path).train] == [0, 0, 0]
    assert json.loads((tmp_path / "index.json").read_text())["suffixes"] == [".png"]
