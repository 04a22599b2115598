"""From waveforms to log mel energies, on the device, so that a clip alone, padded or in any batch has the same ones."""

import math
import warnings
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

EPSILON = torch.finfo(torch.float32).eps  # the least energy, as in Kaldi: silence is finite
LONGEST = 2**16  # samples of a frame
Milliseconds = Annotated[float, Strict(), Interval(gt=0, le=10_000)]
Spread = Annotated[float, Strict(), Interval(ge=1e-3, le=1e6)]


@configclass
class FeatureConfig:
    """How a waveform becomes a spectrogram; saved with the model."""

    kind: Literal["logmel", "kaldi"] = "logmel"
    """logmel: torchaudio's mel spectrogram. kaldi: Kaldi's filterbank, with pre-emphasis, as stock AST has it."""
    frame_length: Milliseconds = 25.0
    """Milliseconds of sound that a frame is made from; logmel rounds the samples up to a power of two."""
    frame_shift: Milliseconds = 10.0
    """Milliseconds from frame to frame."""
    f_min: NotNegative = 20.0
    """Lowest frequency in Hz."""
    f_max: Positive | None = None
    """Highest frequency in Hz; half the sample rate if None."""
    mean: Real = -4.2677393
    """Subtracted from the logarithm of the energies (stock AST's, over AudioSet)."""
    std: Spread = 4.5689974
    """They are then divided by twice this."""

    def __post_init__(self):
        if self.f_max is not None and self.f_min >= self.f_max:
            raise SettingError(
                FeatureConfig, "f_min", f"must be less than f_max, which is {self.f_max:g}, not {self.f_min:g}"
            )
        if self.frame_shift > self.frame_length:
            raise SettingError(
                FeatureConfig,
                "frame_shift",
                f"must be at most frame_length, which is {self.frame_length:g} ms, not {self.frame_shift:g}: what is "
                "between frames would not be heard",
            )


def frame_samples(config: FeatureConfig, sample_rate: int) -> tuple[int, int]:
    """Samples of a frame, and from frame to frame."""
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
    return (1 << (length - 1).bit_length() if config.kind == "logmel" else length), shift


def top_frequency(config: FeatureConfig, sample_rate: int) -> float:
    """Where the highest filter ends, in Hz."""
    f_max = sample_rate / 2 if config.f_max is None else config.f_max
    if not config.f_min < f_max <= sample_rate / 2:
        raise UserError(
            f"Filters from {config.f_min:g} to {f_max:g} Hz at a sample rate of {sample_rate} Hz: "
            f"choose f_min and f_max between 0 and {sample_rate / 2:g} Hz."
        )
    return f_max


def check_filters(config: FeatureConfig, sample_rate: int, n_mels: int) -> None:
    """Refuse mel bins that would always be silent: no frequency of the Fourier transform falls into their filters.

    Stock checkpoints of AST have one such bin, and learnt to live with it.
    """
    length, f_max = frame_samples(config, sample_rate)[0], top_frequency(config, sample_rate)
    size = 1 << (length - 1).bit_length()
    if n_mels <= size:
        with warnings.catch_warnings():  # that some are zero
            warnings.simplefilter("ignore")
            filters = melscale_fbanks(size // 2 + 1, config.f_min, f_max, n_mels, sample_rate)
        dead = (filters.amax(dim=0) == 0).nonzero().flatten().tolist()
        if not dead:
            return
        names = f"{', '.join(map(str, dead[:5]))}{', ...' if len(dead) > 5 else ''}"
    else:  # more than two for each frequency
        names = "most"
    # All filters are equally wide on the mel scale: with this many the lowest is as wide as frequencies are apart.
    width = math.log1p(sample_rate / size / (700 + config.f_min))
    most = int(2 * math.log((700 + f_max) / (700 + config.f_min)) / width - 1)
    raise UserError(
        f"Of {n_mels} mel bins some would always be silent ({names}), because a frame's frequencies are "
        f"{sample_rate / size:g} Hz apart: set {f'--model.n-mels to at most {most}, or ' if most > 0 else ''}a longer "
        "--model.features.frame-length."
    )


class Filterbank(nn.Module):
    """Waveforms "b samples" of some lengths to log mel energies "b mel frames" and each clip's number of frames.

    A frame lies wholly inside its clip: there is no padding at the edges that would depend on what stands beside.
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
            for module in self.mel.modules():  # made from the config: no part of a checkpoint
                for name, buffer in list(module.named_buffers(recurse=False)):
                    module.register_buffer(name, buffer, persistent=False)

    def frames(self, samples: Int[Tensor, "b"]) -> Int[Tensor, "b"]:
        """How many frames clips of so many samples have; at least 1, for a shorter clip is followed by silence."""
        return (samples - self.length).clamp(min=0) // self.shift + 1

    def forward(
        self, waveforms: Float[Tensor, "b samples"], lengths: Int[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b mel frames"], Int[Tensor, "b"]]:
        """Raw energies: `normalise` comes after any padding. Past its own frames a clip has 0."""
        counts = self.frames(lengths)
        samples = self.length + (int(counts.max()) - 1) * self.shift
        full = int(lengths.min()) >= samples  # then there is no padding to silence
        waveforms = waveforms[:, :samples]
        if not full:
            inside = torch.arange(samples, device=waveforms.device) < lengths[:, None]
            waveforms = F.pad(waveforms, (0, samples - waveforms.shape[1])).masked_fill_(~inside, 0)  # NaN stops here
        with torch.autocast(waveforms.device.type, enabled=False):  # half precision would blur the filters
            found = self._kaldi(waveforms.float()) if self.config.kind == "kaldi" else self._logmel(waveforms.float())
        if not full:
            real = torch.arange(found.shape[-1], device=found.device) < counts[:, None]
            found = found.masked_fill_(~real[:, None], 0)
        return found, counts

    def normalise(self, features: Float[Tensor, "b mel frames"]) -> Float[Tensor, "b mel frames"]:
        return (features - self.config.mean).div_(2 * self.config.std)

    def _logmel(self, waveforms: Float[Tensor, "b samples"]) -> Float[Tensor, "b mel frames"]:
        return self.mel(waveforms).clamp(min=EPSILON).log()

    def _kaldi(self, waveforms: Float[Tensor, "b samples"]) -> Float[Tensor, "b mel frames"]:
        # Kaldi's function takes one waveform. One by one they stay in a CPU's cache; on other devices they stand
        # end to end, each a whole number of shifts long, and the frames that span two clips are dropped.
        if waveforms.device.type == "cpu":
            return torch.stack([self._kaldi_frames(waveform) for waveform in waveforms]).mT
        count = (waveforms.shape[1] - self.length) // self.shift + 1
        shifts = -(-waveforms.shape[1] // self.shift)
        found = self._kaldi_frames(F.pad(waveforms, (0, shifts * self.shift - waveforms.shape[1])).flatten())
        found = F.pad(found, (0, 0, 0, len(waveforms) * shifts - len(found)))
        return rearrange(found, "(b frames) mel -> b mel frames", b=len(waveforms))[..., :count]

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
