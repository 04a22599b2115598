"""Classify audio files: `python -m audio.predict RUN CLIP...`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from core import UserError
from core.config import Count, configclass
from core.experiments import predict_command
from core.experiments.cli import say
from core.experiments.figures import figure, save_figure
from core.experiments.outputs import (
    check_finite,
    load_classifier,
    make_output_folder,
    most_probable,
    output_names,
    shown_classes,
)

from .clips import AudioFormat, check_length
from .datasets import Seconds
from .decoding import read_audio
from .plots import draw_overlay, draw_spectrogram
from .saved import Model, kind_of

BATCH = 16  # windows or clips that are predicted at once
MOST = 100_000  # windows of a clip


@configclass
class Arguments:
    """Print the most probable classes of each clip, and plot the attention of the model over its spectrogram."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run's directory, or a directory written by save_pretrained."""
    clips: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Audio files: wav, flac, ogg, mp3 and others."""
    top: Count | None = None
    """How many classes to show; 3 by default, if the model has so many."""
    window: Seconds | None = None
    """Length in seconds of the windows that a longer clip is cut into; probabilities are averaged. None: one pass."""
    hop: Seconds | None = None
    """Seconds from window to window; half a window by default."""
    out: Path | None = None
    """Directory of the plots; RUN/predictions by default. They are named after the clips and overwrite no file."""


def predict(arguments: Arguments) -> None:
    if not arguments.clips:
        raise UserError("Name at least one audio file after the run's directory.")
    if arguments.hop is not None and arguments.window is None:
        raise UserError("--hop needs --window: without it a clip is predicted in one pass.")
    model = load_classifier(kind_of(arguments.run), arguments.run, "audio")
    config, form = model.config, model.config.audio_format
    top = shown_classes(arguments.top, config.classes)
    check_windows(arguments, form)
    # All clips are read and predicted before anything is printed or written.
    inputs = [read_audio(path, config.sample_rate) for path in arguments.clips]
    cuts = [
        windows(f"{path}: a clip", waveform, arguments.window, arguments.hop, config.sample_rate)
        for path, waveform in zip(arguments.clips, inputs, strict=True)
    ]
    for path, stretches in zip(arguments.clips, cuts, strict=True):
        check_length(f"{path}: a clip", len(stretches[0]), form)
    together = probabilities(model, [stretch for stretches in cuts for stretch in stretches])
    predictions = together.split([len(each) for each in cuts])
    for each in predictions:
        check_finite(each, arguments.run)
    out = arguments.out or arguments.run / "predictions"
    make_output_folder(out)
    plots = output_names(arguments.clips, out, ".png")
    for path, plot, stretches, each in zip(arguments.clips, plots, cuts, predictions, strict=True):
        mean = each.mean(dim=0)
        predicted = most_probable(mean, config.labels, top)
        # The plot shows the window in which the predicted class is most probable.
        shown = stretches[int(each[:, mean.argmax()].argmax())]
        fig, axes = figure(7, 4, rows=2, sharex=True)
        draw_spectrogram(axes[0, 0], model, shown, predicted[0])
        draw_overlay(axes[1, 0], model, shown)
        axes[1, 0].set_xlabel("seconds")
        save_figure(fig, plot)
        passes = f"{len(stretches)} windows; " if len(stretches) > 1 else ""
        say(f"{path}: {', '.join(predicted)} ({passes}attention: {plot})")


def check_windows(arguments: Arguments, form: AudioFormat) -> None:
    length, shift = form.shortest / form.sample_rate, form.shift / form.sample_rate
    if arguments.window is not None and arguments.window < length:
        raise UserError(
            f"--window {arguments.window:g} is shorter than a frame of the model, which takes {length:g} s."
        )
    if arguments.hop is not None and arguments.hop < shift:
        raise UserError(f"--hop {arguments.hop:g} is less than the model's step from frame to frame, {shift:g} s.")


def windows(
    what: str, waveform: Float[Tensor, "samples"], window: float | None, hop: float | None, sample_rate: int
) -> list[Float[Tensor, "stretch"]]:
    """Windows of `window` seconds, one every `hop` seconds and one at the end; the whole clip if it is not longer.

    what: the name of the clip in an error.
    """
    if window is None:
        return [waveform]
    size, step = round(window * sample_rate), round((hop or window / 2) * sample_rate)
    last = max(len(waveform) - size, 0)
    starts = range(0, last, step)
    if len(starts) >= MOST:
        raise UserError(
            f"{what} would be cut into {len(starts) + 1:,} windows, more than {MOST:,}: set a longer --hop."
        )
    return [waveform[start : start + size] for start in (*starts, last)]


@torch.no_grad()
def probabilities(model: Model, stretches: list[Float[Tensor, "_"]]) -> Float[Tensor, "n classes"]:
    """Of each stretch; they are of any lengths."""
    return torch.cat([model.probabilities(model(batch)) for batch in batches(stretches, model.config.audio_format)])


def batches(stretches: list[Float[Tensor, "_"]], form: AudioFormat) -> Iterator[list[Float[Tensor, "_"]]]:
    """Stretches that are predicted at once: not many, and together not longer than as many of the usual length, unless
    a single one is."""
    batch, samples = [], 0
    for stretch in stretches:
        if batch and (len(batch) == BATCH or samples + len(stretch) > BATCH * form.usual):
            yield batch
            batch, samples = [], 0
        batch.append(stretch)
        samples += len(stretch)
    if batch:
        yield batch


if __name__ == "__main__":
    predict_command("python -m audio.predict", Arguments, predict)
