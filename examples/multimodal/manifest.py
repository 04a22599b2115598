"""The user's own samples: rows of a manifest with images, clips and texts."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import Dataset

from audio.augment import Augment as AudioAugment
from audio.augment import train_transform as train_audio
from audio.clips import check_length
from audio.datasets import Seconds
from audio.samples import eval_transform as eval_audio
from audio.samples import read_clip
from core import UserError
from core.config import configclass
from core.data.dataset import Name, required
from core.data.labelled import Entry, read_manifest
from core.data.manifest import Row, listed_file
from core.experiments.fixed import name_text
from text import Tokenizer
from text.tokenizer import train_tokenizer
from vision.augment import Augment as ImageAugment
from vision.augment import eval_transform as eval_image
from vision.augment import train_transform as train_image
from vision.decoding import image_mode, read_image

from .data import Formats, MultimodalData, MultimodalDataset, Shown
from .things import MODALITIES

CLIP_AUGMENT = AudioAugment(gain=6.0, noise=10.0)
FILES = ("image", "audio")  # the modalities that a row names a file for


@configclass
class Manifest(MultimodalDataset):
    """Your own images, clips and texts, listed in a CSV or JSON Lines file.

    Rows have two at least of the columns `image`, `audio` (files, from where the manifest is) and `text`. Rows of the
    same `label`, or else of the same text, show the same thing. `split` is optional.
    """

    name: Name[Literal["manifest"]] = "manifest"
    path: Path | None = None
    """The manifest."""
    group: str = ""
    """Column of the manifest whose equal values are never in two splits (a scene); `group` by default, if there."""
    seconds: Seconds | None = None
    """Of a longer clip, train on a random stretch of this length and test on the middle; None for whole clips."""

    def read(self, formats: Formats, tokenizer: Tokenizer | None = None) -> MultimodalData:
        path = required(self.path, self.name)

        def entry(where: str, row: Row) -> Entry:
            shown = _shown(path, where, row)
            return Entry(where, (where, shown), files=tuple(Path(shown[name]) for name in FILES if name in shown))

        data = read_manifest(path, entry, self, required=(), optional=(*MODALITIES, "label"), group=self.group).map(
            lambda entries: [entry.sample for entry in entries]
        )
        texts = [row["text"] for _, row in data.train if "text" in row]
        tokenizer = tokenizer or train_tokenizer(texts or ["-"], self.tokenizer)
        rows = [row for part in data.parts().values() for row in part]
        things = {name: number for number, name in enumerate(dict.fromkeys(_thing(*row) for row in rows))}
        size = None if self.seconds is None else max(round(self.seconds * formats.audio.sample_rate), 1)
        augmented = train_image(formats.image, ImageAugment(crop=0.6)), train_audio(size, CLIP_AUGMENT)
        plain = eval_image(formats.image), eval_audio(size)
        parts: dict[str, Any] = {
            split: Rows(part, things, self, formats, tokenizer, *(augmented if split == "train" else plain))
            for split, part in data.parts().items()
        }
        return MultimodalData(
            **parts,
            note=data.note,
            tokenizer=tokenizer,
            texts=[row.get("text", "") for _, row in data.test],
            things=len(things),
            samples={split: _named(part) for split, part in data.parts().items()},
        )


def _named(rows: list[tuple[str, dict[str, str]]]) -> list[tuple[str, str]]:
    return [
        (", ".join(name_text(row[name]) if name == "text" else row[name] for name in MODALITIES if name in row), thing)
        for where, row in rows
        for thing in [_thing(where, row)]
    ]


def _shown(path: Path, where: str, row: dict[str, str]) -> dict[str, str]:
    """What a row has of each modality: the path of a file, or a text; and its label, which may be empty."""
    given = {name: row[name] for name in MODALITIES if row.get(name, "").strip()}
    if len(given) < 2:
        only = f"only {next(iter(given))}" if given else "nothing"
        raise UserError(f"{where} has {only}: it needs two of image, audio and text.")
    files = {name: str(listed_file(path.parent, where, given[name])) for name in FILES if name in given}
    return given | files | {"label": row.get("label", "")}


class Rows(Dataset):
    """Rows of a manifest, read when asked for; a mistake in a file is reported with its row."""

    def __init__(
        self,
        rows: list[tuple[str, dict[str, str]]],
        things: dict[str, int],
        config: Manifest,
        formats: Formats,
        tokenizer: Tokenizer,
        to_image: Callable,
        to_clip: Callable,
    ):
        self.rows, self.things, self.config, self.formats, self.tokenizer = rows, things, config, formats, tokenizer
        self.to_image, self.to_clip, self.mode = to_image, to_clip, image_mode(formats.image.channels)
        self.room = tokenizer.room(formats.max_length)
        self.ids = [self.encode(where, row["text"]) if "text" in row else [] for where, row in rows]
        if cut := sum(len(ids) > self.room for ids in self.ids):
            warnings.warn(f"{cut} texts have more than {formats.max_length} tokens and were cut.", stacklevel=2)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Shown:
        where, row = self.rows[index]
        shown = self.config.modalities
        image = clip = text = None
        try:
            if "image" in row and "image" in shown:
                image = self.to_image(read_image(Path(row["image"]), self.mode))
            if "audio" in row and "audio" in shown:
                clip = self.to_clip(read_clip(Path(row["audio"]), self.formats.audio))
                check_length(f"{row['audio']}: a clip", len(clip), self.formats.audio)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if "text" in row and "text" in shown:
            text = torch.tensor(self.tokenizer.frame(self.ids[index][: self.room]))
        return Shown(image, clip, text, self.things[_thing(where, row)])

    def encode(self, where: str, text: str) -> list[int]:
        if not (ids := self.tokenizer.encode([text])[0]):
            raise UserError(f"{where}: the tokenizer finds no words in this text.")
        return ids


def _thing(where: str, row: dict[str, str]) -> str:
    return row["label"] or row.get("text") or where
