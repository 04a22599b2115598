from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from core import UserError
from core.config import from_dict, to_dict
from core.data.cache import DecodeCache
from core.experiments.command import parse_experiment
from core.training.sampling import SeededDataset
from vision import Preprocess
from vision.augment import TO_FLOAT, Augment, affine, eval_transform, make_mix, train_transform
from vision.datasets import CIFAR10, Digits, Folder, Manifest
from vision.decoding import read_image
from vision.images import AffineImages, Images, collate
from vision.model import ImageFormat
from vision.train import VISION, VisionExperiment

FORM = ImageFormat(size=12, channels=3, preprocess=Preprocess(interpolation="bilinear"))
EVERYTHING = Augment(
    rotate=20.0, shift=0.1, zoom=0.2, shear=5.0, crop=0.5, flip=True, policy="rand-m5-mstd0.5", erase=0.5
)


def test_digits_are_split_once_for_all():
    data = Digits().read(replace(FORM, size=8, channels=1))
    assert [len(part) for part in data.parts().values()] == [1293, 144, 360] and len(data.labels) == 10
    for part in (data.validation, data.test):
        assert np.ptp(np.bincount([label for _, label in part.samples]) / len(part)) < 0.02
    image, _ = data.test[0]
    assert image.shape == (1, 8, 8) and -1 <= image.min() < image.max() <= 1


def test_only_the_options_of_the_data_set_are_known(capfd):
    for argv in (["digits", "--data.path", "x"], ["folder", "--data.group", "x"], ["cifar10", "--data.cache", "x"]):
        with pytest.raises(UserError, match=f"there is no option {argv[1]}"):
            parse_experiment(VISION, argv)
        with pytest.raises(SystemExit):
            parse_experiment(VISION, [argv[0], "--help"])
        help = capfd.readouterr().out
        assert argv[1] not in help and "--data.name" not in help and "--data.per-class {None}|INT>=1" in help
    for name in ("digits", "cifar100", "folder", "manifest"):
        experiment = parse_experiment(VISION, [name, "--data.per-class", "3"])[1]
        saved = to_dict(experiment)
        assert saved["data"]["name"] == name and from_dict(VisionExperiment, saved) == experiment
    saved["data"]["test_fraction"] = 2.0
    with pytest.raises(UserError, match=r"data\.test_fraction must be less than 1"):
        from_dict(VisionExperiment, saved)


class Archive:
    """As torchvision's CIFAR10 gives its images."""

    url = "somewhere"

    def __init__(self, root, train, download):
        self.data = np.full((40, 32, 32, 3), 9 if train else 8, np.uint8)
        self.targets, self.classes = [number % 2 for number in range(40)], ["cat", "ship"]


def test_validation_images_of_cifar_are_cut_from_training(monkeypatch):
    monkeypatch.setattr(CIFAR10, "source", Archive)
    data = CIFAR10().read(FORM)
    assert [len(part) for part in data.parts().values()] == [36, 4, 40] and data.labels == ("cat", "ship")
    assert [{image.getpixel((0, 0))[0] for image, _ in part.samples} for part in data.parts().values()] == [
        {9},
        {9},
        {8},
    ]
    assert data.note.startswith("Without a validation split of their own, 10 % of the training samples were held out")


def test_folder_and_manifest_agree(images):
    data = Folder(path=images).read(FORM)
    assert data.labels == ("blue", "red") and [len(part) for part in data.parts().values()] == [14, 2, 4]
    assert sorted(label for _, label in data.test.samples) == [0, 0, 1, 1]
    rows = [(path, data.labels[label], split) for split, part in data.parts().items() for path, label in part.samples]
    listed = images.parent / "list.csv"
    listed.write_text("path,label,split\n" + "\n".join(f"{p.relative_to(images.parent)},{c},{s}" for p, c, s in rows))
    again = Manifest(path=listed).read(FORM)
    for one, other in zip(again.parts().values(), data.parts().values(), strict=True):
        assert one.samples == other.samples
    image, _ = again.train[0]
    assert image.shape == (3, 12, 12)


def test_folder_with_its_own_split(images):
    for split in ("train", "test"):
        for label in ("red", "blue"):
            (images.parent / "own" / split / label).mkdir(parents=True)
            for number in range(3):
                source = images / label / f"{number + 3 * (split == 'test')}.png"
                source.rename(images.parent / "own" / split / label / source.name)
    data = Folder(path=images.parent / "own").read(FORM)
    assert [len(part) for part in data.parts().values()] == [4, 2, 6]


def test_augmentation_is_a_function_of_seed_epoch_and_index(images):
    data = Folder(path=images, augment=EVERYTHING).read(FORM).train
    first, other = SeededDataset(data, 0), SeededDataset(data, 1)
    image = first[(2, 3)][0]
    torch.rand(5)
    assert torch.equal(first[(2, 3)][0], image)
    assert not torch.equal(first[(3, 3)][0], image) and not torch.equal(other[(2, 3)][0], image)


DIGITS = replace(FORM, size=8, channels=1, preprocess=Preprocess(mean=(0.0,), std=(1.0,)))


@pytest.mark.parametrize("size", [8, (12, 10)])
def test_affine_maps_are_torchvisions(size):
    """Of the images of digits, ink at the edges included, up to PIL's rounding to 256 greys."""
    form = replace(DIGITS, size=size)
    images = AffineImages(Digits().read(DIGITS).train.samples[:200], form, Augment())
    draws = np.random.default_rng(0)
    turn, *lean = np.radians(draws.uniform(-30, 30, (3, 200)))
    shift, zoom = draws.integers(-2, 3, (2, 200)).astype(float), draws.uniform(0.7, 1.4, 200)
    pixels = images.to_float(images.images)
    found = affine(pixels, turn, lean, shift, zoom)
    for i, image in enumerate(pixels):
        expected = v2.functional.affine(
            v2.functional.to_pil_image(image),
            angle=np.degrees(turn[i]),
            translate=shift[:, i].tolist(),
            scale=zoom[i],
            shear=np.degrees([lean[0][i], lean[1][i]]).tolist(),
            interpolation=v2.InterpolationMode.BILINEAR,
        )
        torch.testing.assert_close(found[i, 0], torch.tensor(np.asarray(expected)) / 255, rtol=0, atol=1.01 / 255)


def test_affine_images_have_the_distribution_of_the_transform():
    """The mean and the spread of each pixel of one digit, over many draws, made either way."""
    augment = Augment(rotate=20.0, shift=0.2, zoom=0.2, shear=10.0, flip=True)
    fast = Digits(augment=augment).read(DIGITS).train
    assert isinstance(fast, AffineImages)
    slow = Images(fast.samples[:1], train_transform(DIGITS, augment), "L")
    one = torch.stack([image for image, _ in SeededDataset(fast, 0).__getitems__([(e, 0) for e in range(2000)])])
    other = torch.stack([SeededDataset(slow, 0)[(e, 0)][0] for e in range(2000)])
    assert (one.mean(0) - other.mean(0)).abs().max() < 0.05 and (one.std(0) - other.std(0)).abs().max() < 0.05
    assert one.std(0).max() > 0.2


def test_affine_images_do_not_depend_on_their_batch():
    augment = Augment(rotate=10.0, shift=0.2, zoom=0.1, shear=5.0, flip=True)
    data = SeededDataset(Digits(augment=augment).read(DIGITS).train, 0)
    keys = [(2, index) for index in range(100)]
    batch = data.__getitems__(keys)
    assert [label for _, label in batch] == [data.dataset.samples[index][1] for _, index in keys]
    for key, (image, _) in zip(keys, batch, strict=True):
        assert torch.equal(data[key][0], image)
    for key, (image, _) in zip(keys[::7], data.__getitems__(keys[::7]), strict=True):
        assert torch.equal(batch[key[1]][0], image)


def test_shifted_images_are_torchvisions_to_the_bit():
    augment = Augment(shift=0.25, flip=True)
    data = Digits(augment=augment).read(DIGITS).train
    image, label = data.images[3], data.samples[3][1]
    draws = np.random.default_rng(0).random((200, data.draws))
    for (found, target), draw in zip(data.make([3] * 200, draws), draws, strict=True):
        across, down = np.round((2 * draw[3:5] - 1) * 0.25 * 8).astype(int).tolist()
        expected = v2.functional.horizontal_flip(image) if draw[6] < 0.5 else image
        expected = v2.functional.affine(expected, angle=0, translate=[across, down], scale=1, shear=[0, 0])
        assert torch.equal(found, expected.float() * (1 / 255)) and target == label


@pytest.mark.parametrize("augment", [Augment(policy="rand-m9-mstd0.5"), Augment(crop=0.5), Augment(erase=0.5)])
def test_other_changes_than_affine_maps_go_through_the_transform(augment):
    data = Digits(augment=augment).read(DIGITS).train
    assert not isinstance(data, AffineImages) and data[0][0].shape == (1, 8, 8)


@pytest.mark.parametrize("kind, mode", [("jpg", "RGB"), ("png", "L"), ("png", "RGBA"), ("gif", "RGB")])
def test_cached_images_are_the_decoded_ones(kind, mode, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"a.{kind}", **({"exif": exif} if kind == "jpg" else {}))
    sample = (tmp_path / f"a.{kind}", 0)
    plain = Images([sample], v2.Compose(TO_FLOAT), mode)
    cached = Images([sample], v2.Compose(TO_FLOAT), mode, DecodeCache(tmp_path / "cache"))
    for _ in range(2):
        assert torch.equal(cached[0][0], plain[0][0])
        assert cached.read(sample[0]).mode == mode
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_run_with_a_cache_decodes_each_image_once(images, monkeypatch):
    calls = []
    monkeypatch.setattr("vision.images.read_image", lambda path, mode: calls.append(path) or read_image(path, mode))
    data = Folder(path=images, augment=EVERYTHING)
    plain = data.read(FORM)
    cached = replace(data, cache=images.parent / "cache").read(FORM)
    for epoch in range(2):
        for index in range(len(plain.train)):
            one, other = (SeededDataset(part.train, 0)[(epoch, index)][0] for part in (plain, cached))
            assert torch.equal(one, other)
    assert len(calls) == 3 * len(plain.train)
    cached.train.samples[0][0].unlink()
    with pytest.raises(UserError, match="There is no image"):
        cached.train[0]


def test_mixing_keeps_the_mass_of_targets(images):
    data = Folder(path=images).read(FORM)
    batch = collate([data.train[i] for i in range(8)])
    mixed = make_mix(Augment(mixup=0.8, cutmix=1.0), 2)(batch)
    assert mixed.targets.shape == (8, 2)
    torch.testing.assert_close(mixed.targets.sum(-1), torch.ones(8))
    assert make_mix(Augment(), 2) is None


def test_the_whole_of_a_wide_image_or_its_centre():
    wide = Image.fromarray(np.tile(np.arange(0, 200, dtype=np.uint8), (100, 1)))
    square = eval_transform(replace(FORM, channels=1))(wide)
    assert square.shape == (1, 12, 12)
    assert square.min() > -0.7  # the sides are cropped
    whole = eval_transform(replace(FORM, channels=1, size=(12, 24)))(wide)
    assert whole.shape == (1, 12, 24) and whole.min() < -0.9


def test_images_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    Image.new("RGB", (20, 10)).save(tmp_path / "phone.jpg", exif=exif)
    assert read_image(tmp_path / "phone.jpg", "RGB").size == (10, 20)
