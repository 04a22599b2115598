"""Predicting files into a table, with all that the command does, against a plain loop of `torchvision.io.decode_image`,
v2 transforms, `model(batch)` and topk. Both load the model; the table has the labels that the loop finds.

PNG files of 64 x 64; the limit is the model alone on batches that are read already.
"""

import csv
import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from core import EncoderConfig
from vision import ViT, ViTConfig
from vision.predict import Arguments, predict

from .row import Goal, Row, Run, versioned
from .timing import interleave

BATCH, SIZE, WORKERS = 64, 64, 2


def write_images(root: Path, count: int) -> list[Path]:
    """Smooth images with some noise."""
    random, files = np.random.default_rng(0), [root / f"{number:05}.png" for number in range(count)]
    root.mkdir()
    for file in files:
        coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((SIZE, SIZE))
        noisy = np.asarray(coarse) + random.normal(0, 8, (SIZE, SIZE, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file)
    return files


def rows(run: Run) -> Iterator[Row]:
    count = 8 if run.tiny else 10_000
    with TemporaryDirectory() as name:
        folder = Path(name)
        files = write_images(folder / "images", count)
        torch.manual_seed(0)
        labels = tuple(map(str, range(10)))
        encoder = EncoderConfig(dim=64, depth=4, heads=4)
        config = ViTConfig(image_size=SIZE, patch_size=8, classes=10, labels=labels, encoder=encoder)
        model = ViT(config)
        torch.nn.init.normal_(model.head.weight)
        model.save_pretrained(folder / "run")
        mean, std = config.preprocess.mean, config.preprocess.std
        prepare = v2.Compose([v2.Resize(SIZE), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean * 3, std * 3)])

        def batches() -> Iterator[Tensor]:
            for start in range(0, count, BATCH):
                part = files[start : start + BATCH]
                yield torch.stack([prepare(decode_image(str(file), ImageReadMode.RGB)) for file in part])

        @torch.inference_mode()
        def plain() -> list[list[int]]:
            theirs = ViT.from_pretrained(folder / "run").eval()
            found = []
            for batch in batches():
                values, numbers = theirs(batch).softmax(dim=-1).topk(3)
                found += zip(values.tolist(), numbers.tolist(), strict=True)
            return [numbers for _, numbers in found]

        def ours(workers: int) -> None:
            out = folder / "out.csv"
            out.unlink(missing_ok=True)
            arguments = Arguments(
                run=folder / "run", inputs=(folder / "images",), out=out, workers=workers, device="cpu", quiet=True
            )
            with redirect_stdout(io.StringIO()):
                predict(arguments)

        ready = list(batches()) if run.tiny else [next(batches())] * (count // BATCH)
        products = torch.inference_mode()(lambda: [model.eval()(batch) for batch in ready] and None)
        for workers in (0,) if run.tiny else (0, WORKERS):
            works = {"ours": lambda: ours(workers), "theirs": plain, "model": products}  # noqa: B023 - run in this turn
            found = interleave(works, **run.times(5))
            with (folder / "out.csv").open() as table:
                assert [int(row["label"]) for row in csv.DictReader(table)] == [numbers[0] for numbers in plain()]
            yield Row(
                what=f"{count:,} PNG files, {workers} loading processes",
                work="predict into a table",
                peer=f"a plain loop, {versioned('torchvision')}",
                ours=found["ours"],
                theirs=found["theirs"],
                limit=found["model"].median,
                goal=Goal(ratio=0.9),
            )
