"""Find images by a text or by another image: `python -m examples.multimodal.retrieve MODEL FOLDER QUERY...`."""

import csv
import io
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import tyro

from core import UserError
from core.config import Count, configclass
from core.experiments import predict_command
from core.experiments.cli import say
from core.experiments.figures import NO_TICKS, figure, save_figure, shortened
from core.experiments.outputs import make_output_folder, output_names
from core.files import write_text
from vision.plots import draw_image, to_pixels

from .pretrained import load_pretrained
from .two_towers import TwoTowers
from .vectors import image_vectors, read_pixels, text_vectors

COLUMNS = 8  # of the picture


@configclass
class Arguments:
    """Print the images of a folder that are nearest to each query, and draw them."""

    model: Annotated[str, tyro.conf.Positional]
    """A run's directory, a directory of transformers or open_clip, or hf-hub:NAME."""
    folder: Annotated[Path, tyro.conf.Positional]
    """The images, in any subdirectories."""
    texts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """What to look for."""
    images: tuple[Path, ...] = ()
    """Image files to find similar ones to."""
    top: Count = 8
    """How many images to find for each query."""
    out: Path = Path("retrieved")
    """Directory of a picture for each query and of nearest.csv. No file there is overwritten."""


@torch.no_grad()
def retrieve(arguments: Arguments) -> None:
    if not arguments.texts and not arguments.images:
        raise UserError("Name what to look for: texts after the folder, in quotes, or image files with --images.")
    if not arguments.folder.is_dir():
        raise UserError(f"{arguments.folder} is not a directory: name the one that holds the images.")
    model, tokenizer = load_pretrained(arguments.model)
    queries = [*arguments.texts, *map(str, arguments.images)]
    wanted = [text_vectors(model, tokenizer, arguments.texts, source=arguments.model)] if arguments.texts else []
    wanted += [image_vectors(model, path, arguments.model)[1] for path in arguments.images]
    paths, vectors = image_vectors(model, arguments.folder, arguments.model)
    # The logits' scale and bias are left out: they are the same for all.
    cosines = F.normalize(torch.cat(wanted)[:, : model.width], dim=1) @ F.normalize(vectors[:, : model.width], dim=1).T
    best = cosines.topk(min(arguments.top, len(paths)), dim=1)
    make_output_folder(arguments.out)
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["query", "rank", "image", "cosine"])
    plots = output_names([Path(query) for query in queries], arguments.out, ".png")
    for query, values, numbers, plot in zip(queries, best.values.tolist(), best.indices.tolist(), plots, strict=True):
        found = [paths[number] for number in numbers]
        writer.writerows(
            (query, rank, path, f"{value:.4f}") for rank, (path, value) in enumerate(zip(found, values, strict=True), 1)
        )
        draw(model, query, found, values, plot)
        say(f"{query}: {', '.join(f'{path} {value:.3f}' for path, value in zip(found, values, strict=True))} ({plot})")
    (table,) = output_names([Path("nearest")], arguments.out, ".csv")
    write_text(table, lines.getvalue())
    say(f"All of them: {table}")


def draw(model: TwoTowers, query: str, paths: list[Path], cosines: list[float], plot: Path) -> None:
    columns = min(COLUMNS, len(paths))
    rows = -(-len(paths) // columns)
    fig, axes = figure(1.4 * max(columns, 3), 1.6 * rows + 0.4, rows, columns, subplot_kw=NO_TICKS)
    fig.suptitle(shortened(query, 80), fontsize=10)
    for axis in axes.flat:
        axis.axis("off")
    for axis, path, cosine in zip(axes.flat, paths, cosines, strict=False):
        pixels = to_pixels(read_pixels(model, path), model.config.image.preprocess)
        draw_image(axis, pixels, f"{shortened(path.name, 20)} {cosine:.2f}")
    save_figure(fig, plot)


if __name__ == "__main__":
    predict_command("python -m examples.multimodal.retrieve", Arguments, retrieve)
