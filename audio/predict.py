"""Classify sound files: `python -m audio.predict RUN CLIP...`."""

from pathlib import Path
from typing import Annotated

import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from core import UserError
from core.config import Count, configclass
from core.hub import check_modality
from core.training import predict_command
from core.training.report import figure, save_figure

from .data import Seconds, read_audio
from .model import AST, check_length
from .pictures import draw_overlay, draw_spectrogram

TOGETHER = 16  # windows that go through the model at once


@configclass
class Arguments:
    """Top classes of each clip with their probabilities, and a picture of where the model listened."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run's directory, or a directory written by save_pretrained."""
    clips: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Sound files: wav, flac, ogg, mp3."""
    top: Count = 3
    """How many classes to show."""
    window: Seconds | None = None
    """Seconds of the windows that a longer clip is cut into; their probabilities are averaged. None: in one pass."""
    hop: Seconds | None = None
    """Seconds from window to window; half a window by default."""
    out: Path | None = None
    """Where the pictures go; RUN/predictions by default."""


def predict(arguments: Arguments) -> None:
    if not arguments.clips:
        raise UserError("Name at least one sound file after the run's directory.")
    if arguments.hop is not None and arguments.window is None:
        raise UserError("--hop needs --window: without it a clip is predicted in one pass.")
    check_modality(arguments.run, "audio")
    model = AST.from_run(arguments.run)
    config = model.config
    if not config.classes:
        raise UserError(f"The model in {arguments.run} has no classes to tell apart: train it on some with --init.")
    inputs = [read_audio(path, config.sample_rate) for path in arguments.clips]  # all are read before any is shown
    cuts = [windows(waveform, arguments.window, arguments.hop, config.sample_rate) for waveform in inputs]
    for path, stretches in zip(arguments.clips, cuts, strict=True):
        check_length(f"{path}: a clip", len(stretches[0]), config)
    out = arguments.out or arguments.run / "predictions"
    out.mkdir(parents=True, exist_ok=True)
    labels = config.labels or tuple(map(str, range(config.classes)))
    for number, (path, stretches) in enumerate(zip(arguments.clips, cuts, strict=True)):
        each = probabilities(model, stretches)
        chances, classes = each.mean(dim=0).topk(min(arguments.top, len(labels)))
        guesses = [f"{labels[c]} {p:.1%}" for p, c in zip(chances, classes, strict=True)]
        repeated = [other.stem for other in arguments.clips].count(path.stem) > 1
        picture = out / f"{path.stem}{f'-{number + 1}' if repeated else ''}.png"
        # Of a long recording, the window that is surest of the answer.
        shown = stretches[int(each[:, classes[0]].argmax())]
        fig, axes = figure(7, 4, rows=2, sharex=True)
        draw_spectrogram(axes[0, 0], model, shown, guesses[0])
        draw_overlay(axes[1, 0], model, shown)
        axes[1, 0].set_xlabel("seconds")
        save_figure(fig, picture)
        passes = f"{len(stretches)} windows; " if len(stretches) > 1 else ""
        print(f"{path}: {', '.join(guesses)} ({passes}attention: {picture})")


def windows(
    waveform: Float[Tensor, "samples"], window: float | None, hop: float | None, sample_rate: int
) -> list[Float[Tensor, "stretch"]]:
    """Stretches of `window` seconds, one every `hop` and one at the very end; the whole clip if it is no longer."""
    if window is None:
        return [waveform]
    size = max(round(window * sample_rate), 1)
    step = max(round((hop or window / 2) * sample_rate), 1)
    last = max(len(waveform) - size, 0)
    starts = sorted({*range(0, last, step), last})
    return [waveform[start : start + size] for start in starts]


@torch.no_grad()
def probabilities(model: AST, stretches: list[Float[Tensor, "stretch"]]) -> Float[Tensor, "n classes"]:
    """Of each of the stretches, which are equally long."""
    batches = torch.stack(stretches).split(TOGETHER)
    return torch.cat([model.probabilities(model(batch)) for batch in batches])


if __name__ == "__main__":
    predict_command("python -m audio.predict", Arguments, predict)
