"""Samples with an image, a clip and a word, and their batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from audio import ASTConfig
from audio.clips import AudioFormat
from core import Batch, UserError
from core.config import BelowOne, configclass
from core.data import DataSplits
from core.data.dataset import NamedSamples, SplitFractions
from text import Tokenizer
from text.tokenizer import TokenizerConfig
from vision.model import ImageFormat

from .model import MultimodalConfig
from .things import MODALITIES, Things

BYTES = TokenizerConfig(kind="bpe", vocab_size=261, lowercase=False)  # 256 and the special tokens: no merges


class Formats(NamedTuple):
    """What a model takes of each modality."""

    image: ImageFormat
    audio: AudioFormat
    max_length: int
    """Most tokens of a text, with those that frame it."""


@configclass
class MultimodalDataset(SplitFractions):
    """What the data sets of this example share."""

    modalities: tuple[Literal["image", "audio", "text"], ...] = MODALITIES
    """The modalities that the model is shown."""
    modality_dropout: BelowOne = 0.0
    """Share of training samples that lack a modality, of each; one is always kept."""
    tokenizer: TokenizerConfig = BYTES
    in_memory: ClassVar[bool] = False

    def __post_init__(self):
        if not self.modalities or len(set(self.modalities)) < len(self.modalities):
            raise UserError(f"--data.modalities names some of {', '.join(MODALITIES)}, each once.")

    def read(self, formats: Formats, tokenizer: Tokenizer | None = None) -> "MultimodalData":
        """tokenizer: that of a run that is resumed; by default one is made from the training texts."""
        raise NotImplementedError


class Shown(NamedTuple):
    """A thing, by what it is shown in."""

    image: Float[Tensor, "c h w"] | None
    audio: Float[Tensor, "samples"] | None
    text: Int[Tensor, "n"] | None
    thing: int


def shown_in(
    modalities: Sequence[str],
    image: Float[Tensor, "c h w"],
    audio: Float[Tensor, "samples"],
    text: Int[Tensor, "n"],
    thing: int,
) -> Shown:
    """A thing in those of its modalities that are named."""
    given = dict(zip(MODALITIES, (image, audio, text), strict=True))
    return Shown(**{name: given[name] if name in modalities else None for name in MODALITIES}, thing=thing)


@dataclass(frozen=True, kw_only=True)
class MultimodalData(DataSplits[Dataset]):
    tokenizer: Tokenizer
    texts: list[str]
    """Of the test samples, for the report."""
    things: int
    """How many different ones are shown."""
    samples: NamedSamples = field(default_factory=dict)
    """What a resumed run must find again."""


def collate(samples: Sequence[Shown], pad: int) -> Batch:
    """Padded to the longest; a modality that no sample has is left out."""
    images, clips, texts, numbers = zip(*samples, strict=True)
    present = torch.tensor([[part is not None for part in sample[:3]] for sample in samples])
    stacked = waveforms = lengths = ids = real = None
    if present[:, 0].any():
        blank = torch.zeros_like(next(image for image in images if image is not None))
        stacked = torch.stack([blank if image is None else image for image in images])
    if present[:, 1].any():
        clips = [torch.zeros(1) if clip is None else clip for clip in clips]
        lengths = torch.tensor([len(clip) for clip in clips])
        waveforms = pad_sequence(clips, batch_first=True)
    if present[:, 2].any():
        texts = [torch.tensor([pad]) if text is None else text for text in texts]
        sizes = torch.tensor([len(text) for text in texts])
        ids = pad_sequence(texts, batch_first=True, padding_value=pad)
        real = torch.arange(ids.shape[1]) < sizes[:, None]
    return Batch(tuple(Things(stacked, waveforms, lengths, ids, real, present)), torch.tensor(numbers))


def drop_modalities(batch: Batch, share: float) -> Batch:
    """Takes modalities from samples at random; one that a sample has is always left to it."""
    *inputs, present = batch.inputs
    draws = torch.rand(present.shape).to(present.device).where(present, 2.0)
    kept = draws >= share
    spared = F.one_hot(draws.where(present, -1.0).argmax(dim=1), len(MODALITIES)).bool()
    return Batch((*inputs, present & (kept | spared)), batch.targets)


def formats(model: MultimodalConfig) -> Formats:
    image = model.image
    return Formats(
        ImageFormat(
            size=image.size,
            channels=image.channels,
            preprocess=image.preprocess,
            patch_size=image.patch_size,
            stride=image.stride,
        ),
        audio_config(model).audio_format,
        model.text.max_length,
    )


def audio_config(model: MultimodalConfig) -> ASTConfig:
    """Of a model that cuts sounds into the same tokens."""
    return ASTConfig(**{each.name: getattr(model.audio, each.name) for each in fields(model.audio)})
