"""A web page that takes an image, a sound and a word: `python -m examples.multimodal.demo RUN`."""

from pathlib import Path

import audio.demo
import vision.demo
from core import UserError
from core.config import configclass
from core.experiments import predict_command
from core.experiments.demo import Demo, DemoArguments, serve
from core.experiments.exploring import short_name
from core.experiments.inputs import Input
from core.experiments.outputs import Classes, shown_classes
from core.experiments.predictor import Predictor

from .explore import Given, load, logits, look_at, read


@configclass
class Arguments(DemoArguments):
    """Serve a page that takes an image, a sound and a text, or some of them, and shows the most probable classes and
    what each attends to in the others."""


def demo(arguments: Arguments) -> Demo:
    model, tokenizer = load(arguments.model)
    predictor = Predictor(
        run=arguments.model,
        model=model,
        read=lambda entry: read(model, tokenizer, entry.source),
        compute=lambda things: logits(model, things).softmax(dim=-1),
        form=Classes((), shown_classes(arguments.top, model.config.classes)),
    )
    return Demo(
        predictor=predictor,
        controls=lambda gradio: [
            *vision.demo.controls(gradio),
            *audio.demo.controls(gradio),
            gradio.Textbox(label="Text"),
        ],
        given=given_thing,
        look=lambda entry: look_at(short_name(arguments.model), model, tokenizer, entry.source),
    )


def given_thing(image: str | None, sound: str | None, text: str) -> Input:
    given = Given(Path(image) if image else None, Path(sound) if sound else None, text if text.strip() else None)
    if given == (None, None, None):
        raise UserError("Give an image, a sound or a text first.")
    return Input({}, given, "The thing", str(given), Path("thing"))


if __name__ == "__main__":
    predict_command(
        "python -m examples.multimodal.demo", Arguments, lambda arguments: serve(arguments, demo(arguments))
    )
