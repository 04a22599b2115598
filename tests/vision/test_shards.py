"""Images in shards: a run from shards is that from files, bit for bit, and is resumed in the middle of a shard."""

import json
import tarfile
from pathlib import Path

import pytest
import torch
from processes import run_together
from safetensors.torch import load_file
from small_runs import IMAGES

from core.experiments import train_command
from core.experiments.shard import Arguments, shard
from core.training.evaluation import samples_of
from core.training.sampling import MicroBatches, train_loader
from core.training.shard_order import ShardOrder
from vision import Preprocess
from vision.augment import Augment
from vision.datasets import Folder, Shards
from vision.images import Images, collate
from vision.model import ImageFormat
from vision.train import VISION

pytestmark = pytest.mark.usefixtures("without_figures")

FORM = ImageFormat(size=12, channels=3, preprocess=Preprocess())


def train(*argv):
    train_command(VISION, [str(word) for word in argv])


@pytest.fixture
def shards(images, elsewhere) -> Path:
    """The images in shards of 3 samples: 5 to train on."""
    shard(Arguments(source=images, shards=Path("shards"), samples=3))
    return Path("shards")


def manifest_of(shards: Path, images: Path) -> Path:
    """The samples of shards in their order, as a manifest of files."""
    rows = []
    for entry in json.loads((shards / "index.json").read_text())["shardlist"]:
        with tarfile.open(shards / entry["url"]) as tar:
            facts = [json.load(tar.extractfile(member)) for member in tar if member.name.endswith(".json")]
        rows += [{"path": fact["path"], "label": fact["label"], "split": entry["split"]} for fact in facts]
    manifest = images / "list.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def test_shards_hold_the_samples_of_the_folder(images, shards):
    folder, packed = Folder(path=images).samples(), Shards(path=str(shards)).samples()
    assert packed.labels == folder.labels and packed.note == folder.note
    for split, samples in folder.parts().items():
        files = [(path.read_bytes(), label) for path, label in samples]
        inside = [(path.read_bytes(), label) for path, label in packed.parts()[split]]
        assert sorted(inside) == sorted(files)
        assert split == "train" or inside == files  # of which the training samples are shuffled
    assert str(packed.test[0].path).startswith("shards/test-000000.tar, sample 0 (blue/")


@pytest.mark.parametrize("augment", [(), ("--data.augment.mixup", "0.4")])
def test_training_from_shards_equals_training_from_files_at_equal_order(images, shards, augment):
    train("shards", "--data.path", shards, "--data.window", 9, *IMAGES, *augment, "--out", "a")
    train("manifest", "--data.path", manifest_of(shards, images), *IMAGES, *augment, "--out", "b")
    summaries = [json.loads(Path(run, "summary.json").read_text()) for run in "ab"]
    assert summaries[0]["metrics"] == summaries[1]["metrics"]
    weights = [load_file(Path(run, "model", "model.safetensors")) for run in "ab"]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_run_is_resumed_in_the_middle_of_a_shard(shards, monkeypatch):
    options = ["shards", "--data.path", shards, "--data.window", 1, *IMAGES, "--train.save-every", 2]
    train(*options, "--out", "whole")
    read, left = Images.__getitem__, [30]

    def read_until_the_fault(images, index):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("power cut")
        return read(images, index)

    with monkeypatch.context() as patch:
        patch.setattr(Images, "__getitem__", read_until_the_fault)
        with pytest.raises(RuntimeError, match="power cut"):
            train(*options, "--out", "half")
    assert not Path("half/summary.json").exists()
    train("shards", "--out", "half", "--resume")
    weights = [load_file(Path(run, "model", "model.safetensors")) for run in ("whole", "half")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_run_is_not_resumed_with_other_shards(images, shards, capsys):
    train("shards", "--data.path", shards, *IMAGES, "--out", "run")
    (images / "red" / "0.png").write_bytes((images / "red" / "1.png").read_bytes())
    shard(Arguments(source=images, shards=Path("other"), samples=3))
    with pytest.raises(SystemExit):
        train("shards", "--data.path", "other", "--out", "run", "--resume", "--train.steps", "8")
    assert "cannot go on, because its data or settings have changed" in capsys.readouterr().err


def test_processes_and_loading_processes_change_nothing(shards):
    """From a step in the middle of a shard on."""
    data = Shards(path=str(shards), window=1, augment=Augment(crop=0.3)).read(FORM).train

    def read(world, workers=0):
        ranks = []
        for rank in range(world):
            batches = MicroBatches(ShardOrder(0, data.shards, 4), 1, 3, 9, rank, world)
            ranks.append([batch.inputs[0] for batch in train_loader(data, collate, batches, workers, False)])
        return [torch.cat(parts) for parts in zip(*ranks, strict=True)]

    whole = read(1)
    for other in (read(1, workers=2), read(2), read(4)):
        assert all(torch.equal(*pair) for pair in zip(whole, other, strict=True))


def test_two_processes_train_on_shards_as_one_does(shards, images):
    """Supervised, which evaluates what each process has of the shards, and from unlabelled shards."""
    shard(Arguments(source=images, shards=Path("plain"), samples=3, target="none"))
    for name, path in (("shards", shards), ("adapt", Path("plain"))):
        options = [name, "--data.path", path, "--data.window", 1, *IMAGES, "--train.accumulate", 1, "--quiet"]
        for count in (1, 2):
            words = [*options, "--train.device", "cpu", "--out", f"{name}-{count}"]
            run_together(count, "vision.train", words, err=Path(f"{name}-errors-{count}"))
        one, two = (json.loads(Path(f"{name}-{count}", "summary.json").read_text()) for count in (1, 2))
        assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-4)
        weights = [load_file(Path(f"{name}-{count}", "model", "model.safetensors")) for count in (1, 2)]
        for key, value in weights[0].items():
            if not key.endswith(
                "qkv.bias"
            ):  # a bias of keys has no gradient but what rounding leaves, which Adam scales
                torch.testing.assert_close(weights[1][key], value, rtol=1e-4, atol=1e-5)


def test_unlabelled_shards_are_learnt_from_as_files_are_at_equal_order(shards, images):
    manifest = manifest_of(shards, images)
    for path, out in ((shards, "a"), (manifest, "b")):
        train("adapt", "--data.path", path, "--data.window", 9, *IMAGES, "--out", out)
    weights = [load_file(Path(run, "model", "model.safetensors")) for run in "ab"]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize("world", [1, 2, 4])
def test_each_process_evaluates_a_stretch_of_the_shards(world):
    own = [samples_of(rank, world, 1001, in_shards=True) for rank in range(world)]
    assert len({len(part) for part in own}) == 1
    assert [index for part in own for index in part][:1001] == [*range(1001)]
    shards = [{index // 100 for index in part} for part in own]
    assert sum(map(len, shards)) <= 11 + world
