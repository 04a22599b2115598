"""Digits as handwriting, keypad tones and names, made on the fly."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from audio.dtmf import KEYS, LEVELS, NOISES, SAMPLE_RATE, TrainClips, make_clip
from core import UserError
from core.config import Natural, NotNegative, Real, configclass
from core.data.dataset import Name
from text import Tokenizer
from text.tokenizer import train_tokenizer
from vision.augment import Augment
from vision.datasets import Digits as HandwrittenDigits
from vision.images import AffineImages, Images

from . import words
from .data import Formats, MultimodalData, MultimodalDataset, Shown, shown_in

SPAN = (LEVELS[0] - 2, LEVELS[-1])  # dB of tones over noise that TrainClips draws from
HANDWRITING = Augment(rotate=10.0, shift=0.06, zoom=0.05)
LEVEL = 6  # which of TrainClips' draws is the level of the tones over the noise


@configclass
class Digits(MultimodalDataset):
    """Handwritten digits, keypad tones and names of the same digit."""

    name: Name[Literal["digits"]] = "digits"
    image_noise: NotNegative = 0.0
    """Standard deviation of noise on the digits' pixels, of which white is 1."""
    levels: tuple[Real, Real] = (float(LEVELS[0]), float(LEVELS[-1]))
    """Decibels of the digits' tones over their noise, from and to (-12 to 20)."""
    misspellings: Natural = 0
    """Spelling mistakes in each of the digits' names."""
    in_memory: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if not SPAN[0] <= self.levels[0] <= self.levels[1] <= SPAN[1]:
            raise UserError(f"--data.levels must rise from {SPAN[0]} to {SPAN[1]} at most, not {self.levels}.")

    def read(self, formats: Formats, tokenizer: Tokenizer | None = None) -> MultimodalData:
        if formats.audio.sample_rate != SAMPLE_RATE:
            raise UserError(f"The tones are made at {SAMPLE_RATE} Hz: leave --model.audio.sample-rate at that.")
        images = HandwrittenDigits(
            augment=HANDWRITING,
            test_fraction=self.test_fraction,
            validation_fraction=self.validation_fraction,
        ).read(formats.image)
        names = words.spellings()
        tokenizer = tokenizer or train_tokenizer([text for texts in names.train for text in texts], self.tokenizer)
        train = TrainDigits(images.train, names.train, tokenizer, self, formats)
        test = FixedDigits(images.test, names.test, train, seed=4)
        return MultimodalData(
            train=train,
            validation=FixedDigits(images.validation, names.validation, train, seed=5),
            test=test,
            note=images.note,
            tokenizer=tokenizer,
            texts=test.texts,
            things=10,
        )


class TrainDigits(Dataset):
    """An image, a keypad tone and a name of the same digit; the tone and the name are others each time."""

    def __init__(
        self, images: AffineImages, names: list[list[str]], tokenizer: Tokenizer, config: Digits, formats: Formats
    ):
        self.images, self.clips, self.names = images, TrainClips(), names
        self.tokenizer, self.config, self.max_length = tokenizer, config, formats.max_length
        self.std = np.resize(formats.image.preprocess.std, formats.image.channels)
        shape = self.images[0][0].shape if config.image_noise else (0,)
        self.sizes = (images.draws, self.clips.draws, 1 + words.DRAWS * config.misspellings, int(np.prod(shape)))
        self.draws = sum(self.sizes)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Shown:
        return self.make([index], np.random.random((1, self.draws)))[0]

    def make(self, indices: list[int], draws: Float[np.ndarray, "n draws"]) -> list[Shown]:
        place, tone, word, noise = np.split(draws, np.cumsum(self.sizes[:-1]), axis=1)
        images = self.images.make(indices, place)
        tone = tone.copy()
        tone[:, 0] = [(KEYS.index(str(digit)) + 0.5) / len(KEYS) for _, digit in images]
        low, high = self.config.levels
        tone[:, LEVEL] = (low + (high - low) * tone[:, LEVEL] - SPAN[0]) / (SPAN[1] - SPAN[0])
        clips = self.clips.make(indices, tone)
        texts = [
            self.names[digit][int(w[0] * len(self.names[digit]))] for (_, digit), w in zip(images, word, strict=True)
        ]
        ids = self.encoded(texts, word[:, 1:])[1]
        return [
            self.shown(self.with_noise(image, dots), clip, numbers, digit)
            for (image, digit), dots, (clip, _), numbers in zip(images, noise, clips, ids, strict=True)
        ]

    def with_noise(self, image: Float[Tensor, "c h w"], draws: Float[np.ndarray, "pixels"]) -> Float[Tensor, "c h w"]:
        if not self.config.image_noise:
            return image
        noise = torch.special.ndtri(torch.from_numpy(draws + 2.0**-33)).view(image.shape)
        return image + (self.config.image_noise / torch.tensor(self.std)[:, None, None] * noise).to(image.dtype)

    def encoded(
        self, texts: Sequence[str], draws: Float[np.ndarray, "n draws"]
    ) -> tuple[list[str], list[Int[Tensor, "_"]]]:
        texts = [words.misspell(t, slips.reshape(-1, words.DRAWS)) for t, slips in zip(texts, draws, strict=True)]
        room, frame = self.tokenizer.room(self.max_length), self.tokenizer.frame
        return texts, [torch.tensor(frame(ids[:room])) for ids in self.tokenizer.encode(texts)]

    def shown(self, image: Tensor, clip: Tensor, ids: Tensor, digit: int) -> Shown:
        return shown_in(self.config.modalities, image, clip, ids, digit)


class FixedDigits(Dataset):
    """The same for every run: held-out images, clips of seeds of their own, held-out spellings; noisy as in training.

    seed: of the clips, and of what is drawn besides.
    """

    def __init__(self, images: Images, names: list[list[str]], train: TrainDigits, seed: int):
        self.samples: list[Shown] = []
        self.texts: list[str] = []
        seen = [0] * 10
        for number in range(len(images)):
            image, digit = images[number]
            random = np.random.default_rng([seed, number])
            noise, level = NOISES[seen[digit] % len(NOISES)], float(random.uniform(*train.config.levels))
            clip = make_clip(random, KEYS.index(str(digit)), noise, level)
            seen[digit] += 1
            word, slips, dots = (random.random(size) for size in (1, train.sizes[2] - 1, train.sizes[3]))
            spelling = names[digit][int(word[0] * len(names[digit]))]
            texts, ids = train.encoded([spelling], slips[None])
            self.samples.append(
                train.shown(train.with_noise(image, dots), torch.from_numpy(clip.waveform), ids[0], digit)
            )
            self.texts += texts

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Shown:
        return self.samples[index]
