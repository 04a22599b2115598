"""Whisper's features and its embedding by convolutions (Radford et al. 2022)."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from core import LearnedPositions, Tokens, UserError, init_weights
from core.encoder.positions import sincos_positions

from .features import FeatureConfig, InFloat, frame_samples, top_frequency

FLOOR, RANGE = 1e-10, 8.0  # the lowest energy; the powers of ten that the highest energy of a clip may be above others
AFTER = 2  # frames after a clip's last that its last token sees


class WhisperFilterbank(InFloat):
    """Waveforms "b samples" and their lengths to log mel spectrograms "b mel frames" and numbers of frames, exactly as
    transformers' WhisperFeatureExtractor makes them.

    Frames are centred. A clip is followed by silence, of which at least two frames are returned, up to max_frames; only
    a clip that ends there is mirrored at its end.

    whole: return max_frames of each clip.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, config: FeatureConfig, sample_rate: int, n_mels: int, max_frames: int, whole: bool):
        super().__init__()
        self.config, self.sample_rate, self.n_mels = config, sample_rate, n_mels
        self.max_frames, self.whole = max_frames, whole
        self.length, self.shift = frame_samples(config, sample_rate)
        self.size = int(sample_rate * config.frame_length / 1000)
        if max_frames * self.shift <= self.size // 2:
            raise UserError(f"{max_frames} frames are shorter than half a window: set a larger max_frames.")
        f_max = top_frequency(config, sample_rate)
        filters = slaney_filters(self.size // 2 + 1, config.f_min, f_max, n_mels, sample_rate)
        self.register_buffer("window", torch.hann_window(self.size), persistent=False)
        self.register_buffer("filters", filters.float(), persistent=False)

    def frames(self, samples: Int[Tensor, "b"]) -> Int[Tensor, "b"]:
        """Numbers of frames for numbers of samples."""
        return (samples - self.length).clamp(min=0) // self.shift + 1

    def forward(
        self, waveforms: Float[Tensor, "b samples"], lengths: Int[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b mel frames"], Int[Tensor, "b"]]:
        """Spectrograms that are not yet normalised."""
        counts = self.frames(lengths)
        samples = self.shift * (self.max_frames if self.whole else min(int(counts.max()) + AFTER, self.max_frames))
        waveforms = F.pad(waveforms[:, :samples], (0, max(samples - waveforms.shape[1], 0)))
        inside = torch.arange(samples, device=waveforms.device) < lengths[:, None]
        waveforms = waveforms.where(inside, 0)  # padding may be NaN
        with torch.autocast(waveforms.device.type, enabled=False):  # half precision is too coarse for the filters
            waves = torch.stft(
                waveforms.to(self.window.dtype), self.size, self.shift, window=self.window, return_complex=True
            )
            energies = (self.filters @ waves[..., :-1].abs().square()).clamp(min=FLOOR).log10()
            return energies.maximum(energies.amax(dim=(1, 2), keepdim=True) - RANGE), counts

    def normalise(self, spectrograms: Float[Tensor, "*b mel frames"]) -> Float[Tensor, "*b mel frames"]:
        return (spectrograms - self.config.mean) / (2 * self.config.std)


def slaney_filters(bins: int, f_min: float, f_max: float, n_mels: int, sample_rate: int) -> Float[Tensor, "mel bins"]:
    """Triangles of equal area on a scale that is linear up to 1000 Hz and logarithmic above (Slaney 1998), in double
    precision: torchaudio's are in single."""
    step = math.log(6.4) / 27

    def mel(hertz: float) -> float:
        return hertz * 3 / 200 if hertz < 1000 else 15 + math.log(hertz / 1000) / step

    mels = torch.linspace(mel(f_min), mel(f_max), n_mels + 2, dtype=torch.float64)
    edges = torch.where(mels < 15, mels * 200 / 3, 1000 * (step * (mels - 15)).exp())[:, None]
    hertz = torch.linspace(0, sample_rate // 2, bins, dtype=torch.float64)
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    up, down = (hertz - low) / (middle - low), (high - hertz) / (high - middle)
    return up.minimum(down).clamp(min=0) * 2 / (high - low)


class ConvolvedEmbedding(nn.Module):
    """Two convolutions over the frames of a spectrogram; a token stands at every second frame, and sees two frames to
    either side. There are no prefix tokens."""

    def __init__(
        self,
        dim: int,
        *,
        n_mels: int,
        max_frames: int,
        positions: Literal["learned", "sincos", "none"] = "learned",
        dropout: float = 0.0,
    ):
        super().__init__()
        self.patch_size, self.stride = (n_mels, 2), (n_mels, 2)
        self.grid = (1, -(-max_frames // 2))
        self.first = nn.Conv1d(n_mels, dim, 3, padding=1)
        self.second = nn.Conv1d(dim, dim, 3, stride=2, padding=1)
        self.positions = LearnedPositions(dim, self.grid, crop=True) if positions == "learned" else None
        self.sincos = positions == "sincos"
        self.dropout = nn.Dropout(dropout)
        init_weights(self)

    def forward(self, spectrograms: Float[Tensor, "b mel frames"], frames: Int[Tensor, "b"] | None = None) -> Tokens:
        """frames: the number that each clip has; None: all frames. Those behind are seen, but are no tokens."""
        columns = None if frames is None else (frames + 1) // 2
        x = F.gelu(self.second(F.gelu(self.first(spectrograms)))).mT
        x = x if columns is None else x[:, : int(columns.max())]
        grid = (1, x.shape[1])
        if self.positions is not None:
            x = x + self.positions(grid)
        elif self.sincos:
            x = x + sincos_positions(x.shape[2], grid).to(x)
        x, mask = self.dropout(x), None
        if columns is not None and not bool((columns == grid[1]).all()):
            mask = torch.arange(grid[1], device=columns.device) < columns[:, None]
        return Tokens(x, mask=mask, grid=grid)
