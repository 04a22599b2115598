"""Write a trained model as ONNX or as torch.export's archive: `python -m audio.export RUN FILE`.

A model of torchaudio's mel spectrograms (logmel) takes waveforms and their lengths in samples. Kaldi's and Whisper's
filterbanks can't be exported: a model of theirs takes features, as `AST.spectrograms` gives them, and their numbers of
frames.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import tyro
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.export import Dim

from core import Tokens, UserError, to_dict
from core.config import configclass
from core.experiments import predict_command
from core.models.export import check_target, export_model, target_metadata

from .features import EPSILON, levelled
from .model import AST
from .pretrained import load_model
from .waveform import WaveformModel
from .waveform_embedding import normalised
from .whisper import ConvolvedEmbedding


@configclass
class Arguments:
    """A file that runs without this library: it takes waveforms and their lengths, any number of any length (of Kaldi's
    and Whisper's filterbanks: features and their numbers of frames), and gives logits."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run's directory, one written by save_pretrained (ours or another library's), or hf-hub:NAME."""
    file: Annotated[Path, tyro.conf.Positional]
    """model.onnx, or model.pt2 for torch.export's archive."""


class Program(nn.Module):
    """A model whose shapes follow from those of its inputs alone, not from the lengths in them; `size` is along time.

    Inputs are as long as a whole number of columns of tokens, padded with anything.
    """

    names = ("waveforms", "lengths")

    def size(self, columns):
        """Samples that so many columns of tokens reach."""
        raise NotImplementedError

    def noise(self, batch: int, size: int) -> Tensor:
        return torch.randn(batch, size)

    def example(self, batch: int, columns: int) -> dict[str, Tensor]:
        """Noise of random lengths; the first clip has no padding."""
        size = self.size(columns)
        lengths = torch.randint(1, size + 1, (batch,))
        lengths[0] = size
        return dict(zip(self.names, (self.noise(batch, size), lengths), strict=True))


class FromFeatures(Program):
    names = ("features", "frames")

    def __init__(self, model: AST):
        super().__init__()
        self.model = model

    def size(self, columns):
        """Frames that so many columns of patches reach."""
        return self.model.embed.stride[1] * columns + (self.model.embed.patch_size[1] - self.model.embed.stride[1])

    def noise(self, batch: int, size: int) -> Tensor:
        return torch.randn(batch, self.model.config.n_mels, size)

    def forward(self, features: Float[Tensor, "b mel frames"], frames: Int[Tensor, "b"]) -> Float[Tensor, "b classes"]:
        model, embed = self.model, self.model.embed
        if isinstance(embed, ConvolvedEmbedding):  # every clip is as long as the longest
            return model.head(model.pooled(model.encoder(embed(features))))
        rows, width = embed.covered(embed.grid)
        if model.config.mask_padding:
            features = features.where(torch.arange(features.shape[2], device=frames.device) < frames[:, None, None], 0)
        else:
            features = features[..., :width]
        columns = embed.columns(frames)
        widths = columns * embed.stride[1] if model.config.mask_padding else None
        tokens = embed.patches(features[:, None, :rows], widths)
        if model.config.mask_padding:
            real = torch.arange(tokens.grid[1], device=frames.device) < columns[:, None]
            mask = F.pad(repeat(real, "b c -> b (r c)", r=tokens.grid[0]), (tokens.prefix, 0), value=True)
            tokens = Tokens(tokens.x, mask=mask, grid=tokens.grid, prefix=tokens.prefix)
        return model.head(model.pooled(model.encoder(tokens)))


class FromWaveforms(FromFeatures):
    waves: Tensor
    names = Program.names

    def __init__(self, model: AST):
        super().__init__(model)
        bank: Any = model.filterbank
        window = bank.mel.spectrogram.window
        turns = torch.outer(torch.arange(bank.length // 2 + 1.0), torch.arange(float(bank.length))) / bank.length
        waves = torch.polar(window.double().expand_as(turns), -2 * torch.pi * turns.double())
        self.register_buffer("waves", torch.cat([waves.real, waves.imag])[:, None].float(), persistent=False)

    def logmel(self, waveforms: Float[Tensor, "b samples"]) -> Float[Tensor, "b mel frames"]:
        """As the filterbank's, with the Fourier transform written out: ONNX has no complex numbers."""
        bank: Any = self.model.filterbank
        power = F.conv1d(waveforms[:, None], self.waves, stride=bank.shift).square()
        real, imaginary = power.chunk(2, dim=1)
        return bank.mel.mel_scale(real + imaginary).clamp(min=EPSILON).log()

    def size(self, columns):
        """Samples that so many columns of patches reach."""
        bank, embed = self.model.filterbank, self.model.embed
        before = bank.length + (embed.patch_size[1] - embed.stride[1] - 1) * bank.shift
        return bank.shift * embed.stride[1] * columns + before

    def noise(self, batch: int, size: int) -> Tensor:
        return Program.noise(self, batch, size)

    def forward(self, waveforms: Float[Tensor, "b samples"], lengths: Int[Tensor, "b"]) -> Float[Tensor, "b classes"]:
        bank, config = self.model.filterbank, self.model.config
        inside = torch.arange(waveforms.shape[1], device=lengths.device) < lengths[:, None]
        found = self.logmel(waveforms.where(inside, 0))
        frames = bank.frames(lengths)
        found = found.where(torch.arange(found.shape[2], device=lengths.device) < frames[:, None, None], 0)
        found = levelled(found, frames, config.features)
        if not config.mask_padding:
            found = F.pad(found, (0, config.max_frames - found.shape[2]))
        return super().forward(bank.normalise(found), frames)


class FromSamples(Program):
    """A model of waveforms."""

    def __init__(self, model: WaveformModel):
        super().__init__()
        self.model = model

    def size(self, columns):
        length, shift = self.model.config.frame_samples
        return shift * columns + (length - shift)

    def forward(self, waveforms: Float[Tensor, "b samples"], lengths: Int[Tensor, "b"]) -> Float[Tensor, "b classes"]:
        model, config = self.model, self.model.config
        waveforms = waveforms.where(torch.arange(waveforms.shape[1], device=lengths.device) < lengths[:, None], 0)
        known = lengths if config.mask_padding or not config.attend_padding else None
        waveforms = normalised(waveforms, known) if config.normalise else waveforms
        return model.head(model.pooled(model.embed(waveforms, known)))


def export(arguments: Arguments) -> None:
    check_target(arguments.file)
    model: Any = load_model(arguments.run)
    config = model.config
    if isinstance(model, WaveformModel):
        write(arguments, FromSamples(model), None, {})
        return
    if config.embedding == "convolutions" and config.mask_padding:
        raise UserError(
            f"{arguments.run} masks padding before convolutions, which can't be exported: set mask_padding=False."
        )
    if config.speeds:
        raise UserError(
            f"{arguments.run} averages clips at several speeds, which can't be exported: train it without "
            "--model.speeds, or set speeds=()."
        )
    program = (FromWaveforms if config.features.kind == "logmel" else FromFeatures)(model)
    most = model.embed.grid[1]
    limit = most if config.positions == "learned" or not config.mask_padding else None
    write(arguments, program, limit, {"features": to_dict(config.features)}, fixed=not config.mask_padding)


def write(arguments: Arguments, program: Any, most: int | None, metadata: dict[str, Any], fixed: bool = False) -> None:
    """most: columns of the longest clip; None for no limit. fixed: every clip is as long."""
    config = program.model.config
    if fixed:
        examples, along = [program.example(batch, most) for batch in (3, 1, 5)], {}
    else:
        examples = [program.example(batch, min(columns, most or 9)) for batch, columns in ((3, 4), (1, 2), (5, 9))]
        columns = Dim("columns", min=2, max=most)
        along = {program.noise(1, program.size(2)).ndim - 1: program.size(columns)}
    batch = Dim("batch")
    axes = {program.names[0]: {0: batch, **along}, program.names[1]: {0: batch}}
    metadata = {
        **target_metadata(config),
        "sample_rate": config.sample_rate,
        **({"trim": config.trim} if config.trim is not None else {}),
        **metadata,
        "sizes": [program.size(columns) for columns in (1, 2)] if along else [program.size(most)],
    }
    output = "logits" if config.classes else "features"
    print(export_model(program.eval(), examples, axes, output, metadata, arguments.file))


if __name__ == "__main__":
    predict_command("python -m audio.export", Arguments, export, to_the_end=True)
