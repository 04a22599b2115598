"""Shards: what the index says and what the files hold; shards that are missing or damaged, here and on a web server."""

import http.server
import json
import random
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from core import UserError
from core.data import shard_index
from core.data import shards as module
from core.data.downloads import Downloads
from core.data.labelled import Sample
from core.data.remote import RemoteStore
from core.data.shard_files import Shard
from core.data.shard_writer import files_to_pack, write_shards
from core.data.shards import ShardFiles
from core.data.splits import DataSplits

SUFFIXES = (".bin",)


@pytest.fixture
def samples(tmp_path) -> DataSplits:
    """Files of random bytes: 23 to train on, 4 and 5 to validate and to test on."""
    generator, parts = random.Random(0), {}
    for split, count in (("train", 23), ("validation", 4), ("test", 5)):
        parts[split] = []
        for number in range(count):
            file = tmp_path / "files" / split / f"{number}.v2.BIN"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(generator.randbytes(generator.randrange(1, 3000)))
            parts[split].append(Sample(file, number % 3))
    return DataSplits(**parts, labels=("a", "b", "ç"))


@pytest.fixture
def shards(tmp_path, samples) -> Path:
    write_shards(tmp_path / "shards", files_to_pack(samples, tmp_path / "files"), 5)
    return tmp_path / "shards"


def read(path, **options) -> DataSplits:
    return ShardFiles(path=str(path), **options).read_files(SUFFIXES)


def contents(part) -> list:
    return [(part[index].path.read_bytes(), part[index].label) for index in range(len(part))]


def test_samples_of_the_files_are_in_the_shards(samples, shards):
    found = read(shards)
    for split, part in samples.parts().items():
        files = [(file.read_bytes(), label) for file, label in part]
        inside = contents(found.parts()[split])
        assert sorted(inside) == sorted(files) and (split == "train") == (inside != files)
        assert [label for _, label in found.parts()[split]] == [label for _, label in inside]
    assert found.labels == ("a", "b", "ç")
    assert found.train.layout.sizes == (5, 5, 5, 5, 3)


def test_webdataset_reads_them(samples, shards):
    webdataset = pytest.importorskip("webdataset")
    urls = sorted(map(str, shards.glob("train-*.tar")))
    theirs = [*webdataset.WebDataset(urls, shardshuffle=False)]
    ours = read(shards).train
    assert [sample["bin"] for sample in theirs] == [content for content, _ in contents(ours)]
    facts = [json.loads(sample["json"]) for sample in theirs]
    assert [fact["class"] for fact in facts] == [label for _, label in ours]
    assert {fact["label"] for fact in facts} == {"a", "b", "ç"} and facts[0]["path"].startswith("train/")


def test_shards_are_written_whole_or_not_at_all_and_never_over_others(samples, shards, tmp_path):
    with pytest.raises(UserError, match="is not empty"):
        write_shards(shards, files_to_pack(samples, tmp_path), 5)
    samples.train[20].path.unlink()
    with pytest.raises(UserError, match="There is no file"):
        write_shards(tmp_path / "others", files_to_pack(samples, tmp_path), 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files", "shards"]


def test_many_samples_need_little_memory(shards):
    """A sample costs a class number and an offset: no object is made before it is asked for."""
    entry = json.loads((shards / "index.json").read_text())["shardlist"][0]
    shard = shard_index._shard(entry, 3)
    assert shard.offsets.nbytes + shard.labels.nbytes == 8 * 6 + 4 * 5


# --- Faults -----------------------------------------------------------------------------------------


def cut_off(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:3000])


@pytest.mark.parametrize("damage, words", [(Path.unlink, "missing"), (cut_off, "damaged: it has 3,000 bytes")])
def test_a_bad_shard_is_named_or_skipped(shards, damage, words):
    whole = contents(read(shards).train)
    damage(shards / "train-000002.tar")
    with pytest.raises(UserError, match=rf"train-000002.tar is {words}"):
        read(shards)
    with pytest.warns(UserWarning, match=rf"train-000002.tar is {words}.*next shard"):
        train = read(shards, bad_shards="skip").train
    assert contents(train) == [*whole[:10], *whole[15:20], *whole[15:]]
    damage(shards / "test-000000.tar")
    with pytest.raises(UserError, match=r"test-000000.tar"), pytest.warns(UserWarning):
        read(shards, bad_shards="skip")


def test_a_shard_that_changes_behind_its_header_is_named(shards):
    path = shards / "train-000001.tar"
    content = bytearray(path.read_bytes())
    content[10:20] = b"0123456789"  # in the header of its first file
    path.write_bytes(content)
    train = read(shards).train
    with pytest.raises(UserError, match=r"Sample 0 of the shard .*train-000001.tar is damaged"):
        train[5].path.read_bytes()
    train[4].path.read_bytes(), train[6].path.read_bytes()


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda index: index["shardlist"][0]["offsets"].pop(), "contradicts itself"),
        (lambda index: index["shardlist"][0]["labels"].append(9), "contradicts itself"),
        (lambda index: index["shardlist"][0].update(labels=[0, 1, 2, 3, 0]), "contradicts itself"),
        (lambda index: index["shardlist"][0].pop("sha256"), "not as it was written"),
        (lambda index: index.update(suffixes=[".flac"]), "hold .flac files"),
        (lambda index: index.update(shardlist=index["shardlist"][:5]), "no shards to validate on"),
    ],
)
def test_a_wrong_index_is_refused(shards, change, words):
    index = json.loads((shards / "index.json").read_text())
    change(index)
    (shards / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=words):
        read(shards)


def test_a_folder_without_an_index_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"index.json is missing"):
        read(tmp_path)
    with pytest.raises(UserError, match="There is no folder"):
        read(tmp_path / "nowhere")


# --- A web server -----------------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """A server of a folder, with faults: name of a file -> what happens at its next requests, in turn."""

    def __init__(self, folder: Path):
        self.faults, self.asked = {}, []
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_): ...


class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_): ...

    def do_GET(self):
        name = self.path.strip("/")
        self.server.asked.append(name)
        faults = self.server.faults.get(name, [])
        fault = faults.pop(0) if faults else ""
        if fault in (404, 500):
            return self.send_error(fault)
        if fault == "reset":
            self.close_connection = True
            return self.connection.close()
        content = (Path(self.directory) / name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) if fault != "short" else 700))
        self.end_headers()
        if fault == "short":
            return self.wfile.write(content[:700])
        if fault == "broken":
            return self.wfile.write(content[:-1] + b"!")
        if fault in ("cut", "stalled"):
            self.close_connection = True
            self.wfile.write(content[:700])
            time.sleep(1.5 if fault == "stalled" else 0)
            return self.connection.close()
        for start in range(0, len(content), 4096):
            self.wfile.write(content[start : start + 4096])
            time.sleep(0.05 if fault == "slow" else 0)


@pytest.fixture
def server(shards, monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr("core.data.remote.DELAY", 0.01)
    monkeypatch.setattr("core.data.remote.STALLED", 1)
    server = Server(shards)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_shards_of_a_server_are_those_of_the_folder_and_each_is_fetched_once(server, shards, tmp_path):
    options = {"downloads": tmp_path / "downloads"}
    found = read(server.address, **options)
    assert server.asked == ["index.json"]  # nothing else before a sample is needed
    assert contents(found.train) == contents(read(shards).train)
    assert sorted(server.asked) == ["index.json", *(f"train-{number:06d}.tar" for number in range(5))]
    assert contents(read(f"{server.address}/index.json", **options).train) == contents(found.train)
    assert len(server.asked) == 7
    assert str(found.test[0].path) == f"{server.address}/test-000000.tar, sample 0 (test/0.v2.BIN)"


@pytest.mark.parametrize("fault", ["slow", "reset", "cut", "short", "broken", "stalled", 404, 500])
def test_faults_of_a_server_are_tried_again(server, shards, tmp_path, fault):
    server.faults = {"index.json": [fault] if fault not in ("short", "broken") else [], "train-000001.tar": [fault] * 2}
    found = read(server.address, downloads=tmp_path / "downloads").train
    assert contents(found) == contents(read(shards).train)
    assert server.asked.count("train-000001.tar") == (1 if fault == "slow" else 3)


@pytest.mark.parametrize(
    "fault, words",
    [(404, "is missing"), (500, "tried 5 times: 500"), ("short", "it has 700 bytes"), ("broken", "its checksum")],
)
def test_a_fault_that_stays_is_one_sentence_or_skipped(server, shards, tmp_path, fault, words):
    server.faults = {"train-000001.tar": [fault] * 99}
    train = read(server.address, downloads=tmp_path / "downloads").train
    with pytest.raises(UserError, match=rf"train-000001.tar.*{words}"):
        contents(train)
    train = read(server.address, downloads=tmp_path / "downloads", bad_shards="skip").train
    with pytest.warns(UserWarning, match=rf"train-000001.tar.*{words}"):
        found = contents(train)
    whole = contents(read(shards).train)
    assert found == [*whole[:5], *whole[10:15], *whole[10:]]
    assert not [*(tmp_path / "downloads").glob("*.partial")]


def test_the_cache_is_bounded(server, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "READABLE", 1)
    largest = max(path.stat().st_size for path in shards.glob("train-*.tar"))
    downloads, room = tmp_path / "downloads", 2.5 * largest
    train = read(server.address, downloads=downloads, downloads_size=room / 1e9).train
    whole = contents(read(shards).train)
    for index in np.random.default_rng(0).permutation(len(train)).tolist():
        assert (train[index].path.read_bytes(), train[index].label) == whole[index]
        assert sum(path.stat().st_size for path in downloads.glob("*.tar")) <= room
    with pytest.raises(UserError, match=r"raise --data.downloads-size"):
        contents(read(server.address, downloads=tmp_path / "other", downloads_size=1e-6).train)


class Contents:
    def __init__(self, part):
        self.part = part

    def __len__(self):
        return len(self.part)

    def __getitem__(self, index):
        return self.part[index].path.read_bytes()


def test_loading_processes_share_what_is_fetched(server, shards, tmp_path):
    train = read(server.address, downloads=tmp_path / "downloads").train
    loader = DataLoader(Contents(train), batch_size=2, num_workers=2, collate_fn=list)
    found = [content for batch in loader for content in batch]
    assert found == [content for content, _ in contents(read(shards).train)]
    assert sorted(server.asked) == ["index.json", *(f"train-{number:06d}.tar" for number in range(5))]


def test_shards_of_any_store_that_fsspec_knows(shards, tmp_path, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setattr("core.data.remote.DELAY", 0.01)
    fsspec.filesystem("memory").put(f"{shards}/", "/bucket/shards/", recursive=True)
    try:
        found = read("memory://bucket/shards", downloads=tmp_path / "downloads")
        assert contents(found.train) == contents(read(shards).train)
        assert str(found.test[0].path).startswith("memory://bucket/shards/test-000000.tar, sample 0")
        fsspec.filesystem("memory").rm("/bucket/shards/train-000002.tar")
        with pytest.raises(UserError, match=r"memory://bucket/shards/train-000002.tar is missing"):
            contents(read("memory://bucket/shards", downloads=tmp_path / "other").train)
    finally:
        fsspec.filesystem("memory").rm("/bucket", recursive=True)


@pytest.mark.parametrize("address, package", [("s3://bucket/shards", "s3fs"), ("gs://bucket/shards", "gcsfs")])
def test_a_store_whose_package_is_missing_is_one_sentence(address, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"^{address} needs a package that is not installed \(.*{package}.*\): pip"):
        read(address, downloads=tmp_path)


def test_addresses_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(UserError, match="is no address"):
        read("nonsense://a/b", downloads=tmp_path)
    with pytest.raises(UserError, match="cannot be kept in"):
        (tmp_path / "file").write_text("")
        shard = Shard("a.tar", 5, "", np.arange(2), None)
        RemoteStore("http://127.0.0.1:9", Downloads(tmp_path / "file", 10**9)).open(shard)
