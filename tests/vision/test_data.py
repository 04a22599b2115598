from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from core.training.sampling import SeededDataset
from vision import Preprocess, ViTConfig
from vision.data import Augment, DataConfig, collate, eval_transform, make_mix, read_data, read_image

MODEL = ViTConfig(image_size=12, patch_size=4, preprocess=Preprocess(interpolation="bilinear"))
EVERYTHING = Augment(
    rotate=20.0, shift=0.1, zoom=0.2, shear=5.0, crop=0.5, flip=True, policy="rand-m5-mstd0.5", erase=0.5
)


def test_digits_are_split_once_for_all():
    data = read_data(DataConfig(), replace(MODEL, image_size=8, patch_size=4, channels=1))
    assert (len(data.train), len(data.test), len(data.labels)) == (1437, 360, 10)
    shares = np.bincount([label for _, label in data.test.samples]) / 360
    assert np.ptp(shares) < 0.02
    image, _ = data.test[0]
    assert image.shape == (1, 8, 8) and -1 <= image.min() < image.max() <= 1


def test_folder_and_manifest_agree(pictures):
    data = read_data(DataConfig(name="folder", path=pictures), MODEL)
    assert data.labels == ("blue", "red") and len(data.train) == 16 and len(data.test) == 4
    assert sorted(label for _, label in data.test.samples) == [0, 0, 1, 1]
    rows = [
        (path, data.labels[label], split) for split in ("train", "test") for path, label in getattr(data, split).samples
    ]
    listed = pictures.parent / "list.csv"
    listed.write_text("path,label,split\n" + "\n".join(f"{p.relative_to(pictures.parent)},{c},{s}" for p, c, s in rows))
    again = read_data(DataConfig(name="manifest", path=listed), MODEL)
    assert again.train.samples == data.train.samples and again.test.samples == data.test.samples
    image, _ = again.train[0]
    assert image.shape == (3, 12, 12)


def test_folder_with_its_own_split(pictures):
    for split in ("train", "test"):
        for label in ("red", "blue"):
            (pictures.parent / "own" / split / label).mkdir(parents=True)
            for number in range(3):
                source = pictures / label / f"{number + 3 * (split == 'test')}.png"
                source.rename(pictures.parent / "own" / split / label / source.name)
    data = read_data(DataConfig(name="folder", path=pictures.parent / "own"), MODEL)
    assert len(data.train) == len(data.test) == 6


def test_augmentation_is_a_function_of_seed_epoch_and_index(pictures):
    data = read_data(DataConfig(name="folder", path=pictures, augment=EVERYTHING), MODEL).train
    first, other = SeededDataset(data, 0), SeededDataset(data, 1)
    image = first[(2, 3)][0]
    torch.rand(5)
    assert torch.equal(first[(2, 3)][0], image)
    assert not torch.equal(first[(3, 3)][0], image) and not torch.equal(other[(2, 3)][0], image)


def test_mixing_keeps_the_mass_of_targets(pictures):
    data = read_data(DataConfig(name="folder", path=pictures), MODEL)
    batch = collate([data.train[i] for i in range(8)])
    mixed = make_mix(Augment(mixup=0.8, cutmix=1.0), 2)(batch)
    assert mixed.targets.shape == (8, 2)
    torch.testing.assert_close(mixed.targets.sum(-1), torch.ones(8))
    assert make_mix(Augment(), 2) is None


def test_the_whole_of_a_wide_image_or_its_centre():
    wide = Image.fromarray(np.tile(np.arange(0, 200, dtype=np.uint8), (100, 1)))
    square = eval_transform(replace(MODEL, channels=1))(wide)
    assert square.shape == (1, 12, 12)
    assert square.min() > -0.7  # the sides are cropped
    whole = eval_transform(replace(MODEL, channels=1, image_size=(12, 24)))(wide)
    assert whole.shape == (1, 12, 24) and whole.min() < -0.9


def test_images_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    Image.new("RGB", (20, 10)).save(tmp_path / "phone.jpg", exif=exif)
    assert read_image(tmp_path / "phone.jpg", "RGB").size == (10, 20)
