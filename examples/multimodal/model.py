"""Images, audio and text on one encoder: as vectors in a joint space, or as one sequence of tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from audio import FeatureConfig, Filterbank
from audio.embeddings import SpectrogramEmbedding
from audio.model import SampleRate
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
from text.embeddings import TextEmbedding
from text.model import Length
from vision import Preprocess

MODALITIES = ("image", "audio", "text")
TONES = FeatureConfig(frame_length=64.0, frame_shift=16.0, f_min=600.0, f_max=1800.0, mean=0.0, std=2.0)


class Things(NamedTuple):
    """A batch of things in up to three modalities; the inputs of a modality that none of them has are None."""

    images: Float[Tensor, "b c h w"] | None
    waveforms: Float[Tensor, "b samples"] | None
    lengths: Int[Tensor, "b"] | None
    """Samples of each waveform."""
    ids: Int[Tensor, "b n"] | None
    real: Bool[Tensor, "b n"] | None
    """Padding mask: which token ids are real tokens."""
    present: Bool[Tensor, "b 3"]
    """Which of image, audio and text each thing has; inputs that are not present are ignored."""


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
    n_mels: Size = 48
    """Mel bins of the spectrogram."""
    max_frames: Size = 32
    """Frames of the longest clip."""
    patch_size: Size | tuple[Size, Size] = (48, 4)
    """(mel bins, frames) of a patch, or one number for both."""
    stride: Size | tuple[Size, Size] = (48, 2)
    """(mel bins, frames) from patch to patch."""
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
        )
        self.text = TextEmbedding(dim, vocab_size=config.text.vocab_size, max_length=config.text.max_length)
        self.types = learned(len(MODALITIES), dim)

    def spectrograms(
        self, waveforms: Float[Tensor, "b samples"], lengths: Int[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b mel frames"], Int[Tensor, "b"]]:
        spectrograms, frames = self.filterbank(waveforms, lengths)
        return self.filterbank.normalise(spectrograms), frames

    def forward(self, things: Things) -> list[Tokens | None]:
        """The tokens of each modality; None for a modality that no thing has."""
        embedded: list[Tokens | None] = [None, None, None]
        if things.images is not None:
            embedded[0] = self.image(things.images)
        if things.waveforms is not None and things.lengths is not None:
            embedded[1] = self.audio(*self.spectrograms(things.waveforms, things.lengths))
        if things.ids is not None:
            embedded[2] = self.text(things.ids, things.real)
        return [
            None if tokens is None else tokens.with_x(tokens.x + kind)
            for tokens, kind in zip(embedded, self.types, strict=True)
        ]


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

    def encode(self, things: Things) -> list[Tokens | None]:
        """Each modality by its own encoder, or one after the other by the shared encoder."""
        encoders = self.encoders if self.config.towers else [*self.encoders] * len(MODALITIES)
        return [
            None if tokens is None else encoder(tokens)
            for encoder, tokens in zip(encoders, self.embed(things), strict=True)
        ]

    def forward(
        self,
        images: Float[Tensor, "b c h w"] | None,
        waveforms: Float[Tensor, "b samples"] | None,
        lengths: Int[Tensor, "b"] | None,
        ids: Int[Tensor, "b n"] | None,
        real: Bool[Tensor, "b n"] | None,
        present: Bool[Tensor, "b 3"],
    ) -> tuple[Float[Tensor, "b e"], Float[Tensor, "b e"], Float[Tensor, "b e"]]:
        things = Things(images, waveforms, lengths, ids, real, present)
        vectors = []
        for encoded, project, shown in zip(self.encode(things), self.projections, present.T, strict=True):
            if encoded is None:
                vectors.append(self.similarity.log_scale.new_zeros(len(present), self.config.joint_dim))
            else:
                vectors.append(self.similarity(project(pool(encoded, "mean"))).where(shown[:, None], 0))
        return tuple(vectors)


class FusedModel(nn.Module, HubModel, library_name="trivium", tags=["multimodal", "fusion"]):
    """Things to logits "b classes": the tokens of all modalities that are present form one sequence."""

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
        class_token = Tokens(self.class_token.expand(len(things.present), -1, -1))
        always = torch.ones_like(things.present[:, :1])
        shown = [
            (tokens, things.present[:, number])
            for number, tokens in enumerate(self.embed(things))
            if tokens is not None
        ]
        present = torch.cat([always, *(column[:, None] for _, column in shown)], dim=1)
        return join([class_token, *(tokens for tokens, _ in shown)], present)

    def forward(
        self,
        images: Float[Tensor, "b c h w"] | None,
        waveforms: Float[Tensor, "b samples"] | None,
        lengths: Int[Tensor, "b"] | None,
        ids: Int[Tensor, "b n"] | None,
        real: Bool[Tensor, "b n"] | None,
        present: Bool[Tensor, "b 3"],
    ) -> Float[Tensor, "b classes"]:
        things = Things(images, waveforms, lengths, ids, real, present)
        return self.head(pool(self.encoder(self.tokens(things)), "cls"))


def join(parts: Sequence[Tokens], present: Bool[Tensor, "b parts"]) -> Tokens:
    """Several sequences as one, without a grid or prefix tokens; parts that are not present are masked."""
    masks = []
    for tokens, shown in zip(parts, present.T, strict=True):
        real = torch.ones_like(tokens.x[..., 0], dtype=torch.bool) if tokens.mask is None else tokens.mask
        masks.append(real & shown[:, None])
    return Tokens(torch.cat([tokens.x for tokens in parts], dim=1), mask=torch.cat(masks, dim=1))
