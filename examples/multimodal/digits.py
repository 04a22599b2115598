"""Digits as handwriting, keypad tones and names, made on the fly."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from audio.dtmf import KEYS, NOISES, SAMPLE_RATE, TrainClips, make_clip
from core import UserError
from text import Tokenizer
from text.tokenizer import train_tokenizer
from vision.augment import Augment
from vision.datasets import DataConfig as ImageData
from vision.datasets import read_data

from . import words
from .data import SPAN, DataConfig, MultimodalData, Shown, vision_config
from .model import MODALITIES, MultimodalConfig

LEVEL = 6  # which of TrainClips' draws is the level of the tones over the noise


def read_digits(config: DataConfig, model: MultimodalConfig, tokenizer: Tokenizer | None = None) -> MultimodalData:
    if model.audio.sample_rate != SAMPLE_RATE:
        raise UserError(f"The tones are made at {SAMPLE_RATE} Hz: leave --model.audio.sample-rate at that.")
    augment = Augment(rotate=10.0, shift=0.06, zoom=0.05)
    images = read_data(ImageData(augment=augment, test_fraction=config.test_fraction), vision_config(model))
    known, unknown = words.spellings()
    tokenizer = tokenizer or train_tokenizer([text for texts in known for text in texts], config.tokenizer)
    train = Digits(images.train, known, tokenizer, config, model)
    test = HeldOut(images.test, unknown, train)
    return MultimodalData(train, test, tokenizer, test.texts, things=10)


class Digits(Dataset):
    """A picture, a keypad tone and a name of the same digit; the tone and the name are others each time."""

    def __init__(
        self, images: Dataset, names: list[list[str]], tokenizer: Tokenizer, config: DataConfig, model: MultimodalConfig
    ):
        self.images, self.clips, self.names, self.tokenizer, self.config = (
            images,
            TrainClips(),
            names,
            tokenizer,
            config,
        )
        self.std, self.most = np.resize(model.image.preprocess.std, model.image.channels), model.text.max_length
        shape = self.images[0][0].shape if config.image_noise else (0,)
        self.sizes = (images.draws, self.clips.draws, 1 + words.DRAWS * config.misspellings, int(np.prod(shape)))
        self.draws = sum(self.sizes)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Shown:
        return self.make([index], np.random.random((1, self.draws)))[0]

    def make(self, indices: list[int], draws: Float[np.ndarray, "n draws"]) -> list[Shown]:
        place, sound, word, noise = np.split(draws, np.cumsum(self.sizes[:-1]), axis=1)
        images = self.images.make(indices, place)
        sound = sound.copy()
        sound[:, 0] = [(KEYS.index(str(digit)) + 0.5) / len(KEYS) for _, digit in images]
        low, high = self.config.levels
        sound[:, LEVEL] = (low + (high - low) * sound[:, LEVEL] - SPAN[0]) / (SPAN[1] - SPAN[0])
        clips = self.clips.make(indices, sound)
        texts = [
            self.names[digit][int(w[0] * len(self.names[digit]))] for (_, digit), w in zip(images, word, strict=True)
        ]
        ids = self.written(texts, word[:, 1:])[1]
        return [
            self.shown(self.speckled(image, dots), clip, numbers, digit)
            for (image, digit), dots, (clip, _), numbers in zip(images, noise, clips, ids, strict=True)
        ]

    def speckled(self, image: Float[Tensor, "c h w"], draws: Float[np.ndarray, "pixels"]) -> Float[Tensor, "c h w"]:
        if not self.config.image_noise:
            return image
        noise = torch.special.ndtri(torch.from_numpy(draws + 2.0**-33)).view(image.shape)
        return image + (self.config.image_noise / torch.tensor(self.std)[:, None, None] * noise).to(image.dtype)

    def written(
        self, texts: Sequence[str], draws: Float[np.ndarray, "n draws"]
    ) -> tuple[list[str], list[Int[Tensor, "_"]]]:
        texts = [words.misspell(t, slips.reshape(-1, words.DRAWS)) for t, slips in zip(texts, draws, strict=True)]
        found = [self.tokenizer.frame(ids[: self.tokenizer.room(self.most)]) for ids in self.tokenizer.encode(texts)]
        return texts, [torch.tensor(ids) for ids in found]

    def shown(self, image: Tensor, clip: Tensor, ids: Tensor, digit: int) -> Shown:
        parts = zip(MODALITIES, (image, clip, ids), strict=True)
        return Shown(*(part if name in self.config.modalities else None for name, part in parts), digit)


class HeldOut(Dataset):
    """The same for every run: test pictures, clips of seeds of their own, held-out spellings; noisy as in training."""

    def __init__(self, images: Dataset, names: list[list[str]], train: Digits):
        self.samples: list[Shown] = []
        self.texts: list[str] = []
        seen = [0] * 10
        for number in range(len(images)):
            image, digit = images[number]
            random = np.random.default_rng([4, number])
            noise, level = NOISES[seen[digit] % len(NOISES)], float(random.uniform(*train.config.levels))
            clip = make_clip(random, KEYS.index(str(digit)), noise, level)
            seen[digit] += 1
            word, slips, dots = (random.random(size) for size in (1, train.sizes[2] - 1, train.sizes[3]))
            spelling = names[digit][int(word[0] * len(names[digit]))]
            texts, ids = train.written([spelling], slips[None])
            self.samples.append(
                train.shown(train.speckled(image, dots), torch.from_numpy(clip.waveform), ids[0], digit)
            )
            self.texts += texts

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Shown:
        return self.samples[index]
