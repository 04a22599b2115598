"""Transformers over learned features of the waveform: wav2vec 2.0 (Baevski et al. 2020), HuBERT, WavLM, data2vec."""

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from core import Encoder, EncoderConfig, HubModel, Tokens, UserError, from_dict, init_weights, pool
from core.config import BelowOne, Natural, SettingError, Size, configclass
from core.models.targets import Predicts, TargetConfig
from core.private_torch import outside_graphs

from .clips import AudioFormat, SampleRate, Trim, Waveforms, check_clips, check_lengths, is_list
from .encoding import EncodesClips
from .waveform_embedding import WaveformEmbedding, normalised

USUAL = 10  # seconds of a clip


@configclass
class WaveformConfig(TargetConfig):
    sample_rate: SampleRate = 16_000
    """Samples a second; files of other rates are resampled."""
    trim: Trim | None = None
    """Pauses at both ends of a clip are left out when its file is read: all that is so many decibels softer than its
    loudest 10 ms, but for the last 10 ms next to the sound; None to keep them."""
    normalise: bool = True
    """Whether each clip is brought to mean 0 and variance 1."""
    mask_padding: bool = True
    """Whether nothing sees the padding of shorter clips. False: norms and positions do, as in transformers."""
    attend_padding: bool = False
    """If padding is not masked: whether attention, pooling and normalise see it, too, as in transformers without an
    attention_mask."""
    conv_dims: tuple[Size, ...] = (512,) * 7
    """Channels of each convolution of the waveform."""
    conv_kernels: tuple[Size, ...] = (10, 3, 3, 3, 3, 2, 2)
    """Widths of these convolutions."""
    conv_strides: tuple[Size, ...] = (5, 2, 2, 2, 2, 2, 2)
    """Strides of these convolutions."""
    conv_bias: bool = False
    """Whether these convolutions have a bias."""
    conv_norm: Literal["first", "all"] = "first"
    """first: after the first of these convolutions, each channel over the whole clip (GroupNorm). all: after every one,
    each frame over its channels (LayerNorm)."""
    feature_norm: bool = True
    """A norm of the features before they are projected to the width of the encoder."""
    position_layers: Size = 1
    """Number of convolutions over the frames, whose output is added to them as their positions."""
    position_kernel: Size = 128
    """Width of these convolutions."""
    position_groups: Size = 16
    """Groups of channels of these convolutions."""
    position_norm: bool = False
    """A norm, without weights, after each of these convolutions (data2vec)."""
    embedding_norm: bool = True
    """A norm after the positions; not needed in a pre-norm encoder."""
    pool: Literal["mean", "max"] = "mean"
    """How tokens become one vector."""
    head_layers: bool = False
    """Whether a learned weighted mean of the embedded tokens and the outputs of all layers is pooled, instead of the
    encoder's output."""
    head_width: Natural = 0
    """Width of a projection between pooling and head; 0 for none."""
    dropout: BelowOne = 0.0
    """Dropout of the embedded tokens."""
    head_dropout: BelowOne = 0.0
    """Dropout of the pooled vector."""
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(norm_order="post"))

    def __post_init__(self):
        count = len(self.conv_dims)
        if not count or not count == len(self.conv_kernels) == len(self.conv_strides):
            problem = f"must have a number for each of the {len(self.conv_kernels)} conv_kernels and conv_strides"
            raise SettingError(WaveformConfig, "conv_dims", problem)
        if self.encoder.dim % self.position_groups:
            problem = f"must divide encoder.dim, which is {self.encoder.dim}, not {self.position_groups}"
            raise SettingError(WaveformConfig, "position_groups", problem)

    @property
    def audio_format(self) -> AudioFormat:
        length, shift = self.frame_samples
        return AudioFormat(
            sample_rate=self.sample_rate,
            trim=self.trim,
            shortest=length,
            shift=shift,
            longest=None,
            usual=USUAL * self.sample_rate,
            count_tokens=self.count_tokens,
        )

    @property
    def frame_samples(self) -> tuple[int, int]:
        """Samples that a frame is made of, and from frame to frame."""
        length = shift = 1
        for kernel, stride in zip(self.conv_kernels, self.conv_strides, strict=True):
            length, shift = length + (kernel - 1) * shift, shift * stride
        return length, shift

    def count_tokens(self, samples: int) -> int:
        """How many tokens a clip is."""
        length, shift = self.frame_samples
        return max(samples - length, 0) // shift + 1


class LayerMean(nn.Module):
    """A learned weighted mean of several layers' outputs."""

    def __init__(self, layers: int):
        super().__init__()
        self.weight = nn.Parameter(torch.full((layers,), 1 / layers))

    def forward(self, states: Sequence[Float[Tensor, "b n d"]]) -> Float[Tensor, "b n d"]:
        weights = self.weight.softmax(dim=0)
        return sum((weight * state for weight, state in zip(weights, states, strict=True)), torch.zeros_like(states[0]))


class WaveformModel(nn.Module, EncodesClips, Predicts, HubModel, library_name="trivium", tags=["wav2vec2"]):
    """Waveforms "b samples" and their lengths, or a list of waveforms of any lengths, to logits "b classes".

    A clip gives what it gives alone, whatever it is padded with. A list is a ragged batch: its clips are packed into
    one row of tokens, without padding.
    """

    def __init__(self, config: WaveformConfig | Mapping[str, Any]):
        super().__init__()
        self.config = config = from_dict(WaveformConfig, config)
        dim = config.encoder.dim
        self.embed = WaveformEmbedding(
            dim,
            config.conv_dims,
            config.conv_kernels,
            config.conv_strides,
            conv_bias=config.conv_bias,
            conv_norm=config.conv_norm,
            feature_norm=config.feature_norm,
            position_layers=config.position_layers,
            position_kernel=config.position_kernel,
            position_groups=config.position_groups,
            position_norm=config.position_norm,
            norm=config.embedding_norm,
            eps=config.encoder.norm_eps,
            dropout=config.dropout,
            blind=config.mask_padding,
        )
        self.encoder = Encoder(config.encoder)
        self.head_layers = LayerMean(config.encoder.depth + 1) if config.head_layers else None
        self.head_projection = nn.Linear(dim, config.head_width) if config.head_width else nn.Identity()
        self.head_dropout = nn.Dropout(config.head_dropout)
        self.head = nn.Linear(config.head_width or dim, config.classes) if config.classes else nn.Identity()
        init_weights(self.head_projection)
        init_weights(self.head)

    def packs(self, waveforms: Waveforms, lengths: Int[Tensor, "b"] | None = None) -> bool:
        """Whether these become a packed row; where padding is seen, a list is a padded batch."""
        return is_list(waveforms, lengths) and self.config.mask_padding

    @outside_graphs  # it reads the clips' lengths and chooses by them: many small graphs for each
    def tokens(self, waveforms: Waveforms, lengths: Int[Tensor, "b"] | None = None) -> Tokens:
        config = self.config
        packs = self.packs(waveforms, lengths)
        if not isinstance(waveforms, Tensor):
            check_clips(waveforms, config.audio_format)
            if packs:
                clips = [normalised(clip[None], None) if config.normalise else clip[None] for clip in waveforms]
                return self.embed.row(clips)
            lengths = torch.tensor([len(waveform) for waveform in waveforms], device=waveforms[0].device)
            waveforms = pad_sequence([*waveforms], batch_first=True)
        if lengths is not None:
            check_lengths(lengths, config.audio_format)
            if (longest := int(lengths.max())) > waveforms.shape[1]:
                raise UserError(f"A clip of {longest} samples is in a batch of {waveforms.shape[1]} samples.")
            if config.mask_padding:
                waveforms = waveforms[:, :longest]
            inside = torch.arange(waveforms.shape[1], device=lengths.device) < lengths[:, None]
            waveforms = waveforms.where(inside, 0)  # padding may be NaN
            if (config.attend_padding and not config.mask_padding) or bool(inside.all()):
                lengths = None
        if config.normalise:
            waveforms = normalised(waveforms, lengths)
        return self.embed(waveforms, lengths)

    def pooled(self, tokens: Tokens) -> Float[Tensor, "b d"]:
        """One vector per clip, from its embedded tokens: the input of the head."""
        if self.head_layers is None:
            encoded = self.encoder(tokens)
        else:
            states = [tokens, *self.encoder.intermediate(tokens, range(self.config.encoder.depth))]
            encoded = tokens.with_x(self.head_layers([state.x for state in states]))
        return self.head_projection(pool(encoded, self.config.pool))

    def features(self, waveforms: Waveforms, lengths: Int[Tensor, "b"] | None = None) -> Float[Tensor, "b d"]:
        """One vector per clip: the input of the head."""
        return self.pooled(self.tokens(waveforms, lengths))

    def forward(self, waveforms: Waveforms, lengths: Int[Tensor, "b"] | None = None) -> Float[Tensor, "b classes"]:
        return self.head(self.head_dropout(self.features(waveforms, lengths)))
