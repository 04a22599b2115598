"""A page on which one points at image, sound and word: `python -m examples.multimodal.explore RUN --image FILE ...`."""

from pathlib import Path

import torch

import audio.looks
import text.looks
import vision.looks
from audio import AST
from audio.clips import check_length
from audio.decoding import read_audio
from core import UserError
from core.config import configclass
from core.experiments import predict_command
from core.experiments.exploring import ExploreArguments, compared, make_page, predicted
from core.explore import Look, Marks, Part, look
from core.models.hub import model_folder
from text import Tokenizer
from vision.augment import eval_transform
from vision.decoding import image_mode, read_image

from .data import audio_config, formats
from .model import FusedModel


@configclass
class Arguments(ExploreArguments):
    """Write a page on which one points at an image, a sound and a text, and sees what each attends to in the others."""

    image: Path | None = None
    """An image file."""
    audio: Path | None = None
    """An audio file."""
    text: str | None = None
    """A text."""


def explore(arguments: Arguments) -> None:
    given = [each for each in (arguments.image, arguments.audio, arguments.text) if each is not None]
    if not given:
        raise UserError("Give some of --image, --audio and --text.")
    models = compared(arguments, load, lambda loaded: loaded[0])
    looks = [look_at(name, *loaded, arguments) for name, loaded in models]
    name = " + ".join(each.name if isinstance(each, Path) else f"“{each}”" for each in given)
    make_page(arguments, [name], [looks], "things", Path("thing"))


def load(source: str) -> tuple[FusedModel, Tokenizer]:
    return FusedModel.from_run(source, "examples.multimodal"), Tokenizer.load(model_folder(Path(source)), extend=False)


def look_at(name: str, model: FusedModel, tokenizer: Tokenizer, given: Arguments) -> Look:
    """What the fused model attends to in what is given of a thing."""
    parts: list[Part] = [Marks(["class token"])]
    images = clips = ids = None
    form = formats(model.config)
    if given.image is not None:
        image = eval_transform(form.image)(read_image(given.image, image_mode(form.image.channels)))
        images = [image]
        parts += vision.looks.parts(image, form.image, class_token=False)
    if given.audio is not None:
        clip = read_audio(given.audio, form.audio.sample_rate)
        check_length(f"{given.audio}: a clip", len(clip), form.audio)
        clips = [clip]
        # A model of sounds alone, which is only asked where the tokens of this spectrogram are.
        marks, picture = audio.looks.parts(AST(audio_config(model.config)), clip)
        assert isinstance(marks, Marks)
        parts += [Marks([f"audio {mark}" for mark in marks.names]), picture]
    if given.text is not None:
        framed = tokenizer.frame(tokenizer.encode([given.text])[0])
        if len(framed) > form.max_length:
            raise UserError(f"--text has {len(framed)} tokens, but the model takes {form.max_length}: shorten it.")
        ids = [torch.tensor(framed)]
        parts.append(text.looks.words(tokenizer, [given.text], framed, [len(tokenizer.before)]))
    return look(
        name,
        lambda: model(images=images, waveforms=clips, ids=ids),
        parts,
        depth=model.config.encoder.depth,
        pool="cls",
        predictions=predicted(model.config, lambda logits: logits.softmax(dim=-1), given.target),
    )


if __name__ == "__main__":
    predict_command("python -m examples.multimodal.explore", Arguments, explore)
