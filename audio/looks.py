"""What a model attends to in a clip, for the attention explorer."""

import io
import math
from collections.abc import Sequence

import numpy as np
import soundfile
import torch
from jaxtyping import Float
from torch import Tensor

from core import pair
from core.experiments.exploring import predicted
from core.explore import Look, Marks, Part, Picture, look, png

from .features import top_frequency
from .model import AST
from .plots import spectrogram
from .saved import Model
from .waveform import WaveformModel

ASPECTS = 1.6, 4.0  # width over height of a spectrogram


def look_at(name: str, model: Model, clip: Float[Tensor, "samples"], target: str | None = None) -> Look:
    """What a model attends to in a clip; target: the class that gradients are of."""
    config = model.config
    return look(
        name,
        lambda: model(clip[None]),
        parts(model, clip),
        depth=config.encoder.depth,
        pool=config.pool,
        predictions=predicted(config, model.probabilities, target),
    )


@torch.no_grad()
def parts(model: Model, clip: Float[Tensor, "samples"]) -> list[Part]:
    """Where the tokens of a clip are: on its spectrogram, with time to the right and frequency upwards."""
    tokens = model.tokens(clip[None])
    image, start, end = spectrogram(model, clip)
    bins, frames = image.shape
    rate, names = model.config.sample_rate, None
    if isinstance(model, WaveformModel):
        grid = 1, tokens.x.shape[1]
        length, shift = (samples / rate / (end - start) for samples in model.config.frame_samples)
        origin, step, size = (0.5, length / 2 - start / (end - start)), (1.0, shift), (1.0, length)
    else:
        assert tokens.grid is not None
        grid = tokens.grid
        (high, wide), (up, across) = map(pair, model.config.cut)
        origin, step = (1 - high / 2 / bins, wide / 2 / frames), (-up / bins, across / frames)
        size = high / bins, max(wide, across if model.config.embedding == "convolutions" else 0) / frames
        names = frequencies(model, grid[0]) if grid[0] > 1 else None
    first = bool(tokens.prefix and getattr(model.config, "class_token", False))
    registers = (f"register {number + 1}" for number in range(tokens.prefix - first))
    marks = [*(["class token"] if first else []), *registers]
    low, high = np.percentile(image, (2, 99.8))
    picture = Picture(
        image=png((image[::-1] - low) / max(high - low, 1e-9)),
        aspect=min(max(frames / bins, ASPECTS[0]), ASPECTS[1]),
        grid=grid,
        origin=origin,
        step=step,
        size=size,
        names=names,
        seconds=(start, end),
        sound=wav(clip, rate),
    )
    return [*([Marks(marks)] if marks else []), picture]


def frequencies(model: AST, rows: int) -> Sequence[str]:
    """Which frequencies each row of patches covers: bins are evenly spaced on the mel scale."""
    config = model.config
    (high, _), (up, _) = map(pair, config.cut)
    bottom, top = (mel(hertz) for hertz in (config.features.f_min, top_frequency(config.features, config.sample_rate)))
    edges = [bottom + (top - bottom) * bin / (config.n_mels + 1) for bin in range(config.n_mels + 2)]
    ends = [(edges[row * up], edges[row * up + high + 1]) for row in range(rows)]
    return [f"{_rounded(low)}–{_rounded(end)} Hz" for low, end in ends]


def mel(hertz: float) -> float:
    return math.log1p(hertz / 700)


def _rounded(mels: float) -> str:
    hertz = 700 * math.expm1(mels)
    return f"{round(hertz, -1 if hertz < 1000 else -2):.0f}"


def wav(clip: Float[Tensor, "samples"], rate: int) -> bytes:
    """A WAV file of 16 bits."""
    buffer = io.BytesIO()
    soundfile.write(buffer, clip.clamp(-1, 1).numpy(), rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
