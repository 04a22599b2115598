"""Images, audio and text on one encoder: as vectors in a joint space, or as one sequence of tokens."""

from collections.abc import Mapping
from dataclasses import field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from audio import FeatureConfig, Filterbank
from audio.clips import SampleRate, Trim
from audio.embeddings import SpectrogramEmbedding
from core import (
    Encoder,
    EncoderConfig,
    HubModel,
    PatchEmbedding,
    Similarity,
    Tokens,
    UserError,
    from_dict,
    init_weights,
    learned,
    pool,
)
from core.config import Count, Natural, Size, configclass
from core.encoder.pack import pack
from text.embeddings import TextEmbedding
from text.model import Length
from vision import Preprocess

from .things import MODALITIES, Ids, Images, Things, Waveforms, chosen, join

TONES = FeatureConfig(frame_length=64.0, frame_shift=16.0, f_min=600.0, f_max=1800.0, mean=0.0, std=2.0)


@configclass
class ImageConfig:
    size: Size | tuple[Size, Size] = 8
    """Pixels; (rows, columns) if not square."""
    patch_size: Size | tuple[Size, Size] = 4
    """Pixels; (rows, columns) if not square."""
    stride: Size | tuple[Size, Size] | None = 2
    """Pixels from patch to patch; the patch size if None."""
    channels: Size = 1
    """3 for colour, 1 for grey."""
    preprocess: Preprocess = field(default_factory=Preprocess)


@configclass
class AudioConfig:
    sample_rate: SampleRate = 8_000
    """Samples a second; files of other rates are resampled."""
    trim: Trim | None = None
    """Pauses at both ends of a clip that are so many decibels softer than its loudest 10 ms are left out when its file
    is read, as in AST; None to keep them."""
    n_mels: Size = 48
    """Mel bins of the spectrogram."""
    max_frames: Size = 32
    """Frames of the longest clip."""
    patch_size: Size | tuple[Size, Size] = (48, 4)
    """(mel bins, frames) of a patch, or one number for both."""
    stride: Size | tuple[Size, Size] = (48, 2)
    """(mel bins, frames) from patch to patch."""
    stem: tuple[Size, ...] = ()
    """Widths of convolutions of 3 x 3 before the patches are projected, as in AST."""
    features: FeatureConfig = TONES


@configclass
class TextConfig:
    vocab_size: Count = 261
    """Tokens in the vocabulary; set by the tokenizer."""
    max_length: Length = 64
    """Most tokens of a text, including its first and last special token."""


@configclass
class MultimodalConfig:
    towers: bool = False
    """An encoder for each modality instead of one for all."""
    joint_dim: Size = 64
    """Width of the joint space."""
    classes: Natural = 0
    """Number of classes of the fused model."""
    image: ImageConfig = ImageConfig()
    audio: AudioConfig = AudioConfig()
    text: TextConfig = TextConfig()
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(dim=64, depth=3, heads=4, mlp_dim=128))


class Embeddings(nn.Module):
    """The tokens of each modality, with a learned vector added that identifies the modality."""

    skips_weights = True  # those of a modality that a batch lacks

    def __init__(self, config: MultimodalConfig):
        super().__init__()
        dim, image, audio = config.encoder.dim, config.image, config.audio
        self.image = PatchEmbedding(
            dim,
            image_size=image.size,
            patch_size=image.patch_size,
            stride=image.stride,
            channels=image.channels,
            class_token=False,
        )
        self.filterbank = Filterbank(audio.features, audio.sample_rate, audio.n_mels)
        self.audio = SpectrogramEmbedding(
            dim,
            n_mels=audio.n_mels,
            max_frames=audio.max_frames,
            patch_size=audio.patch_size,
            stride=audio.stride,
            stem=audio.stem,
        )
        self.text = TextEmbedding(dim, vocab_size=config.text.vocab_size, max_length=config.text.max_length)
        self.types = learned(len(MODALITIES), dim)

    def spectrograms(
        self, waveforms: Float[Tensor, "b samples"], lengths: Int[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b mel frames"], Int[Tensor, "b"]]:
        spectrograms, frames = self.filterbank(waveforms, lengths)
        return self.filterbank.normalise(spectrograms), frames

    def forward(self, things: Things, shown: Bool[Tensor, "b 3"]) -> list[Tokens | None]:
        """The tokens of each modality, those of all things that have it in a packed row; None if none has it.

        shown: which thing has which modality, on the CPU.
        """
        embed = (self._images, self._clips, self._texts)
        return [
            self._typed(make(things, has), number) if has.any() else None
            for number, (make, has) in enumerate(zip(embed, shown.T, strict=True))
        ]

    def _typed(self, tokens: Tokens, number: int) -> Tokens:
        return tokens.with_x(tokens.x + self.types[number])

    def _images(self, things: Things, shown: Bool[Tensor, "b"]) -> Tokens:
        assert things.images is not None
        return pack(self.image(chosen(things.images, shown)))

    def _clips(self, things: Things, shown: Bool[Tensor, "b"]) -> Tokens:
        assert things.waveforms is not None
        clips = chosen(things.waveforms, shown)
        if isinstance(clips, Tensor):
            lengths = things.lengths
            if lengths is None:
                lengths = torch.full((len(shown),), clips.shape[1], device=clips.device)
            return pack(self.audio(*self.spectrograms(clips, chosen(lengths, shown))))
        spectrograms, frames = self.filterbank.row(clips)
        return self.audio.row(self.filterbank.normalise(spectrograms), frames)

    def _texts(self, things: Things, shown: Bool[Tensor, "b"]) -> Tokens:
        assert things.ids is not None
        real = None if things.real is None else chosen(things.real, shown)
        return pack(self.text(chosen(things.ids, shown), real))


class ContrastiveModel(nn.Module, HubModel, library_name="trivium", tags=["multimodal", "contrastive"]):
    """Things to a vector for each modality (Radford et al. 2021, section 2.3), which is 0 if the modality is absent.

    The product of two vectors is a logit.
    """

    def __init__(self, config: MultimodalConfig | Mapping[str, Any]):
        super().__init__()
        self.config = config = from_dict(MultimodalConfig, config)
        self.embed = Embeddings(config)
        self.encoders = nn.ModuleList(Encoder(config.encoder) for _ in (MODALITIES if config.towers else ("shared",)))
        self.projections = nn.ModuleList(nn.Linear(config.encoder.dim, config.joint_dim) for _ in MODALITIES)
        self.similarity = Similarity()
        init_weights(self.projections)

    def encode(self, things: Things, shown: Bool[Tensor, "b 3"]) -> list[Float[Tensor, "_ d"] | None]:
        """The mean of the encoded tokens of each thing that has a modality, for each modality; None if none has it.

        Each modality is encoded by its own encoder, or all in one row by the shared one.
        """
        embedded = self.embed(things, shown)
        if self.config.towers:
            return [
                None if tokens is None else pool(encoder(tokens), "mean")
                for encoder, tokens in zip(self.encoders, embedded, strict=True)
            ]
        if not shown.any():
            return [None] * len(MODALITIES)
        encoded = pool(self.encoders[0](pack([tokens for tokens in embedded if tokens is not None])), "mean")
        means = encoded.split(shown.sum(dim=0).tolist())
        return [mean if len(mean) else None for mean in means]

    def forward(
        self,
        images: Images | None = None,
        waveforms: Waveforms | None = None,
        lengths: Int[Tensor, "b"] | None = None,
        ids: Ids | None = None,
        real: Bool[Tensor, "b n"] | None = None,
        present: Bool[Tensor, "b 3"] | None = None,
    ) -> tuple[Float[Tensor, "things e"], Float[Tensor, "things e"], Float[Tensor, "things e"]]:
        """The fields of `Things`."""
        things = Things(images, waveforms, lengths, ids, real, present)
        shown, vectors = things.shown(), []
        for mean, project, has in zip(self.encode(things, shown), self.projections, shown.T, strict=True):
            rows = self.similarity.log_scale.new_zeros(len(shown), self.config.joint_dim)
            if mean is not None:
                found = self.similarity(project(mean))
                rows = rows.to(found.dtype).index_copy(0, has.nonzero()[:, 0].to(found.device), found)
            vectors.append(rows)
        return tuple(vectors)


class FusedModel(nn.Module, HubModel, library_name="trivium", tags=["multimodal", "fusion"]):
    """Things to logits "things classes": of each thing the tokens of the modalities that it has form one sequence,
    behind a class token, and the sequences of all things lie in one row."""

    def __init__(self, config: MultimodalConfig | Mapping[str, Any]):
        super().__init__()
        self.config = config = from_dict(MultimodalConfig, config)
        if config.towers:
            raise UserError("The fused model has one encoder for all modalities: leave out --model.towers.")
        self.embed = Embeddings(config)
        self.class_token = learned(1, 1, config.encoder.dim)
        self.encoder = Encoder(config.encoder)
        self.head = nn.Linear(config.encoder.dim, config.classes)
        init_weights(self.head)

    def tokens(self, things: Things) -> Tokens:
        shown = things.shown()
        class_tokens = pack(Tokens(self.class_token.expand(len(shown), -1, -1)))
        embedded = self.embed(things, shown)
        there = [number for number, tokens in enumerate(embedded) if tokens is not None]
        present = torch.cat([torch.ones_like(shown[:, :1]), shown[:, there]], dim=1)
        return join([class_tokens, *(tokens for tokens in embedded if tokens is not None)], present)

    def forward(
        self,
        images: Images | None = None,
        waveforms: Waveforms | None = None,
        lengths: Int[Tensor, "b"] | None = None,
        ids: Ids | None = None,
        real: Bool[Tensor, "b n"] | None = None,
        present: Bool[Tensor, "b 3"] | None = None,
    ) -> Float[Tensor, "things classes"]:
        """The fields of `Things`."""
        things = Things(images, waveforms, lengths, ids, real, present)
        return self.head(pool(self.encoder(self.tokens(things)), "cls"))
