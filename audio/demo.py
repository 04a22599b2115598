"""A web page that takes or records a sound, and shows what a model makes of it: `python -m audio.demo MODEL`."""

from pathlib import Path
from typing import Any

from core.config import configclass
from core.experiments import predict_command
from core.experiments.demo import Demo, DemoArguments, as_file, given_file, serve
from core.experiments.exploring import short_name

from .looks import look_at
from .predict import Arguments as PredictArguments
from .predict import predictor_of
from .pretrained import load_pretrained


@configclass
class Arguments(DemoArguments):
    """Serve a page that takes or records a sound, and shows the most probable classes and what the model attends to."""


def demo(arguments: Arguments) -> Demo:
    model = load_pretrained(arguments.model)
    predictor = predictor_of(model, PredictArguments(run=Path(arguments.model), top=arguments.top))
    return Demo(
        predictor=predictor,
        controls=controls,
        given=lambda path: given_file(path, "a sound"),
        look=lambda entry: look_at(short_name(arguments.model), model, predictor.read(entry)),
    )


def controls(gradio: Any) -> list[Any]:
    return [as_file(gradio.Audio(label="Sound", type="filepath", sources=["upload", "microphone"], buttons=[]))]


if __name__ == "__main__":
    predict_command("python -m audio.demo", Arguments, lambda arguments: serve(arguments, demo(arguments)))
