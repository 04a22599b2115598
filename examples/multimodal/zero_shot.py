"""Which text describes an image: `python -m examples.multimodal.zero_shot MODEL IMAGE TEXT TEXT...`."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from jaxtyping import Float
from torch import Tensor

from core import UserError
from core.config import Count, configclass
from core.experiments import predict_command
from core.experiments.cli import say
from core.experiments.figures import BLUE, figure, save_figure, shortened
from core.experiments.outputs import make_output_folder, most_probable, output_names, shown_classes
from core.files import write_text
from vision.plots import draw_image, to_pixels

from .pretrained import load_pretrained
from .two_towers import TwoTowers
from .vectors import image_vectors, read_pixels, text_vectors

DRAWN = 12  # texts, the most probable ones


@configclass
class Arguments:
    """Print how probable it is that each text describes each image, by CLIP or SigLIP, and draw it.

    CLIP's probabilities are of these texts, and sum to 1. SigLIP's are of each text by itself.
    """

    model: Annotated[str, tyro.conf.Positional]
    """A run's directory, a directory of transformers or open_clip, or hf-hub:NAME."""
    image: Annotated[Path, tyro.conf.Positional]
    """An image file, or a directory of them."""
    texts: Annotated[tuple[str, ...], tyro.conf.Positional]
    """What may be on the images."""
    templates: tuple[str, ...] = ("{}",)
    """What is written around each text, such as "a photo of {}."; the vectors of several are averaged."""
    top: Count | None = None
    """How many texts to print for each image; 3 by default, if there are so many."""
    out: Path = Path("predictions")
    """Directory of a picture for each image and of probabilities.csv, which has all of them. No file there is
    overwritten."""


def zero_shot(arguments: Arguments) -> None:
    texts = list(dict.fromkeys(arguments.texts))
    if not texts:
        raise UserError("Name at least one text after the image, in quotes.")
    top = shown_classes(arguments.top, len(texts), "texts given")
    if not arguments.image.exists():
        raise UserError(f"There is no image {arguments.image}: name an image file or a directory of them.")
    model, tokenizer = load_pretrained(arguments.model)
    wanted = text_vectors(model, tokenizer, texts, arguments.templates, arguments.model)
    paths, vectors = image_vectors(model, arguments.image, arguments.model)
    probabilities = model.probabilities(model.logits(vectors, wanted))
    make_output_folder(arguments.out)
    (table,) = output_names([Path("probabilities")], arguments.out, ".csv")
    write_text(table, _table(paths, texts, probabilities))
    for path, row, plot in zip(paths, probabilities, output_names(paths, arguments.out, ".png"), strict=True):
        draw(model, path, texts, row, plot)
        say(f"{path}: {', '.join(most_probable(row, texts, top))} ({plot})")
    say(f"All probabilities: {table}")


def _table(paths: Sequence[Path], texts: Sequence[str], probabilities: Float[Tensor, "images texts"]) -> str:
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["image", *texts])
    for path, row in zip(paths, probabilities.tolist(), strict=True):
        writer.writerow([path, *(f"{value:.6g}" for value in row)])
    return lines.getvalue()


def draw(model: TwoTowers, path: Path, texts: Sequence[str], probabilities: Float[Tensor, "texts"], plot: Path) -> None:
    """The image as the model sees it, beside its most probable texts."""
    best = probabilities.argsort(descending=True)[:DRAWN].flip(0)
    names = [shortened(texts[number], 40) for number in best.tolist()]
    fig, axes = figure(8, max(2.6, 0.9 + 0.3 * len(names)), columns=2, width_ratios=(1, 1.3))
    draw_image(axes[0, 0], to_pixels(read_pixels(model, path), model.config.image.preprocess), shortened(path.name, 40))
    bars = axes[0, 1].barh(range(len(names)), probabilities[best].tolist(), color=BLUE, height=0.7)
    axes[0, 1].bar_label(bars, [f"{value:.1%}" for value in probabilities[best].tolist()], padding=3)
    axes[0, 1].set(
        yticks=range(len(names)), yticklabels=names, xlim=(0, 1.15), xticks=(0, 0.5, 1), xlabel="probability"
    )
    axes[0, 1].grid(axis="y", visible=False)
    save_figure(fig, plot)


if __name__ == "__main__":
    predict_command("python -m examples.multimodal.zero_shot", Arguments, zero_shot)
