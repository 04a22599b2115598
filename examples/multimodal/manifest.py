"""Things of the user's own: rows of a CSV or JSONL file."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import Dataset

from audio.augment import Augment as AudioAugment
from audio.datasets import DataConfig as AudioData
from audio.datasets import eval_transform as eval_audio
from audio.datasets import read_audio
from audio.datasets import train_transform as train_audio
from audio.model import check_length
from core import UserError
from core.data.manifest import listed_file, manifest_rows, parts_of
from core.data.splits import Used, check_files, random_split
from core.experiments.fixed import name_text
from text import Tokenizer
from text.tokenizer import train_tokenizer
from vision.augment import Augment as ImageAugment
from vision.augment import eval_transform as eval_image
from vision.augment import train_transform as train_image
from vision.datasets import image_mode, read_image

from .data import DataConfig, MultimodalData, Shown, ast_config, vision_config
from .model import MODALITIES, MultimodalConfig

FILES = ("image", "audio")  # the modalities that a row names a file for


def read_manifest(config: DataConfig, model: MultimodalConfig, tokenizer: Tokenizer | None = None) -> MultimodalData:
    """Rows with two at least of the columns `image`, `audio` (files, from where the manifest is) and `text`.

    Rows of the same `label`, or else of the same text, show the same thing. `split` (train or test) is optional.
    tokenizer: that of a run to go on with; None: one is made from the texts.
    """
    if config.path is None:
        raise UserError("The manifest data need --data.path.")
    rows = manifest_rows(config.path, required=(), optional=(*MODALITIES, "label", "split"))
    columns = {name for row in rows.values() for name in row}
    if len(columns & set(MODALITIES)) < 2:
        found = ", ".join(sorted(columns & set(MODALITIES))) or "none"
        raise UserError(f"{config.path} needs two of the columns image, audio and text; of these it has: {found}.")
    train, test = (
        [(where, _shown(config.path, where, rows[where])) for where in part] for part in parts_of(config.path, rows)
    )
    if len(train) < 2:
        raise UserError(f"{config.path} has too few rows to train on: two are needed, and better thousands.")
    if not test:
        halves = random_split(len(train), config.test_fraction)
        train, test = ([train[i] for i in half] for half in halves)
    files = (
        [Used(where, Path(row[name])) for where, row in part for name in FILES if name in row] for part in (train, test)
    )
    check_files(*files)
    texts = [row.get("text", "") for _, row in train]
    tokenizer = tokenizer or train_tokenizer([text for text in texts if text] or ["-"], config.tokenizer)
    names = {name: number for number, name in enumerate(dict.fromkeys(_thing(*row) for row in (*train, *test)))}
    augment = AudioData(seconds=config.seconds, augment=AudioAugment(gain=6.0, noise=10.0))
    rate, vit = model.audio.sample_rate, vision_config(model)
    return MultimodalData(
        Pairs(
            train, names, config, model, tokenizer, train_image(vit, ImageAugment(crop=0.6)), train_audio(augment, rate)
        ),
        Pairs(test, names, config, model, tokenizer, eval_image(vit), eval_audio(augment, rate)),
        tokenizer,
        [row.get("text", "") for _, row in test],
        things=len(names),
        samples={"train": _named(train), "test": _named(test)},
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


class Pairs(Dataset):
    """Rows of a manifest, read when asked for; what is wrong with a file is told with its row."""

    def __init__(
        self,
        rows: list[tuple[str, dict[str, str]]],
        things: dict[str, int],
        config: DataConfig,
        model: MultimodalConfig,
        tokenizer: Tokenizer,
        to_image: Callable,
        to_clip: Callable,
    ):
        self.rows, self.things, self.config, self.model, self.tokenizer = rows, things, config, model, tokenizer
        self.to_image, self.to_clip, self.mode = to_image, to_clip, image_mode(model.image.channels)
        self.room = tokenizer.room(model.text.max_length)
        self.ids = [self.number(where, row["text"]) if "text" in row else None for where, row in rows]
        if cut := sum(ids is not None and len(ids) > self.room for ids in self.ids):
            warnings.warn(f"{cut} texts have more than {model.text.max_length} tokens and were cut.", stacklevel=2)

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
                clip = self.to_clip(read_audio(Path(row["audio"]), self.model.audio.sample_rate))
                check_length(f"{row['audio']}: a clip", len(clip), ast_config(self.model))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if "text" in row and "text" in shown:
            text = torch.tensor(self.tokenizer.frame(self.ids[index][: self.room]))
        return Shown(image, clip, text, self.things[_thing(where, row)])

    def number(self, where: str, text: str) -> list[int]:
        if not (ids := self.tokenizer.encode([text])[0]):
            raise UserError(f"{where}: the tokenizer finds no words in this text.")
        return ids


def _thing(where: str, row: dict[str, str]) -> str:
    return row["label"] or row.get("text") or where
