"""From files to batches, against the usual way with the peer's library; equal outputs, or the same random changes.

Images: JPEG files of 500 x 375 to random crops of 224 px, flipped and normalised; the limit is Pillow decoding them to
RGB. Audio: FLAC files of 44.1 kHz stereo to mono at 16 kHz; the limit is soundfile decoding them. Filterbanks:
Kaldi's, from waveforms on; no limit is known.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile
import torch
import torchaudio
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from transformers import ASTFeatureExtractor

from audio import FeatureConfig, Filterbank
from audio.decoding import read_audio
from core.training.sampling import MicroBatches, Order, train_loader
from vision import ViTConfig
from vision.augment import Augment
from vision.datasets import Folder
from vision.images import collate

from .row import Row, Run, versioned
from .timing import interleave

WORKERS, RATE = 2, 16_000


def write_images(root: Path, count: int) -> list[Path]:
    """Smooth images with some noise, about as large as photographs."""
    random = np.random.default_rng(0)
    files = []
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
        noisy = np.asarray(coarse) + random.normal(0, 8, (375, 500, 3))
        files.append(root / "train" / f"class{number % 2}" / f"{number}.jpg")
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(files[-1], quality=90)
    for folder in (root / split / label for split in ("val", "test") for label in ("class0", "class1")):
        folder.mkdir(parents=True)  # so that no training image is held out
        Image.new("RGB", (8, 8)).save(folder / "0.jpg")
    return files


def epoch(make: Callable[[], DataLoader]) -> Callable[[], None]:
    """Loading processes and all."""

    def run() -> None:
        for _ in make():
            pass

    return run


def images(run: Run, folder: Path) -> Iterator[Row]:
    batch, count = (2, 4) if run.tiny else (32, 256)
    files = write_images(folder, count)
    model = ViTConfig(image_size=224)
    data = Folder(path=folder, augment=Augment(crop=0.3, flip=True)).read(model.image_format)
    order = Order(0, count, batch)
    steps = [
        v2.RandomResizedCrop(224, scale=(0.3, 1.0), interpolation=v2.InterpolationMode(model.preprocess.interpolation)),
        v2.RandomHorizontalFlip(),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(model.preprocess.mean, model.preprocess.std),
    ]
    stock = torchvision.datasets.ImageFolder(str(folder / "train"), v2.Compose(steps))

    def decode() -> None:
        for file in files:
            with Image.open(file) as image:
                image.convert("RGB")

    def ours(workers: int) -> DataLoader:
        return train_loader(data.train, collate, MicroBatches(order, 1, 0, count // batch), workers, pin_memory=False)

    for workers in (0,) if run.tiny else (0, WORKERS):
        work = {
            "ours": epoch(lambda: ours(workers)),  # noqa: B023 - run in this turn
            "theirs": epoch(lambda: DataLoader(stock, batch, shuffle=True, num_workers=workers)),  # noqa: B023
            "decode": decode,
        }
        found = interleave(work, **run.times(21))
        yield Row(
            what=f"{count} JPEG files, {workers} loading processes",
            work="an epoch of batches",
            peer=f"ImageFolder, {versioned('torchvision')}",
            ours=found["ours"],
            theirs=found["theirs"],
            limit=found["decode"].median / max(workers, 1),
        )


def write_audio(root: Path, count: int, seconds: int) -> list[Path]:
    random = np.random.default_rng(0)
    files = [root / f"{number}.flac" for number in range(count)]
    for file in files:
        steps = random.normal(0, 0.01, (seconds * 44_100, 2))
        soundfile.write(file, np.tanh(np.cumsum(steps, axis=0) * 0.1), 44_100)
    return files


def audio_rows(run: Run, folder: Path) -> Iterator[Row]:
    count, seconds = (2, 1) if run.tiny else (32, 5)
    files = write_audio(folder, count, seconds)
    resample = torchaudio.transforms.Resample(44_100, RATE)

    def theirs(file: Path) -> Tensor:
        waveform, _ = soundfile.read(file, dtype="float32", always_2d=True)
        return resample(torch.from_numpy(waveform).mean(dim=1))

    torch.testing.assert_close(read_audio(files[0], RATE), theirs(files[0]))
    work = {
        "ours": lambda: [read_audio(file, RATE) for file in files] and None,
        "theirs": lambda: [theirs(file) for file in files] and None,
        "decode": lambda: [soundfile.read(file, dtype="float32") for file in files] and None,
    }
    found = interleave(work, **run.times(21))
    yield Row(
        what=f"{count} FLAC files of {seconds} s",
        work="read, mixed down, resampled",
        peer=f"soundfile, Resample of {versioned('torchaudio')}",
        ours=found["ours"],
        theirs=found["theirs"],
        limit=found["decode"].median,
    )


def filterbanks(run: Run) -> Iterator[Row]:
    clips = 2 if run.tiny else 8
    torch.manual_seed(0)
    samples = 400 + 160 * ((64 if run.tiny else 1024) - 1)
    waveforms, lengths = 0.1 * torch.randn(clips, samples), torch.full((clips,), samples)
    ours = Filterbank(FeatureConfig(kind="kaldi"), RATE, 128)
    extract = ASTFeatureExtractor(max_length=int(ours.frames(lengths[:1])))
    arrays = list(waveforms.numpy())

    def found_by_ours() -> Tensor:
        return ours.normalise(ours(waveforms, lengths)[0])

    def found_by_theirs() -> Tensor:
        return extract(arrays, sampling_rate=RATE, return_tensors="pt").input_values

    torch.testing.assert_close(found_by_ours().mT, found_by_theirs(), rtol=1e-2, atol=1e-2)
    found = interleave({"ours": found_by_ours, "theirs": found_by_theirs}, **run.times(41))
    yield Row(
        what=f"{clips} clips of {samples / RATE:.1f} s",
        work="Kaldi filterbanks, normalised",
        peer=f"ASTFeatureExtractor, {versioned('transformers')}",
        ours=found["ours"],
        theirs=found["theirs"],
    )


def rows(run: Run) -> Iterator[Row]:
    with TemporaryDirectory() as folder:
        yield from images(run, Path(folder) / "images")
        Path(folder, "audio").mkdir()
        yield from audio_rows(run, Path(folder) / "audio")
    yield from filterbanks(run)
