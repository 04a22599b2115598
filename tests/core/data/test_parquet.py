"""Parquet files as shards: what Hugging Face's `datasets` writes, with and without splits, whole and damaged."""

import json
import random
from pathlib import Path

import pytest

from core import UserError
from core.data.cuts import cut
from core.data.shards import ShardFiles, rows_of

pyarrow = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

NAMES = ["cat", "dog"]
FILE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def rows(count: int, seed: int) -> list[dict]:
    draw = random.Random(seed)
    return [
        {"image": {"bytes": draw.randbytes(draw.randrange(1, 500)), "path": f"{seed}-{row}.png"}, "label": row % 2}
        for row in range(count)
    ]


def write(path: Path, content: list[dict], names: list[str] | None = NAMES, **options) -> list[dict]:
    """In the form of `datasets`; names: of the classes, if the file knows them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(content, pyarrow.schema([("image", FILE), ("label", pyarrow.int64())]))
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=70)
    return content


def read(path: Path, **options):
    return ShardFiles(path=str(path), downloads=path.parent / "downloads", **options).read_files((".png",))


def contents(part) -> list[tuple[bytes, int]]:
    return [(part[index].path.read_bytes(), part[index].label) for index in range(len(part))]


def expected(content: list[dict]) -> list[tuple[bytes, int]]:
    return [(row["image"]["bytes"], row["label"]) for row in content]


def test_files_of_each_split(tmp_path):
    folder = tmp_path / "data"
    train = write(folder / "train-00000-of-00002.parquet", rows(250, 0))
    train += write(folder / "train-00001-of-00002.parquet", rows(30, 1))
    held_out = [write(folder / f"{split}-00000-of-00001.parquet", rows(9, 2)) for split in ("validation", "test")]
    found = read(folder)
    assert contents(found.train) == expected(train) and found.labels == ("cat", "dog")
    assert [contents(found.validation), contents(found.test)] == [*map(expected, held_out)]
    assert found.train.layout.sizes == (250, 30)
    assert found.note == "The validation and the test split are the data's own."
    where = f"{folder}/train-00000-of-00002.parquet, sample 249 (0-249.png)"
    assert str(found.train[249].path) == where
    assert len([*(tmp_path / "downloads").glob("*.arrow")]) == 4


@pytest.mark.parametrize("names", [NAMES, None])
def test_splits_that_are_missing_are_cut_from_the_rows(tmp_path, names):
    every = write(tmp_path / "data" / "0.parquet", rows(80, 0), names)
    every += write(tmp_path / "data" / "1.parquet", rows(21, 1), names)
    found = read(tmp_path / "data")
    classes = [row["label"] for row in every]
    rest, test = cut(classes, None, 0.2)
    train, validation = cut([classes[index] for index in rest], None, 0.1)
    assert contents(found.test) == expected([every[index] for index in test])
    assert contents(found.validation) == expected([every[rest[index]] for index in validation])
    assert contents(found.train) == expected([every[rest[index]] for index in train])
    assert found.labels == tuple(names or ("0", "1")) and sum(found.train.layout.sizes) == len(train)


def test_what_datasets_writes(tmp_path):
    datasets = pytest.importorskip("datasets")
    image = datasets.Image(decode=False)
    features = datasets.Features({"image": image, "label": datasets.ClassLabel(names=NAMES)})
    content = rows(40, 0)
    datasets.Dataset.from_list(content, features).to_parquet(tmp_path / "data" / "train.parquet")
    found = read(tmp_path / "data")
    inside = [pair for part in found.parts().values() for pair in contents(part)]
    assert sorted(inside) == sorted(expected(content)) and found.labels == ("cat", "dog")


def test_rows_of_texts(tmp_path):
    (tmp_path / "data").mkdir()
    pq.write_table(pyarrow.table({"text": ["a\u2028", "b"], "stars": [1.0, None]}), tmp_path / "data" / "train.parquet")
    source = ShardFiles(path=str(tmp_path / "data"), downloads=tmp_path / "downloads")
    samples = source.read_shards(()).train
    assert [row for _, row in rows_of(samples, (), "stars")] == [{"text": "a\u2028", "stars": "1"}, {"text": "b"}]


def test_a_class_that_cannot_be_learnt_is_refused(tmp_path):
    for split, label in (("train", 0), ("val", 1)):
        write(tmp_path / "data" / f"{split}.parquet", [{**row, "label": label} for row in rows(9, 0)])
    with pytest.raises(UserError, match="label 'dog' is only in the validation split"):
        read(tmp_path / "data")


@pytest.mark.parametrize(
    "change, options, words",
    [
        (lambda path: path.write_bytes(b"PAR1" * 50), {}, "is no Parquet file, or damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), {}, "is no Parquet file, or damaged"),
        (lambda path: write(path, []), {}, "has no rows"),
        (lambda path: write(path, [{**row, "label": -1} for row in rows(9, 0)]), {}, "rows without a label"),
        (lambda path: write(path, rows(9, 0), ["dog", "cat"]), {}, "has other classes"),
        (lambda path: write(path, [{**row, "label": 2} for row in rows(9, 0)]), {}, "labels beyond its 2 classes"),
        (lambda path: None, {"column": "audio"}, "has the columns of files image: name one by --data.column"),
        (lambda path: None, {"label_column": "kind"}, "without a label in the column 'kind'"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, change, options, words):
    for name in ("train-0", "train-1"):
        write(tmp_path / "data" / f"{name}.parquet", rows(9, 0))
    change(tmp_path / "data" / "train-1.parquet")
    with pytest.raises(UserError, match=words):
        read(tmp_path / "data", **options)


def test_a_file_that_is_damaged_in_the_middle_is_named_or_skipped(tmp_path):
    for name in ("train-0", "train-1", "test-0", "val-0"):
        write(tmp_path / "data" / f"{name}.parquet", rows(90, 0))
    path = tmp_path / "data" / "train-1.parquet"
    content = bytearray(path.read_bytes())
    content[4:4000] = bytes(3996)
    path.write_bytes(content)
    train = read(tmp_path / "data").train
    with pytest.raises(UserError, match=r"train-1.parquet is no Parquet file, or damaged"):
        train[90].path.read_bytes()
    train = read(tmp_path / "data", bad_shards="skip").train
    with pytest.warns(UserWarning, match=r"train-1.parquet"):
        assert contents(train) == [*expected(rows(90, 0)), *expected(rows(90, 0))]
    assert not [*(tmp_path / "downloads").glob("*.partial")]
