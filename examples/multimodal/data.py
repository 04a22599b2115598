"""Things shown in several ways, and batches of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from audio import ASTConfig
from audio.datasets import Seconds
from audio.dtmf import LEVELS
from core import Batch, UserError
from core.config import BelowOne, BetweenZeroAndOne, Natural, NotNegative, Real, configclass
from core.data.dataset import NamedSamples
from text import Tokenizer
from text.tokenizer import TokenizerConfig
from vision import ViTConfig

from .model import MODALITIES, MultimodalConfig, Things

BYTES = TokenizerConfig(kind="bpe", vocab_size=261, lowercase=False)  # 256 and the special tokens: no merges
SPAN = (LEVELS[0] - 2, LEVELS[-1])  # dB of tones over noise that TrainClips draws from


@configclass
class DataConfig:
    name: Literal["digits", "manifest"] = "digits"
    """Which data."""
    path: Path | None = None
    """The manifest."""
    modalities: tuple[Literal["image", "audio", "text"], ...] = MODALITIES
    """What the model is shown; the rest is kept from it."""
    test_fraction: BetweenZeroAndOne = 0.2
    """Share of test samples where the data come without a split of their own."""
    image_noise: NotNegative = 0.0
    """Standard deviation of noise on the digits' pixels, of which white is 1."""
    levels: tuple[Real, Real] = (float(LEVELS[0]), float(LEVELS[-1]))
    """Decibels of the digits' tones over their noise, from and to (-12 to 20)."""
    misspellings: Natural = 0
    """Slips in each of the digits' names."""
    modality_dropout: BelowOne = 0.0
    """Share of training samples that lack a modality, of each; one is always left."""
    seconds: Seconds | None = None
    """Of a longer clip of a manifest, train on a random stretch of this length and test on the middle."""
    tokenizer: TokenizerConfig = BYTES

    def __post_init__(self):
        if not self.modalities or len(set(self.modalities)) < len(self.modalities):
            raise UserError(f"--data.modalities names some of {', '.join(MODALITIES)}, each once.")
        if not SPAN[0] <= self.levels[0] <= self.levels[1] <= SPAN[1]:
            raise UserError(f"--data.levels must rise from {SPAN[0]} to {SPAN[1]} at most, not {self.levels}.")


class Shown(NamedTuple):
    """A thing, by what it is shown in."""

    image: Float[Tensor, "c h w"] | None
    audio: Float[Tensor, "samples"] | None
    text: Int[Tensor, "n"] | None
    thing: int


class MultimodalData(NamedTuple):
    train: Dataset
    test: Dataset
    tokenizer: Tokenizer
    texts: list[str]
    """Of the test samples, to be read."""
    things: int
    """How many different ones are shown."""
    samples: NamedSamples = {}
    """What a resumed run must find again."""
    validation: Dataset | None = None
    note: str = ""
    """Where the validation and the test split come from."""


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


def vision_config(model: MultimodalConfig) -> ViTConfig:
    """The model's pictures as vision's data want them told."""
    image = model.image
    return ViTConfig(image_size=image.size, channels=image.channels, preprocess=image.preprocess)


def ast_config(model: MultimodalConfig) -> ASTConfig:
    """The model's sounds as audio's data want them told."""
    audio = model.audio
    names = ("sample_rate", "n_mels", "max_frames", "patch_size", "stride", "features")
    return ASTConfig(**{name: getattr(audio, name) for name in names})
