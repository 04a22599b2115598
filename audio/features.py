"""Waveforms become spectrograms on the device; those of a clip do not depend on its padding or its batch."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Interval
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import Strict
from torch import Tensor, nn
from torchaudio.compliance import kaldi
from torchaudio.functional import melscale_fbanks
from torchaudio.transforms import MelSpectrogram

from core import UserError
from core.config import NotNegative, Positive, Real, SettingError, configclass

EPSILON = torch.finfo(torch.float32).eps  # the lowest energy, as in Kaldi, so that the logarithm of silence is finite
LONGEST = 2**16  # samples of a frame
Milliseconds = Annotated[float, Strict(), Interval(gt=0, le=10_000)]
Decibels = Annotated[float, Strict(), Interval(gt=0, le=1000)]
Spread = Annotated[float, Strict(), Interval(ge=1e-3, le=1e6)]


@configclass
class FeatureConfig:
    """How a waveform becomes a spectrogram; saved with the model."""

    kind: Literal["logmel", "kaldi", "whisper"] = "logmel"
    """logmel: the mel spectrogram of torchaudio. kaldi: Kaldi's filterbank with pre-emphasis, as in stock AST. whisper:
    that of Whisper, for an embedding by convolutions."""
    frame_length: Milliseconds = 25.0
    """Length of a frame in milliseconds; logmel rounds its samples up to a power of two."""
    frame_shift: Milliseconds = 10.0
    """Milliseconds from frame to frame."""
    f_min: NotNegative = 20.0
    """Lowest frequency in Hz."""
    f_max: Positive | None = None
    """Highest frequency in Hz; half the sample rate if None."""
    floor: Decibels | None = None
    """Decibels below the loudest of a clip at which all that is softer is raised to, since how silent the silence of a
    recording is says nothing; None for no floor."""
    centre: bool = False
    """Subtract from each mel bin its mean over the clip (cepstral mean normalisation, Atal 1974), which removes what a
    microphone and much of what a speaker adds to all frames; `mean` is then best 0."""
    mean: Real = -4.2677393
    """Subtracted from the logarithm of the energies; the default is that of stock AST, over AudioSet."""
    std: Spread = 4.5689974
    """The difference is divided by twice this."""

    def __post_init__(self):
        if self.levels and self.kind == "whisper":
            raise SettingError(
                FeatureConfig, "kind", "must be logmel or kaldi where floor or centre is given, not whisper"
            )
        if self.f_max is not None and self.f_min >= self.f_max:
            raise SettingError(
                FeatureConfig, "f_min", f"must be less than f_max, which is {self.f_max:g}, not {self.f_min:g}"
            )
        if self.frame_shift > self.frame_length:
            raise SettingError(
                FeatureConfig,
                "frame_shift",
                f"must be at most frame_length, which is {self.frame_length:g} ms, not {self.frame_shift:g}: audio "
                "between frames would be lost",
            )

    @property
    def levels(self) -> bool:
        """Whether a clip's energies are changed by what else is in the clip."""
        return self.centre or self.floor is not None


def frame_samples(config: FeatureConfig, sample_rate: int) -> tuple[int, int]:
    """Samples that a clip of one frame has (those of whisper are centred on their first), and from frame to frame."""
    length, shift = (int(sample_rate * ms / 1000) for ms in (config.frame_length, config.frame_shift))
    if shift < 1 or length < 2:
        raise UserError(
            f"Frames of {config.frame_length:g} ms every {config.frame_shift:g} ms are too short at {sample_rate} Hz."
        )
    if length > LONGEST:
        raise UserError(
            f"Frames of {config.frame_length:g} ms at {sample_rate} Hz are {length:,} samples long: choose a shorter "
            f"frame_length, for at most {LONGEST:,}."
        )
    return {"logmel": 1 << (length - 1).bit_length(), "kaldi": length, "whisper": 1}[config.kind], shift


def top_frequency(config: FeatureConfig, sample_rate: int) -> float:
    """The upper end of the highest filter in Hz."""
    f_max = sample_rate / 2 if config.f_max is None else config.f_max
    if not config.f_min < f_max <= sample_rate / 2:
        raise UserError(
            f"Filters from {config.f_min:g} to {f_max:g} Hz at a sample rate of {sample_rate} Hz: "
            f"choose f_min and f_max between 0 and {sample_rate / 2:g} Hz."
        )
    return f_max


def check_filters(config: FeatureConfig, sample_rate: int, n_mels: int) -> None:
    """Refuse mel bins that would always be silent, because no frequency of the Fourier transform is in their filters.

    Stock checkpoints of AST have one such bin and were trained with it.
    """
    if config.kind == "whisper":
        return  # its filters are those of its checkpoints
    length, f_max = frame_samples(config, sample_rate)[0], top_frequency(config, sample_rate)
    size = 1 << (length - 1).bit_length()
    if n_mels <= size:
        with warnings.catch_warnings():  # torchaudio warns of filters that are zero
            warnings.simplefilter("ignore")
            filters = melscale_fbanks(size // 2 + 1, config.f_min, f_max, n_mels, sample_rate)
        silent = (filters.amax(dim=0) == 0).nonzero().flatten().tolist()
        if not silent:
            return
        names = f"{', '.join(map(str, silent[:5]))}{', ...' if len(silent) > 5 else ''}"
    else:  # more filters than frequencies
        names = "most"
    # Filters are equally wide on the mel scale. With `most` of them the lowest is as wide as frequencies are apart.
    width = math.log1p(sample_rate / size / (700 + config.f_min))
    most = int(2 * math.log((700 + f_max) / (700 + config.f_min)) / width - 1)
    raise UserError(
        f"Of {n_mels} mel bins some would always be silent ({names}), because a frame's frequencies are "
        f"{sample_rate / size:g} Hz apart: set {f'--model.n-mels to at most {most}, or ' if most > 0 else ''}a longer "
        "--model.features.frame-length."
    )


def levelled(
    spectrograms: Float[Tensor, "b mel frames"], frames: Int[Tensor, "b"], config: FeatureConfig
) -> Float[Tensor, "b mel frames"]:
    """What `floor` and `centre` of the configuration ask for; 0 after the last frame of each clip, as before."""
    if not config.levels:
        return spectrograms
    real = (
        torch.arange(spectrograms.shape[2], device=spectrograms.device) < frames.to(spectrograms.device)[:, None, None]
    )
    if config.floor is not None:
        loudest = spectrograms.where(real, -torch.inf).amax(dim=(1, 2), keepdim=True)
        spectrograms = spectrograms.maximum(loudest - config.floor * math.log(10) / 10)
    if config.centre:
        spectrograms = spectrograms - spectrograms.where(real, 0).sum(dim=2, keepdim=True) / real.sum(
            dim=2, keepdim=True
        )
    return spectrograms.where(real, 0)


class InFloat(nn.Module):
    """A module whose buffers stay in single precision, or double, when a model is brought to half precision."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        def kept(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            return tensor.to(found.device) if found.dtype in (torch.float16, torch.bfloat16) else found

        return super()._apply(kept, recurse)


class Filterbank(InFloat):
    """Waveforms "b samples" and their lengths to log mel spectrograms "b mel frames" and numbers of frames.

    Frames lie wholly inside their clip, so that they do not depend on what follows it.
    """

    def __init__(self, config: FeatureConfig, sample_rate: int, n_mels: int):
        super().__init__()
        self.config, self.sample_rate, self.n_mels = config, sample_rate, n_mels
        f_max = top_frequency(config, sample_rate)
        if n_mels < 1:
            raise UserError(f"A spectrogram needs at least 1 mel bin, not {n_mels}.")
        self.length, self.shift = frame_samples(config, sample_rate)
        if config.kind == "logmel":
            self.mel = MelSpectrogram(
                sample_rate,
                n_fft=self.length,
                hop_length=self.shift,
                f_min=config.f_min,
                f_max=f_max,
                n_mels=n_mels,
                center=False,
            )
            for module in self.mel.modules():  # computed from the config, not saved in checkpoints
                for name, buffer in list(module.named_buffers(recurse=False)):
                    module.register_buffer(name, buffer, persistent=False)

    def frames(self, samples: Int[Tensor, "b"]) -> Int[Tensor, "b"]:
        """Numbers of frames for numbers of samples; at least 1, because shorter clips are padded with silence."""
        return (samples - self.length).clamp(min=0) // self.shift + 1

    def forward(
        self, waveforms: Float[Tensor, "b samples"], lengths: Int[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b mel frames"], Int[Tensor, "b"]]:
        """Spectrograms that are not yet normalised; 0 after the last frame of each clip."""
        counts = self.frames(lengths)
        samples = self.length + (int(counts.max()) - 1) * self.shift
        full = int(lengths.min()) >= samples  # then there is no padding
        waveforms = waveforms[:, :samples]
        if not full:
            inside = torch.arange(samples, device=waveforms.device) < lengths[:, None]
            waveforms = F.pad(waveforms, (0, samples - waveforms.shape[1])).masked_fill_(
                ~inside, 0
            )  # padding may be NaN
        with torch.autocast(waveforms.device.type, enabled=False):  # half precision is too coarse for the filters
            energies = (
                self._kaldi(waveforms.float()) if self.config.kind == "kaldi" else self._logmel(waveforms.float())
            )
        if not full:
            real = torch.arange(energies.shape[-1], device=energies.device) < counts[:, None]
            energies = energies.masked_fill_(~real[:, None], 0)
        return levelled(energies, counts, self.config), counts

    def row(self, waveforms: Sequence[Float[Tensor, "_"]]) -> tuple[Float[Tensor, "mel frames"], Int[Tensor, "clips"]]:
        """Spectrograms of clips of any lengths, one behind the other, and on the CPU their numbers of frames; not yet
        normalised. No clip is padded, but those shorter than a frame."""
        samples = torch.tensor([len(waveform) for waveform in waveforms])
        counts = self.frames(samples)
        device = waveforms[0].device
        with torch.autocast(device.type, enabled=False):
            if self.config.kind == "kaldi" and device.type == "cpu":
                padded = (F.pad(w.float(), (0, max(self.length - len(w), 0))) for w in waveforms)
                row = torch.cat([self._kaldi_frames(waveform) for waveform in padded]).mT
                return self._levelled_row(row, counts), counts
            # One spectrogram of all, in which each clip is a whole number of shifts long. The silence between two clips
            # is as long as a frame, so that none spans both: even a dropped one would carry NaN into the gradients.
            shifts = -(-(samples.clamp(min=self.length) + self.length - 1) // self.shift)
            sizes = (shifts * self.shift - samples).tolist()
            row = torch.cat([F.pad(w.float(), (0, size)) for w, size in zip(waveforms, sizes, strict=True)])
            energies = self._kaldi_frames(row).mT if self.config.kind == "kaldi" else self._logmel(row[None])[0]
        clip = torch.repeat_interleave(torch.arange(len(samples)), counts)
        own = torch.arange(len(clip)) + (shifts.cumsum(0) - shifts - counts.cumsum(0) + counts)[clip]
        return self._levelled_row(energies.index_select(1, own.to(device)), counts), counts

    def _levelled_row(
        self, row: Float[Tensor, "mel frames"], counts: Int[Tensor, "clips"]
    ) -> Float[Tensor, "mel frames"]:
        """`levelled` of clips one behind the other."""
        if not self.config.levels:
            return row
        parts = row.split(counts.tolist(), dim=1)
        own = (levelled(part[None], count[None], self.config) for part, count in zip(parts, counts, strict=True))
        return torch.cat([part[0] for part in own], dim=1)

    def normalise(self, spectrograms: Float[Tensor, "*b mel frames"]) -> Float[Tensor, "*b mel frames"]:
        return (spectrograms - self.config.mean).div_(2 * self.config.std)

    def _logmel(self, waveforms: Float[Tensor, "b samples"]) -> Float[Tensor, "b mel frames"]:
        return self.mel(waveforms).clamp(min=EPSILON).log()

    def _kaldi(self, waveforms: Float[Tensor, "b samples"]) -> Float[Tensor, "b mel frames"]:
        # torchaudio's function takes one waveform. On a CPU the clips are processed one by one, which suits its cache.
        # On other devices they are joined as in `row`.
        if waveforms.device.type == "cpu":
            return torch.stack([self._kaldi_frames(waveform) for waveform in waveforms]).mT
        count = (waveforms.shape[1] - self.length) // self.shift + 1
        shifts = -(-(waveforms.shape[1] + self.length - 1) // self.shift)
        frames = self._kaldi_frames(F.pad(waveforms, (0, shifts * self.shift - waveforms.shape[1])).flatten())
        frames = F.pad(frames, (0, 0, 0, len(waveforms) * shifts - len(frames)))
        return rearrange(frames, "(b frames) mel -> b mel frames", b=len(waveforms))[..., :count]

    def _kaldi_frames(self, waveform: Float[Tensor, "samples"]) -> Float[Tensor, "frames mel"]:
        return kaldi.fbank(
            waveform[None],
            sample_frequency=self.sample_rate,
            frame_length=self.config.frame_length,
            frame_shift=self.config.frame_shift,
            low_freq=self.config.f_min,
            high_freq=self.config.f_max or 0.0,
            num_mel_bins=self.n_mels,
            window_type="hanning",
        )
