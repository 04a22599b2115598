"""A page on which one points at image, sound and word: `python -m examples.multimodal.explore RUN --image FILE ...`."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

import audio.looks
import text.looks
import vision.looks
from audio import AST
from audio.clips import check_length
from audio.samples import read_clip
from core import UserError
from core.config import configclass
from core.experiments import predict_command
from core.experiments.exploring import ExploreArguments, compared, make_page, predicted
from core.explore import Look, Marks, Part, look
from core.models.hub import model_folder
from text import Tokenizer
from vision.augment import eval_transform
from vision.decoding import image_mode, read_image

from .data import Shown, audio_config, formats
from .model import FusedModel
from .things import MODALITIES


@configclass
class Arguments(ExploreArguments):
    """Write a page on which one points at an image, a sound and a text, and sees what each attends to in the others."""

    image: Path | None = None
    """An image file."""
    audio: Path | None = None
    """An audio file."""
    text: str | None = None
    """A text."""


class Given(NamedTuple):
    """What is given of a thing: files, and a text."""

    image: Path | None
    audio: Path | None
    text: str | None

    def __str__(self) -> str:
        return " + ".join(f"“{each}”" if isinstance(each, str) else each.name for each in self if each is not None)


def explore(arguments: Arguments) -> None:
    given = Given(arguments.image, arguments.audio, arguments.text)
    if given == (None, None, None):
        raise UserError("Give some of --image, --audio and --text.")
    models = compared(arguments, load, lambda loaded: loaded[0])
    looks = [look_at(name, *loaded, given, arguments.target) for name, loaded in models]
    make_page(arguments, [str(given)], [looks], "things", Path("thing"))


def load(source: str) -> tuple[FusedModel, Tokenizer]:
    return FusedModel.from_run(source, "examples.multimodal"), Tokenizer.load(model_folder(Path(source)), extend=False)


def read(model: FusedModel, tokenizer: Tokenizer, given: Given) -> Shown:
    """A thing as the model takes it."""
    form, image, clip, ids = formats(model.config), None, None, None
    if given.image is not None:
        image = eval_transform(form.image)(read_image(given.image, image_mode(form.image.channels)))
    if given.audio is not None:
        clip = read_clip(given.audio, form.audio)
        check_length(f"{given.audio}: a clip", len(clip), form.audio)
    if given.text is not None:
        framed = tokenizer.frame(tokenizer.encode([given.text])[0])
        if len(framed) > form.max_length:
            raise UserError(f"The text has {len(framed)} tokens, but the model takes {form.max_length}: shorten it.")
        ids = torch.tensor(framed)
    return Shown(image, clip, ids, 0)


def logits(model: FusedModel, things: Sequence[Shown]) -> Float[Tensor, "things classes"]:
    images, clips, ids = ([getattr(thing, name) for thing in things] for name in MODALITIES)
    return model(images=images, waveforms=clips, ids=ids)


def look_at(name: str, model: FusedModel, tokenizer: Tokenizer, given: Given, target: str | None = None) -> Look:
    """What the fused model attends to in what is given of a thing; target: the class that gradients are of."""
    thing, form = read(model, tokenizer, given), formats(model.config)
    parts: list[Part] = [Marks(["class token"])]
    if thing.image is not None:
        parts += vision.looks.parts(thing.image, form.image, class_token=False)
    if thing.audio is not None:
        # A model of sounds alone, which is only asked where the tokens of this spectrogram are.
        marks, picture = audio.looks.parts(AST(audio_config(model.config)), thing.audio)
        assert isinstance(marks, Marks)
        parts += [Marks([f"audio {mark}" for mark in marks.names]), picture]
    if given.text is not None and thing.text is not None:
        parts.append(text.looks.words(tokenizer, [given.text], thing.text.tolist(), [len(tokenizer.before)]))
    return look(
        name,
        lambda: logits(model, [thing]),
        parts,
        depth=model.config.encoder.depth,
        pool="cls",
        predictions=predicted(model.config, lambda logits: logits.softmax(dim=-1), target),
    )


if __name__ == "__main__":
    predict_command("python -m examples.multimodal.explore", Arguments, explore)
