"""Plots of text: predictions and attention, masked tokens, predicted numbers, and nearest texts."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from core import IGNORE, attention_rollout, record_attention
from core.attention.maps import pooling_weights
from core.experiments import Panel
from core.experiments.features import nearest_before_and_after
from core.experiments.figures import BLUE, CORRECT, WRONG, figure, shortened
from core.experiments.report import render, render_table

from .datasets import MaskedTexts
from .model import TextEncoder
from .pairs import framed_inputs
from .tokenizer import Tokenizer

Words = list[tuple[str, float]]
"""Each word of a text, and a weight from 0 to 1."""
MOST_LINES = 400  # of an image: matplotlib allows a height of 65,536 pixels
MOST_WORDS = 60  # of a text on a page
MOST_LETTERS = 160  # of a text among others
NEIGHBOUR = "display: block; text-align: left; margin-bottom: .3rem"

SPANS = """
{% for text, style in spans %}
<span style="{{ style }}">{{ text }}</span>
{% endfor %}
"""


@torch.no_grad()
def word_attention(model: TextEncoder, tokenizer: Tokenizer, *texts: str) -> Words:
    """Each word of a text, or of the two of a pair, and its attention: the rollout over all layers, to the pooled
    vector. The largest weight is 1."""
    model.eval()
    inputs, places = framed_inputs(model.config, tokenizer, tokenizer.encode(texts))
    with record_attention() as calls:
        model.encode(*inputs)
    flow = attention_rollout([call.weights for call in calls])[0]
    config = model.config
    length = inputs[0].shape[1] if config.filler is None else config.max_length  # every text is filled up
    flow = flow[-length:, -length:]  # without the tokens of an adapter, which come before the others
    reached = (pooling_weights(config.pool, 0, length) @ flow)[0].tolist()
    words = []
    for text, (first, kept, skipped) in zip(texts, places, strict=True):
        start, own = -skipped, reached[first : first + kept]
        for word, count in tokenizer.words(text):
            if start + count > 0 and start < kept:
                words.append((word, sum(own[max(start, 0) : start + count])))
            start += count
    largest = max(weight for _, weight in words)
    return [(word, weight / largest) for word, weight in words]


def draw_words(words: Words, title: str, columns: int = 100) -> Figure:
    """The text in lines. The background of a word is the stronger, the larger its weight."""
    lines: list[list[tuple[int, str, float]]] = [[]]
    column = 0
    for word, weight in words:
        for start in range(0, len(word), columns):  # a word can be longer than a line
            part = word[start : start + columns]
            if column and column + len(part) > columns:
                lines.append([])
                column = 0
            lines[-1].append((column, part, weight))
            column += len(part) + 1
    if len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES], [(0, "...", 0.0)]]
    # A letter of DejaVu Sans Mono is 0.602 times as wide as the font size.
    fig, [[axis]] = figure(columns * 9 * 0.602 / 72 + 0.3, 0.24 * len(lines) + 0.5)
    axis.set(xlim=(-1, columns + 1), ylim=(len(lines), -0.5))
    axis.axis("off")
    axis.set_title(title, fontsize=9, loc="left", parse_math=False)
    for row, line in enumerate(lines):
        for column, word, weight in line:
            background = {"facecolor": "#ea580c", "alpha": 0.75 * weight, "edgecolor": "none", "pad": 1.5}
            axis.text(column, row + 0.5, word, family="monospace", fontsize=9, va="center", bbox=background)
    return fig


def predictions_panel(
    model: TextEncoder,
    tokenizer: Tokenizer,
    texts: Sequence[Sequence[str]],
    targets: Sequence[int],
    probabilities: Float[Tensor, "n classes"],
    labels: Sequence[str],
) -> Panel:
    """texts: each alone, or the two of a pair."""
    rows = []
    for text, target, row in zip(texts, targets, probabilities, strict=True):
        predicted = int(row.argmax())
        words = word_attention(model, tokenizer, *text)
        spans = [(word, f"background: rgba(234, 88, 12, {0.75 * weight:.2f})") for word, weight in words[:MOST_WORDS]]
        spans += [("...", "")] if len(words) > MOST_WORDS else []
        line = _line(f"{labels[predicted]} {row[predicted]:.0%}", predicted == target)
        rows.append((render(SPANS, spans=spans), render(SPANS, spans=[line]), labels[target]))
    caption = (
        "Test texts; the worst mistakes come first. The background of a word is the stronger, the larger its attention "
        "is (attention rollout over all layers)."
    )
    table = render_table(("text", "prediction", "target"), rows)
    return Panel("Predictions and attention", table, caption, wide=True)


@torch.no_grad()
def masked_tokens_panel(model: TextEncoder, tokenizer: Tokenizer, test: MaskedTexts, indices: Sequence[int]) -> Panel:
    model.eval()
    rows = []
    for index in indices:
        inputs, targets = test[index]
        masked = targets != IGNORE
        probabilities = model(inputs[None], where=masked[None]).softmax(dim=-1)
        names, predictions = [], []
        for target, row in zip(targets[masked].tolist(), probabilities, strict=True):
            best, ids = row.topk(min(3, len(row)))
            shown = ", ".join(f"{tokenizer.token(int(i))} {p:.0%}" for i, p in zip(ids, best, strict=True))
            names.append((tokenizer.token(target), "display: block"))
            predictions.append(_line(shown, int(ids[0]) == target))
        inside = slice(len(tokenizer.before), len(inputs) - len(tokenizer.after))
        tokens = zip(inputs.tolist()[inside], masked.tolist()[inside], strict=True)
        text = [(tokenizer.token(number), f"color: {BLUE}; font-weight: bold" if m else "") for number, m in tokens]
        rows.append([render(SPANS, spans=spans) for spans in (text, names, predictions)])
    caption = (
        "Test texts with masked tokens in blue (a few of them are replaced by another token, or left as they are), and "
        "the most probable predictions."
    )
    return Panel("Masked tokens", render_table(("text", "target", "predictions"), rows), caption, wide=True)


def neighbours_panel(
    texts: Sequence[str], before: Float[np.ndarray, "n d"], after: Float[np.ndarray, "n e"], queries: int = 6
) -> Panel:
    """Some texts, and those nearest to each. before, after: the features of all texts at the start and at the end."""
    rows = []
    for query, *neighbours in nearest_before_and_after(before, after, queries):
        cells = [[(shortened(texts[number], MOST_LETTERS), NEIGHBOUR) for number in part] for part in neighbours]
        cells = [[(shortened(texts[query], MOST_LETTERS), "")], *cells]
        rows.append([render(SPANS, spans=spans) for spans in cells])
    caption = (
        f"Validation texts, and the nearest to each among {len(texts):,} by the angle between the features, before and "
        "after training."
    )
    table = render_table(("text", "nearest before training", "nearest after training"), rows)
    return Panel("Neighbours", table, caption, wide=True)


def _line(text: str, is_correct: bool) -> tuple[str, str]:
    """A line of a cell, and its style."""
    return text, f"display: block; color: {CORRECT if is_correct else WRONG}"
