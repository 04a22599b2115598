"""A web page that takes a text, and shows what a model predicts and attends to: `python -m text.demo MODEL`."""

from pathlib import Path

from core import UserError
from core.config import configclass
from core.experiments import predict_command
from core.experiments.demo import Demo, DemoArguments, serve
from core.experiments.exploring import short_name
from core.experiments.inputs import Input

from .inputs import contents_of, in_short
from .looks import look_at
from .model import TextConfig, TextEncoder
from .pairs import encoded_parts
from .predict import Arguments as PredictArguments
from .predict import predictor_of
from .pretrained import load_pretrained
from .tokenizer import Tokenizer


@configclass
class Arguments(DemoArguments):
    """Serve a page that takes a text, and shows what a model predicts of it, and what it attends to: the most probable
    classes, the entities, the masked tokens, or the answer to a question."""


def demo(arguments: Arguments) -> Demo:
    model, tokenizer = load_pretrained(arguments.model)
    return Demo(
        predictor=predictor_of(model, tokenizer, PredictArguments(run=arguments.model, top=arguments.top)),
        controls=lambda gradio: [gradio.Textbox(label=name, lines=2, max_lines=8) for name in texts_of(model.config)],
        given=lambda *texts: given_texts(model, tokenizer, texts),
        look=lambda entry: look_at(short_name(arguments.model), model, tokenizer, contents_of(entry)),
    )


def texts_of(config: TextConfig) -> list[str]:
    """What the texts are called that a model takes."""
    if config.head == "spans":
        return ["Question", "Context"]
    if config.head == "classes" and config.pairs:
        return ["First text", "Second text"]
    return ["Text"]


def given_texts(model: TextEncoder, tokenizer: Tokenizer, texts: tuple[str, ...]) -> Input:
    config, where = model.config, "The pair" if len(texts) == 2 else "The text"
    for name, text in zip(texts_of(config), texts, strict=True):
        if not text.strip():
            raise UserError(f"{name} is empty: type something first.")
    if config.head == "tokens" and "[MASK]" not in texts[0]:
        raise UserError("Put [MASK] into the text, in the place of a word that is to be predicted.")
    if config.head != "spans":  # there a context may be of any length
        encoded_parts(config, tokenizer, texts, where, "error", "shorten it")
    return Input({"text": texts[0]}, texts, where, " | ".join(map(in_short, texts)), Path("text"))


if __name__ == "__main__":
    predict_command("python -m text.demo", Arguments, lambda arguments: serve(arguments, demo(arguments)))
