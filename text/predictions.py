"""What a text model predicts of texts, by its head: classes, a number, tags, answers, masked tokens, or vectors.

Each is a `Reading`: how texts become what the model takes, what the model makes of a batch, and how that becomes rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from core import UserError
from core.experiments.outputs import Classes, Form, Numbers, Vectors, check_finite, shown_classes, significant
from core.experiments.results import Columns, Row

from .answers import Answer, answer
from .model import TextEncoder
from .pairs import Overlong, encoded_parts, framed_inputs
from .tagging import Said, tags_of_text
from .tokenizer import Tokenizer


class Reading(NamedTuple):
    """How texts are predicted."""

    read: Callable[[str, tuple[str, ...]], Any]
    """From the name of a text (or a pair), for messages, and the text (or both) to what `compute` takes."""
    compute: Callable[[list[Any]], Any]
    form: Form


class Framed(NamedTuple):
    """A text or a pair as the model takes it."""

    ids: Int[Tensor, "n"]
    segments: Int[Tensor, "n"] | None


@dataclass(frozen=True)
class Frame:
    """Texts become token ids between special tokens; one that is too long is cut, or refused."""

    model: TextEncoder
    tokenizer: Tokenizer
    overlong: Overlong
    prompt: str = ""

    def __call__(self, where: str, texts: tuple[str, ...]) -> Framed:
        prompted = [self.prompt + text for text in texts]
        remedy = "shorten it, or choose --overlong truncate"
        parts = encoded_parts(self.model.config, self.tokenizer, prompted, where, self.overlong, remedy)
        inputs, _ = framed_inputs(self.model.config, self.tokenizer, parts)
        return Framed(inputs[0][0], inputs[2][0] if len(inputs) > 2 else None)


def vectors(model: TextEncoder, tokenizer: Tokenizer, overlong: Overlong) -> Reading:
    frame = Frame(model, tokenizer, overlong, model.config.sentence_prompt)
    return Reading(frame, lambda texts: model.sentence_vectors([text.ids for text in texts]), Vectors())


def classes(model: TextEncoder, tokenizer: Tokenizer, overlong: Overlong, top: int | None) -> Reading:
    """Of texts or of pairs; or a number."""
    config = model.config

    def logits(texts: list[Framed]) -> Float[Tensor, "texts classes"]:
        ids = [text.ids for text in texts]
        segments = [text.segments for text in texts if text.segments is not None]
        return model(ids, None, segments) if segments else model(ids)

    frame = Frame(model, tokenizer, overlong)
    shown = shown_classes(top, config.classes)
    if config.predicts_number:
        return Reading(frame, logits, Numbers(config))
    return Reading(frame, lambda texts: model.probabilities(logits(texts)), Classes(config.labels, shown))


def tags(model: TextEncoder, tokenizer: Tokenizer, overlong: Overlong) -> Reading:
    def found(named: tuple[str, str]) -> list[Said]:
        where, text = named
        said = tags_of_text(model, tokenizer, text, cut=overlong == "truncate")
        if said is None:
            raise UserError(
                f"{where} has more tokens than the {model.config.max_length} that the model takes: shorten it, or "
                "choose --overlong truncate."
            )
        return said

    return Reading(lambda where, texts: (where, texts[0]), lambda texts: [*map(found, texts)], Tags())


@dataclass(frozen=True)
class Tags:
    """The entities of a text, or the tags of its words, in order."""

    columns: Columns = field(default_factory=lambda: {"tags": "json"})

    def rows(self, predictions: Sequence[list[Said]]) -> list[Row]:
        return [
            {"tags": [{**part._asdict(), "probability": significant(part.probability)} for part in found]}
            for found in predictions
        ]

    def say(self, row: Row) -> str:
        said = (f"{part['text']} {part['label']} {part['probability']:.0%}" for part in row["tags"])
        return ", ".join(said) or "nothing found"


def answers(model: TextEncoder, tokenizer: Tokenizer) -> Reading:
    """Of pairs of a question and a context."""
    return Reading(
        lambda where, texts: texts, lambda pairs: [answer(model, tokenizer, *pair) for pair in pairs], Answers()
    )


@dataclass(frozen=True)
class Answers:
    columns: Columns = field(default_factory=lambda: {"answer": "text", "probability": "number"})

    def rows(self, predictions: Sequence[Answer]) -> list[Row]:
        return [{"answer": each.text, "probability": significant(each.probability)} for each in predictions]

    def say(self, row: Row) -> str:
        return f"{row['answer']} {row['probability']:.0%}"


def masked_tokens(model: TextEncoder, tokenizer: Tokenizer, overlong: Overlong, top: int | None, run: str) -> Reading:
    """Of texts with [MASK] in them."""
    if tokenizer.mask is None:
        raise UserError(f"{run}: its tokenizer has no mask token, so it can only --embed.")
    mask = tokenizer.backend.id_to_token(tokenizer.mask) or "[MASK]"
    frame = Frame(model, tokenizer, overlong)
    shown = shown_classes(top, model.config.vocab_size, "tokens")

    def read(where: str, texts: tuple[str, ...]) -> Framed:
        framed = frame(where, (texts[0].replace("[MASK]", mask),))
        if not bool((framed.ids == tokenizer.mask).any()):
            raise UserError(f"{where} has no [MASK], but this model predicts masked tokens (or use --embed).")
        return framed

    def compute(texts: list[Framed]) -> list[Mask]:
        where = [text.ids == tokenizer.mask for text in texts]
        logits = model([text.ids for text in texts], where=where)
        check_finite(logits, run)
        values, numbers = logits.float().softmax(dim=-1).topk(shown)
        counts = [int(each.sum()) for each in where]
        return list(zip(values.cpu().split(counts), numbers.cpu().split(counts), strict=True))

    return Reading(read, compute, MaskedTokens(tokenizer))


Mask = tuple[Float[Tensor, "masks top"], Int[Tensor, "masks top"]]
"""The probabilities of the most probable tokens in each place, and their ids."""


@dataclass(frozen=True)
class MaskedTokens:
    """The most probable tokens in place of each [MASK]."""

    tokenizer: Tokenizer
    columns: Columns = field(default_factory=lambda: {"masks": "json"})

    def rows(self, predictions: Sequence[Mask]) -> list[Row]:
        return [
            {
                "masks": [
                    [
                        {"token": self.tokenizer.token(number), "probability": significant(value)}
                        for value, number in zip(*best, strict=True)
                    ]
                    for best in zip(values.tolist(), numbers.tolist(), strict=True)
                ]
            }
            for values, numbers in predictions
        ]

    def say(self, row: Row) -> str:
        masks = (", ".join(f"{each['token']} {each['probability']:.1%}" for each in best) for best in row["masks"])
        return "; ".join(masks)
