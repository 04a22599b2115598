"""Images of native size: how large they become, how many tokens they have, and runs on files of mixed sizes."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mistakes import Mistake, check_mistake
from PIL import Image
from small_runs import FILES, IMAGES, SMALL_VIT

from core import UserError, pair
from core.data.cache import DecodeCache
from core.experiments import predict_command, train_command
from core.training.sampling import SeededDataset
from vision import ViT, ViTConfig
from vision.augment import Augment, eval_transform, train_transform
from vision.datasets import Digits, Folder, MixedDigits
from vision.decoding import image_mode, read_image, read_size
from vision.images import Images, collate
from vision.native import native_grid, native_size
from vision.predict import Arguments, predict
from vision.train import VISION

pytestmark = pytest.mark.usefixtures("elsewhere", "without_figures")
CONFIG = ViTConfig(image_size=32, patch_size=8, registers=2, max_tokens=15)  # 12 patches
FORM = CONFIG.image_format
NATIVE = ["--data.size", "native"]


def draw(rows, columns, mode="RGB"):
    pixels = np.random.default_rng(rows * 1000 + columns).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize(
    "size, grid",
    [
        ((16, 24), (2, 3)),  # its own size
        ((3, 3), (1, 1)),  # at least a patch
        ((12, 19), (2, 2)),  # rounded to whole patches, halves up
        ((24, 32), (3, 4)),  # the whole budget
        ((240, 320), (3, 4)),  # and scaled down to it
        ((1000, 1000), (3, 3)),  # 4 x 4 would be too many
        ((5000, 8), (12, 1)),
        ((8, 5000), (1, 12)),
    ],
)
def test_native_sizes(size, grid):
    assert native_grid(FORM, size) == grid
    assert native_size(FORM, size) == (8 * grid[0], 8 * grid[1])


@pytest.mark.parametrize("patch, stride", [(8, None), ((4, 16), None), (8, 5), ((3, 5), (4, 7))])
def test_native_grids_are_the_largest_that_fit(patch, stride):
    form = replace(CONFIG, image_size=pair(patch), patch_size=patch, stride=stride, max_tokens=53).image_format
    patches, steps = pair(patch), form.steps

    def grid(size, scale):
        return tuple(
            max(math.floor((side * scale - p) / s + 1.5), 1) for side, p, s in zip(size, patches, steps, strict=True)
        )

    for size in np.random.default_rng(0).integers(1, 700, (60, 2)).tolist():
        found = native_grid(form, tuple(size))
        steps_up = [
            ((n - 1.5) * s + p) / side for n in range(2, 52) for side, p, s in zip(size, patches, steps, strict=True)
        ]
        fitting = [grid(size, min(max(scale + 1e-9, 1e-9), 1)) for scale in (0, *steps_up)]  # where it gets larger
        assert found == max((each for each in fitting if math.prod(each) <= 50), key=math.prod)


def test_images_are_as_large_as_the_grid_and_nothing_is_cut_off():
    transform = eval_transform(replace(FORM, preprocess=replace(FORM.preprocess, crop=0.5)))
    image = draw(24, 32)
    same = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 * 2 - 1
    torch.testing.assert_close(transform(image), same, rtol=0, atol=1e-6)
    assert transform(draw(240, 320)).shape == (3, 24, 32) and transform(draw(1, 1)).shape == (3, 8, 8)


@pytest.mark.parametrize("interpolation", ["bicubic", "random"])
def test_augmentation_keeps_the_number_of_tokens(interpolation):
    everything = Augment(rotate=20.0, shift=0.1, crop=0.3, flip=True, policy="rand-m5-mstd0.5", erase=0.5)
    form = replace(FORM, preprocess=replace(FORM.preprocess, interpolation=interpolation))
    for augment in (everything, Augment(crop=0.3), Augment(flip=True, zoom=0.2)):
        transform, plain = train_transform(form, augment), eval_transform(form)
        for size in ((16, 24), (300, 40), (5, 90), (64, 64)):
            image = draw(*size)
            made = [transform(image) for _ in range(4)]
            assert {each.shape for each in made} == {plain(image).shape}
            assert not torch.equal(made[0], made[1]) or not torch.equal(made[2], made[3])


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Two classes of images of many sizes and formats, some of them turned by their EXIF data."""
    draws = np.random.default_rng(0)
    for label, channel in (("red", 0), ("blue", 2)):
        folder = tmp_path / "mixed" / label
        folder.mkdir(parents=True)
        for number in range(12):
            rows, columns = draws.integers(5, 60, 2) if number else (90, 4)
            pixels = draws.integers(0, 60, (rows, columns, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            exif = Image.Exif()
            if number % 2:
                exif[0x112] = 1 + number % 8
            Image.fromarray(pixels).save(folder / f"{number}.{('png', 'jpg', 'webp', 'tiff')[number % 4]}", exif=exif)
    return tmp_path / "mixed"


def test_sizes_are_read_from_headers(mixed, monkeypatch):
    paths = sorted(mixed.rglob("*.*"))
    expected = [read_image(path, "RGB").size[::-1] for path in paths]
    assert any(size != Image.open(path).size[::-1] for size, path in zip(expected, paths, strict=True))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were decoded"))
    for path in paths:
        monkeypatch.setattr(type(Image.open(path)), "load", lambda self: pytest.fail("pixels were decoded"))
    assert [read_size(path) for path in paths] == expected


@pytest.mark.parametrize("patch_size", [8, (4, 12)])
def test_tokens_are_counted_as_the_model_has_them(mixed, patch_size):
    config = replace(CONFIG, image_size=pair(patch_size), patch_size=patch_size)
    data = Folder(path=mixed, size="native", augment=Augment(crop=0.5, flip=True)).read(config.image_format)
    embed = ViT(replace(config, encoder=replace(config.encoder, dim=8, heads=1, depth=1))).embed
    for part in data.parts().values():
        [images] = collate([part[i] for i in range(len(part))]).inputs
        assert [*part.token_counts] == embed(images).packing.lengths.tolist()
        assert max(part.token_counts) <= 15 and len(set(part.token_counts)) > 1 - (part is not data.train)


def test_tokens_of_one_size(mixed):
    fixed = replace(CONFIG, max_tokens=None)
    assert set(Folder(path=mixed).read(fixed.image_format).train.token_counts) == {3 + 16}
    digits = Digits().read(replace(fixed, image_size=8, channels=1).image_format).train
    assert digits.token_counts == [3 + 1] * len(digits)
    assert Images([], eval_transform(FORM), "L").token_counts is None


def test_a_batch_is_a_list_only_where_sizes_differ():
    same, other = torch.randn(2, 3, 8, 8), torch.randn(3, 8, 16)
    [images], targets = collate([(same[0], 1), (same[1], 2)])
    assert torch.equal(images, same) and targets.tolist() == [1, 2]
    [images], targets = collate([(same[0], 1), (other, 2), (same[1], 0)])
    assert len(images) == 3 and targets.tolist() == [1, 2, 0]
    for image, expected in zip(images, (same[0], other, same[1]), strict=True):
        assert torch.equal(image, expected)
    assert len({image.untyped_storage().data_ptr() for image in images}) == 1


def test_cached_and_seeded_samples_are_the_same(mixed, tmp_path):
    form = replace(FORM, channels=1)
    plain, cached = (
        Images(samples(mixed), train_transform(form, Augment(crop=0.4)), image_mode(1), cache, form)
        for cache in (None, DecodeCache(tmp_path / "cache"))
    )
    for data in (cached, cached):
        for index in range(len(plain)):
            assert torch.equal(SeededDataset(data, 3)[2, index][0], SeededDataset(plain, 3)[2, index][0])


def samples(folder):
    return [(path, 0) for path in sorted(folder.rglob("*.*"))]


def test_mixed_digits_have_many_sizes_and_always_the_same():
    data = MixedDigits()
    form = replace(CONFIG, channels=1, image_size=16, patch_size=4, stride=2, max_tokens=52).image_format
    once, again = data.read(form), data.read(form)
    for part, same in zip(once.parts().values(), again.parts().values(), strict=True):
        assert all(torch.equal(part[i][0], same[i][0]) for i in range(20))
    sizes = {image.size for image, _ in once.train.samples}
    assert sizes == {(rows, columns) for rows in range(8, 17) for columns in range(8, 17)}
    assert [label for _, label in once.test.samples] == [label for _, label in Digits().samples().test]
    assert max(once.train.token_counts) <= 52


def train(*argv):
    train_command(VISION, [str(word) for word in argv])


def test_a_run_on_files_of_mixed_sizes_predicts(mixed, capsys, monkeypatch):
    train("folder", "--data.path", mixed, *IMAGES, *NATIVE, "--data.max-tokens", "20", "--data.augment.policy", "")
    model = ViT.from_run(Path("runs/folder"), "vision")
    assert model.config.max_tokens == 20 and "report.html" in capsys.readouterr().out
    paths = sorted((mixed / "red").iterdir())
    monkeypatch.setattr("sys.argv", ["predict", "runs/folder", *map(str, paths), "--top", "1", "--plots=plots"])
    predict_command("predict", Arguments, predict)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(paths) == len(list(Path("plots").iterdir()))
    transform = eval_transform(model.config.image_format)
    images = [transform(read_image(path, "RGB")) for path in paths]
    with torch.no_grad():
        probabilities = model.eval()(images).softmax(dim=1)
    for line, row in zip(lines, probabilities, strict=True):
        assert f"{model.config.labels[row.argmax()]} {row.max():.1%}" in line

    train("folder", "--data.path", mixed, *IMAGES, "--init", "runs/folder", "--data.augment.policy", "")
    assert ViT.from_run(Path("runs/folder-2"), "vision").config.max_tokens == 20  # goes on at native sizes


def test_masked_patches_are_learned_on_files_of_mixed_sizes(mixed, capsys):
    few_steps = ["--train.steps", "4", "--train.eval-every", "4", "--train.warmup", "2"]
    options = ["--data.path", mixed, *few_steps, *SMALL_VIT, *FILES, "--data.max-tokens", "20"]
    masked = ["--masked.ratio", "0.6", "--masked.block", "2", "0", "--train.tokens-per-batch", "80"]
    train("folder", *options, *NATIVE, *masked, "--train.save-every", "1")
    assert "report.html" in capsys.readouterr().out
    pretrained = ViT.from_run(Path("runs/folder"), "vision")
    assert pretrained.config.max_tokens == 20 and pretrained.config.classes == 0
    train("folder", *options, "--init", "runs/folder")
    assert ViT.from_run(Path("runs/folder-2"), "vision").config.labels == ("blue", "red")


def test_a_budget_is_by_default_that_of_the_image_size():
    data = Digits(size="native")
    config = replace(CONFIG, max_tokens=None)
    assert data.sized(config).max_tokens == 3 + 16 and Digits().sized(config) == config
    assert replace(data, max_tokens=9).sized(config).max_tokens == 9
    assert Digits().sized(CONFIG) == CONFIG and Digits(max_tokens=9).sized(CONFIG).max_tokens == 9
    with pytest.raises(UserError, match="max_tokens must be at least 4, so that there is a patch, not 3"):
        replace(CONFIG, max_tokens=3)


MISTAKES = {
    "alone": (["--data.max-tokens", "9"], "--data.max-tokens 9 is for images of native size: add --data.size native"),
    "budget": ([*NATIVE, "--data.max-tokens", "1"], "1 leaves no patch beside the model's 1 .* give at least 2"),
    "model": (["--model.max-tokens", "1"], "--model.max-tokens must be at least 2"),
    "mixup": ([*NATIVE, "--data.augment.mixup", "0.2"], "mixup and .*cutmix blend images of one size"),
    "cutmix": ([*NATIVE, "--data.augment.cutmix", "1"], "mixup and .*cutmix blend images of one size"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_sentence(name, images, capsys):
    argv, words = MISTAKES[name]
    check_mistake(VISION, Mistake(["folder", "--data.path", images, *IMAGES, *argv], words), capsys, False)
