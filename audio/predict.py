"""Classify or embed audio files: `python -m audio.predict RUN CLIP...`."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from core import UserError
from core.config import configclass
from core.experiments import predict_command
from core.experiments.figures import figure, save_figure
from core.experiments.inputs import Input, file_inputs
from core.experiments.outputs import class_form, headline
from core.experiments.prediction import PredictOptions, predict_inputs
from core.experiments.predictor import Predictor
from core.experiments.results import Row

from .clips import AudioFormat, check_length
from .datasets import Seconds
from .decoding import SUFFIXES
from .plots import draw_overlay, draw_spectrogram
from .pretrained import load_model
from .samples import read_clip
from .saved import Model

BATCH = 16  # windows or clips that the model takes at once
MOST = 100_000  # windows of a clip


@configclass
class Arguments(PredictOptions):
    """Print the most probable classes of each clip, or a vector for each, or write them to a table (--out)."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run's directory, one written by save_pretrained (ours or another library's), or hf-hub:NAME."""
    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Audio files (wav, flac, ogg, mp3 and others), folders of them, and manifests with a column `path`; without any,
    standard input is read, one path a line."""
    window: Seconds | None = None
    """Length in seconds of the windows that a longer clip is cut into; probabilities are averaged. None: one pass."""
    hop: Seconds | None = None
    """Seconds from window to window; half a window by default."""


Cut = Callable[[str, Float[Tensor, "samples"]], list[Float[Tensor, "stretch"]]]
"""From the name of a clip and its waveform to what the model takes of it."""


def predict(arguments: Arguments) -> None:
    if arguments.hop is not None and arguments.window is None:
        raise UserError("--hop needs --window: without it a clip is predicted in one pass.")
    predictor = predictor_of(load_model(arguments.run), arguments)
    predict_inputs(predictor, file_inputs(arguments.inputs, SUFFIXES, "audio"), arguments)


def predictor_of(model: Model, arguments: Arguments) -> Predictor:
    config = model.config
    form, embeds = class_form(arguments.run, arguments, config)
    check_windows(arguments, config.audio_format)
    cut = partial(windows, window=arguments.window, hop=arguments.hop, sample_rate=config.sample_rate)
    return Predictor(
        run=arguments.run,
        model=model,
        read=partial(read, cut=cut, form=config.audio_format),
        compute=partial(means, model, embeds, cut),
        form=form,
        plot=None if embeds else partial(plot, model, cut),
    )


def read(entry: Input, cut: Cut, form: AudioFormat) -> Float[Tensor, "samples"]:
    waveform = read_clip(entry.source, form)
    what = f"{entry.source}: a clip"
    check_length(what, len(cut(what, waveform)[0]), form)
    return waveform


def means(model: Model, embeds: bool, cut: Cut, clips: list[Float[Tensor, "_"]]) -> Float[Tensor, "clips outputs"]:
    """The mean over the windows of each clip of their probabilities, of the numbers predicted, or of their features."""
    cuts = [cut("A clip", clip) for clip in clips]
    of = model.features if embeds else lambda batch: model.predictions(model(batch))
    together = outputs(model, [stretch for stretches in cuts for stretch in stretches], of)
    return torch.stack([each.mean(dim=0) for each in together.split([len(each) for each in cuts])])


def plot(model: Model, cut: Cut, clip: Float[Tensor, "samples"], entry: Input, row: Row, path: Path) -> None:
    """The spectrogram and the attention of the model, of the window in which the most probable class is most so."""
    stretches = cut("A clip", clip)
    found = outputs(model, stretches, lambda batch: model.probabilities(model(batch)))
    shown = stretches[int(found[:, found.mean(dim=0).argmax()].argmax())]
    fig, axes = figure(7, 4, rows=2, sharex=True)
    draw_spectrogram(axes[0, 0], model, shown, headline(row))
    draw_overlay(axes[1, 0], model, shown)
    axes[1, 0].set_xlabel("seconds")
    save_figure(fig, path)


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


def outputs(
    model: Model, stretches: list[Float[Tensor, "_"]], of: Callable[[list[Tensor]], Float[Tensor, "b outputs"]]
) -> Float[Tensor, "n outputs"]:
    """What `of` returns of each stretch; they are of any lengths."""
    return torch.cat([of(batch) for batch in batches(stretches, model.config.audio_format)])


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
