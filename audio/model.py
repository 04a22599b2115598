"""The Audio Spectrogram Transformer (Gong et al. 2021), for clips of any length."""

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Interval
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchaudio.transforms import FrequencyMasking

from core import (
    AttentionPool,
    Encoder,
    EncoderConfig,
    HubModel,
    Pair,
    Pool,
    Tokens,
    UserError,
    from_dict,
    init_weights,
    make_norm,
    pair,
    pool,
)
from core.config import BelowOne, Natural, SettingError, Size, UpToOne, Whole, configclass
from core.encoder.pack import pack
from core.models.targets import Predicts, TargetConfig
from core.models.views import ONE_VIEW
from core.private_torch import outside_graphs

from .clips import AudioFormat, SampleRate, Trim, Waveforms, check_clips, check_lengths, is_list
from .embeddings import SpectrogramEmbedding, spectrogram_grid
from .encoding import EncodesClips
from .features import FeatureConfig, Filterbank, frame_samples, top_frequency
from .speeds import at_speed
from .whisper import ConvolvedEmbedding, WhisperFilterbank

Speed = Annotated[Whole, Interval(ge=50, le=200)]


@configclass
class ASTConfig(TargetConfig):
    sample_rate: SampleRate = 16_000
    """Samples a second; files of other rates are resampled."""
    trim: Trim | None = None
    """Pauses at both ends of a clip are left out when its file is read: all that is so many decibels softer than its
    loudest 10 ms, but for the last 10 ms next to the sound; None to keep them."""
    n_mels: Size = 96
    """Mel bins of the spectrogram."""
    max_frames: Size = 1024
    """Frames of the longest clip; the learned positions reach no further."""
    mask_padding: bool = True
    """Whether the padding of shorter clips is masked. False: every clip is padded to max_frames, and the padding is
    attended to, as in the reference implementation."""
    embedding: Literal["patches", "convolutions"] = "patches"
    """How a spectrogram becomes tokens: patches, or two convolutions over time of all mel bins, as in Whisper, after
    which each token stands for two frames."""
    patch_size: Size | tuple[Size, Size] = 16
    """(mel bins, frames) of a patch, or one number for both; convolutions have none."""
    stride: Size | tuple[Size, Size] = 10
    """(mel bins, frames) from patch to patch; less than the patch size makes patches overlap."""
    stem: tuple[Size, ...] = ()
    """Widths of convolutions of 3 x 3 before the patches are projected (Xiao et al. 2021); the first one, and each that
    is wider than the one before it, halves the spectrogram. None by default."""
    class_token: bool = True
    """A learned token that can be pooled; convolutions have none."""
    registers: Natural = 1
    """Number of further learned tokens; AST has one, the distillation token, convolutions have none."""
    classes: Natural = 527
    """Number of classes; 0 for no head (the model returns features), 1 to predict a number."""
    positions: Literal["learned", "sincos", "none"] = "learned"
    """Positions added to the patches."""
    pool: Pool = "prefix"
    """How tokens become one vector; prefix: the mean of the class token and the registers (the distillation token)."""
    head_norm: bool = True
    """A norm after pooling."""
    head_norm_eps: UpToOne | None = None
    """Added to the variance by this norm; the encoder's norm_eps if None."""
    dropout: BelowOne = 0.0
    """Dropout of the embedded tokens."""
    head_dropout: BelowOne = 0.0
    """Dropout of the pooled vector."""
    freq_mask: Natural = 0
    """Most mel bins in the band that is masked in each training clip (SpecAugment); 0 for none."""
    time_mask: Natural = 0
    """Most frames in the stretch that is masked in each training clip (SpecAugment), never more than half of the clip;
    0 for none."""
    speeds: tuple[Speed, ...] = ()
    """In evaluation and prediction, logits are the mean of those of a clip and of the clip at these speeds in percent
    (test-time augmentation), each of which takes as much time as the clip."""
    features: FeatureConfig = field(default_factory=FeatureConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    def __post_init__(self):
        frame_samples(self.features, self.sample_rate)
        top_frequency(self.features, self.sample_rate)
        spectrogram_grid(self.n_mels, self.max_frames, *self.cut)
        if (self.embedding == "convolutions") != (self.features.kind == "whisper"):
            raise SettingError(
                ASTConfig, "embedding", "must be convolutions where features.kind is whisper, and nowhere else"
            )
        if self.embedding == "convolutions" and (self.class_token or self.registers or self.stem):
            raise SettingError(ASTConfig, "embedding", "of convolutions needs class_token=False, registers=0, stem=()")
        if self.pool in ("cls_mean", "each_prefix"):
            raise SettingError(ASTConfig, "pool", f"must be cls, prefix, mean, max or attention, not {self.pool}")
        if not self.class_token and self.pool in ("cls", "prefix", "cls_mean", "each_prefix"):
            raise SettingError(
                ASTConfig, "pool", f"must be mean, max or attention without a class token, not {self.pool}"
            )
        for name, value, limit in (
            ("freq_mask", self.freq_mask, "n_mels"),
            ("time_mask", self.time_mask, "max_frames"),
        ):
            if value > getattr(self, limit):
                raise SettingError(
                    ASTConfig, name, f"must be at most {limit}, which is {getattr(self, limit)}, not {value}"
                )

    @property
    def cut(self) -> tuple[Pair, Pair]:
        """(mel bins, frames) of a patch, and from patch to patch; those of convolutions are all bins of every second
        frame."""
        if self.embedding == "convolutions":
            return (self.n_mels, 1), (self.n_mels, 2)
        return self.patch_size, self.stride

    @property
    def audio_format(self) -> AudioFormat:
        length, shift = frame_samples(self.features, self.sample_rate)
        longest = None if self.positions != "learned" and self.mask_padding else length + self.max_frames * shift - 1
        return AudioFormat(
            sample_rate=self.sample_rate,
            trim=self.trim,
            shortest=length,
            shift=shift,
            longest=longest,
            usual=shift * self.max_frames,
            count_tokens=self.count_tokens,
        )

    def count_tokens(self, samples: int) -> int:
        """How many tokens a clip is, class token and registers included."""
        length, shift = frame_samples(self.features, self.sample_rate)
        frames = max(samples - length, 0) // shift + 1 if self.mask_padding else self.max_frames
        patch, stride = self.cut
        rows, _ = spectrogram_grid(self.n_mels, self.max_frames, patch, stride)
        body = rows * (max(frames - pair(patch)[1], 0) // pair(stride)[1] + 1)
        return int(self.class_token) + self.registers + body


class AST(nn.Module, EncodesClips, Predicts, HubModel, library_name="trivium", tags=["audio-spectrogram-transformer"]):
    """Waveforms "b samples" and their lengths, or a list of waveforms of any lengths, to logits "b classes".

    A list is a ragged batch: its clips are packed into one row of tokens, without padding, and each gets what it gets
    alone.
    """

    def __init__(self, config: ASTConfig | Mapping[str, Any]):
        super().__init__()
        self.config = config = from_dict(ASTConfig, config)
        if config.encoder.rotary_unit:
            # The grid is as wide as the longest clip of the batch, so that padding would change all positions.
            raise UserError("Clips differ in length, so rotary positions must not be scaled: set rotary_unit=False.")
        dim = config.encoder.dim
        sounds = (config.features, config.sample_rate, config.n_mels)
        common = {"n_mels": config.n_mels, "max_frames": config.max_frames, "positions": config.positions}
        if config.embedding == "convolutions":
            self.filterbank = WhisperFilterbank(*sounds, config.max_frames, whole=not config.mask_padding)
            self.embed = ConvolvedEmbedding(dim, **common, dropout=config.dropout)
        else:
            self.filterbank = Filterbank(*sounds)
            self.embed = SpectrogramEmbedding(
                dim,
                **common,
                patch_size=config.patch_size,
                stride=config.stride,
                class_token=config.class_token,
                registers=config.registers,
                stem=config.stem,
                dropout=config.dropout,
            )
        self.freq_mask = FrequencyMasking(config.freq_mask, iid_masks=True)
        self.encoder = Encoder(config.encoder)
        self.attention_pool = AttentionPool(config.encoder) if config.pool == "attention" else None
        eps = config.encoder.norm_eps if config.head_norm_eps is None else config.head_norm_eps
        self.head_norm = make_norm(replace(config.encoder, norm_eps=eps), dim) if config.head_norm else nn.Identity()
        self.head_dropout = nn.Dropout(config.head_dropout)
        self.head = nn.Linear(dim, config.classes) if config.classes else nn.Identity()
        init_weights(self.head)

    def spectrograms(
        self, waveforms: Waveforms, lengths: Int[Tensor, "b"] | None = None
    ) -> tuple[Float[Tensor, "b mel frames"], Int[Tensor, "b"] | None]:
        """Normalised spectrograms, in the precision of the weights, and each clip's number of frames (None: all frames
        are attended to); those of a list are padded to the longest."""
        config = self.config
        if not isinstance(waveforms, Tensor):
            check_clips(waveforms, config.audio_format)
            lengths = torch.tensor([len(waveform) for waveform in waveforms], device=waveforms[0].device)
            waveforms = pad_sequence([*waveforms], batch_first=True)
        if lengths is None:
            lengths = torch.full((len(waveforms),), waveforms.shape[1], device=waveforms.device)
        check_lengths(lengths, config.audio_format)
        spectrograms, frames = self.filterbank(waveforms, lengths)
        if not config.mask_padding:  # Whisper's filterbank has padded them with silence
            spectrograms = F.pad(spectrograms, (0, config.max_frames - spectrograms.shape[2]))
            frames = None
        spectrograms = self.filterbank.normalise(spectrograms)
        return spectrograms.to(next(self.parameters()).dtype), frames

    def row(self, waveforms: Sequence[Float[Tensor, "_"]]) -> tuple[Float[Tensor, "mel frames"], Int[Tensor, "clips"]]:
        """Normalised spectrograms of clips, one behind the other, and on the CPU their numbers of frames."""
        check_clips(waveforms, self.config.audio_format)
        assert isinstance(self.filterbank, Filterbank)
        spectrograms, frames = self.filterbank.row(waveforms)
        return self.filterbank.normalise(spectrograms).to(next(self.parameters()).dtype), frames

    def packs(self, waveforms: Waveforms, lengths: Int[Tensor, "b"] | None = None) -> bool:
        """Whether these become a packed row; if padding is attended to, a list is a batch of equally long clips."""
        return is_list(waveforms, lengths) and self.config.mask_padding

    @outside_graphs  # torch's CPU compiler (2.14.1) fails at convolutions whose sizes follow those of the clips
    def tokens(self, waveforms: Waveforms, lengths: Int[Tensor, "b"] | None = None) -> Tokens:
        packs = self.packs(waveforms, lengths)
        if packs and isinstance(self.embed, SpectrogramEmbedding):
            assert not isinstance(waveforms, Tensor)
            row, frames = self.row(waveforms)
            return self.embed.row(self.augmented_row(row, frames) if self.training else row, frames)
        spectrograms, frames = self.spectrograms(waveforms, lengths)
        tokens = self.embed(self.augmented(spectrograms, frames) if self.training else spectrograms, frames)
        return pack(tokens) if packs else tokens

    def augmented(
        self, spectrograms: Float[Tensor, "b mel frames"], frames: Int[Tensor, "b"] | None
    ) -> Float[Tensor, "b mel frames"]:
        """Each clip with a band of frequencies and a stretch of time set to 0 (Park et al. 2019, SpecAugment)."""
        if self.config.freq_mask:
            spectrograms = self.freq_mask(spectrograms[:, None])[:, 0]
        if self.config.time_mask:
            count, device = spectrograms.shape[2], spectrograms.device
            start, end = self.stretches(
                torch.full((len(spectrograms),), count, device=device) if frames is None else frames
            )
            at = torch.arange(count, device=device)
            masked = (at >= start[:, None]) & (at < end[:, None])
            spectrograms = spectrograms.masked_fill(masked[:, None], 0)
        return spectrograms

    def augmented_row(
        self, spectrograms: Float[Tensor, "mel frames"], frames: Int[Tensor, "clips"]
    ) -> Float[Tensor, "mel frames"]:
        """`augmented` of clips one behind the other; the same random numbers mask the same."""
        device, clip = spectrograms.device, torch.repeat_interleave(torch.arange(len(frames)), frames)
        at = (torch.arange(len(clip)) - (frames.cumsum(0) - frames)[clip]).to(device)
        clip = clip.to(device)
        if self.config.freq_mask:
            bins = self.freq_mask(spectrograms.new_ones(len(frames), 1, len(spectrograms), 1))[:, 0, :, 0]
            spectrograms = spectrograms.masked_fill(bins.T[:, clip] == 0, 0)
        if self.config.time_mask:
            start, end = self.stretches(frames.to(device))
            spectrograms = spectrograms.masked_fill((at >= start[clip]) & (at < end[clip]), 0)
        return spectrograms

    def stretches(self, frames: Int[Tensor, "b"]) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """The start and the end of a random stretch of each clip (TimeMasking of torchaudio ignores where a clip of a
        batch ends)."""
        width = torch.rand(len(frames), device=frames.device) * (frames // 2).clamp(max=self.config.time_mask)
        start = (torch.rand(len(frames), device=frames.device) * (frames - width)).floor()
        return start, start + width.floor()

    def patches(
        self, waveforms: Waveforms, lengths: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b n p"] | Float[Tensor, "1 n p"]:
        """The spectrogram values in each patch; "1 n p" of a list, as its tokens lie."""
        if not isinstance(self.embed, SpectrogramEmbedding):
            raise UserError("Masked autoencoding needs patches: a token of convolutions sees its neighbours' frames.")
        if self.packs(waveforms, lengths):
            assert not isinstance(waveforms, Tensor)
            return self.embed.cut_row(*self.row(waveforms))[None]
        spectrograms, _ = self.embed.cut(*self.spectrograms(waveforms, lengths))
        return F.unfold(spectrograms[:, None], self.embed.patch_size, stride=self.embed.stride).mT

    def pooled(self, encoded: Tokens) -> Float[Tensor, "b d"]:
        """One vector per clip, from its encoded tokens: the input of the head."""
        return self.head_norm(self.attention_pool(encoded) if self.attention_pool else pool(encoded, self.config.pool))

    def features(self, waveforms: Waveforms, lengths: Int[Tensor, "b"] | None = None) -> Float[Tensor, "b d"]:
        """One vector per clip: the input of the head."""
        return self.pooled(self.encode(waveforms, lengths))

    def forward(self, waveforms: Waveforms, lengths: Int[Tensor, "b"] | None = None) -> Float[Tensor, "b classes"]:
        logits = self.head(self.head_dropout(self.features(waveforms, lengths)))
        if self.training or not self.config.speeds or ONE_VIEW.get() is self:
            return logits
        return self.averaged(logits, waveforms, lengths)

    @outside_graphs  # clips of any lengths would be compiled again and again
    def averaged(
        self, logits: Float[Tensor, "b classes"], waveforms: Waveforms, lengths: Int[Tensor, "b"] | None
    ) -> Float[Tensor, "b classes"]:
        """The mean of the logits of clips and of those at other speeds."""
        form = self.config.audio_format
        changed = (at_speed(waveforms, lengths, percent, form) for percent in self.config.speeds)
        return torch.stack([logits, *(self.head(self.features(clips)) for clips in changed)]).mean(dim=0)
