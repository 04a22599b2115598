"""Digits as handwriting, real recordings and names."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from audio.augment import Augment as AudioAugment
from audio.samples import Clips
from audio.spoken_digits import SpokenDigits
from core.config import configclass
from core.data.dataset import Name
from text import Tokenizer
from text.tokenizer import train_tokenizer
from vision.datasets import Digits as HandwrittenDigits
from vision.images import Images

from . import words
from .data import Formats, MultimodalData, MultimodalDataset, Shown, shown_in
from .digits import HANDWRITING


@configclass
class Spoken(MultimodalDataset):
    """A handwritten digit, a recording of it, and its name."""

    name: Name[Literal["spoken"]] = "spoken"
    path: Path = SpokenDigits().path
    """The Free Spoken Digit Dataset, as for audio.train spoken-digits."""
    speaker: str = ""
    """Test on all recordings of this speaker, and train on those of the others alone."""
    augment: AudioAugment = AudioAugment()
    """Of the recordings."""

    def read(self, formats: Formats, tokenizer: Tokenizer | None = None) -> MultimodalData:
        recorded = SpokenDigits(
            path=self.path,
            speaker=self.speaker,
            validation_fraction=self.validation_fraction,
            augment=self.augment,
        )
        clips = recorded.read(formats.audio)
        images = HandwrittenDigits(
            augment=HANDWRITING, test_fraction=self.test_fraction, validation_fraction=self.validation_fraction
        ).read(formats.image)
        names = words.spellings()
        tokenizer = tokenizer or train_tokenizer([text for texts in names.train for text in texts], self.tokenizer)
        train, validation, test = (
            SpokenThings(
                clips.parts()[split], images.parts()[split], names.parts()[split], tokenizer, self, formats.max_length
            )
            for split in ("train", "validation", "test")
        )
        return MultimodalData(
            train=train,
            validation=validation.fixed(seed=5),
            test=(tested := test.fixed(seed=4)),
            note=f"Recordings: {clips.note} Images: {images.note}",
            tokenizer=tokenizer,
            texts=tested.texts,
            things=10,
            samples=recorded.named_samples(clips),
        )


class SpokenThings(Dataset):
    """A recording with an image and a name of the same digit, which are others each time."""

    def __init__(
        self,
        clips: Clips,
        images: Images,
        names: Sequence[Sequence[str]],
        tokenizer: Tokenizer,
        config: Spoken,
        max_length: int,
    ):
        self.clips, self.images, self.names, self.tokenizer, self.config = clips, images, names, tokenizer, config
        self.room = tokenizer.room(max_length)
        self.of_digit: list[list[int]] = [[] for _ in range(10)]
        for index, (_, digit) in enumerate(images.samples):
            self.of_digit[digit].append(index)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Shown:
        digit = self.clips.samples[index].label
        return self.make(index, random.choice(self.of_digit[digit]), random.choice(self.names[digit]))

    def make(self, index: int, image: int, name: str) -> Shown:
        clip, digit = self.clips[index]
        ids = torch.tensor(self.tokenizer.frame(self.tokenizer.encode([name])[0][: self.room]))
        return shown_in(self.config.modalities, self.images[image][0], clip, ids, digit)

    def fixed(self, seed: int) -> "FixedThings":
        """With the same image and name for a recording each time: each image as often as any other of its digit."""
        draw, seen, rows = np.random.default_rng(seed), [0] * 10, []
        for index, (_, digit) in enumerate(self.clips.samples):
            own, names = self.of_digit[digit], self.names[digit]
            rows.append((index, own[seen[digit] % len(own)], names[int(draw.integers(len(names)))]))
            seen[digit] += 1
        return FixedThings(self, rows)


class FixedThings(Dataset):
    """The same for every run.

    rows: the recording, the image and the name of each thing.
    """

    def __init__(self, things: SpokenThings, rows: list[tuple[int, int, str]]):
        self.things, self.rows = things, rows

    @property
    def texts(self) -> list[str]:
        return [name for *_, name in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Shown:
        return self.things.make(*self.rows[index])
