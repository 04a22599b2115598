"""Answers to questions: the span of a context that a model finds most probable (Devlin et al. 2019, section 4.2)."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from core import UserError

from .model import TextEncoder
from .pairs import PairFramer, framed_inputs
from .tokenizer import Tokenizer

LONGEST = 30  # tokens of an answer, as in the reference implementation


class Answer(NamedTuple):
    text: str
    start: int
    """The place of its first character in the context."""
    probability: float
    """Of its first token times that of its last one, among the tokens of the stretch of context that it is in."""


@torch.no_grad()
def answer(model: TextEncoder, tokenizer: Tokenizer, question: str, context: str, longest: int = LONGEST) -> Answer:
    """The most probable answer in a context of any length: one that the model cannot take at once is read in stretches
    that overlap by half.

    longest: most tokens of an answer.
    """
    if model.config.head != "spans":
        raise UserError("The model answers no questions: load one with a head for spans (ForQuestionAnswering).")
    asked, read = tokenizer.encode([question])[0], tokenizer.backend.encode(context, add_special_tokens=False)
    if not asked or not read.ids:
        raise UserError(f"The tokenizer finds no words in the {'context' if asked else 'question'}.")
    room = model.config.max_length - PairFramer(tokenizer).special - len(asked)
    if room < min(len(read.ids), 2):
        raise UserError(f"A question of {len(asked)} tokens leaves no room for a context: ask a shorter one.")
    best, found, device = -torch.inf, None, next(model.parameters()).device
    for first in range(0, max(len(read.ids) - room // 2, 1), max(room // 2, 1)):
        inputs, places = framed_inputs(model.config, tokenizer, [asked, read.ids[first : first + room]])
        place = places[1]
        inputs = (each if each is None else each.to(device) for each in inputs)
        logits = model(*inputs)[0, place.first : place.first + place.kept].cpu()
        total, start, end = best_span(logits, longest)
        if total > best:
            chances = logits.softmax(dim=0)
            best, found = total, (first + start, first + end, float(chances[start, 0] * chances[end, 1]))
    if found is None:
        raise UserError("The model's logits are not finite numbers: its weights are damaged.")
    start, end = read.offsets[found[0]][0], read.offsets[found[1]][1]
    return Answer(context[start:end], start, found[2])


def best_span(logits: Float[Tensor, "n 2"], longest: int) -> tuple[float, int, int]:
    """The largest sum of the logits of a first and a last token, at most `longest` tokens apart, and these tokens."""
    count = len(logits)
    sums = logits[:, :1] + logits[:, 1]
    allowed = torch.ones(count, count, dtype=torch.bool, device=logits.device).triu().tril(longest - 1)
    start, end = divmod(int(sums.where(allowed, -torch.inf).argmax()), count)
    return float(sums[start, end]), start, end
