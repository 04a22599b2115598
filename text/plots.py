"""What a model reads, drawn: texts with what was told of them, hidden words, and where attention goes."""

import html
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from core import IGNORE, attention_rollout, record_attention
from core.experiments import Panel
from core.experiments.figures import figure

from .datasets import MaskedTexts
from .model import TextEncoder
from .tokenizer import Tokenizer

Words = list[tuple[str, float]]
MOST_LINES = 400  # of a picture; matplotlib's hold 65,536 pixels


@torch.no_grad()
def word_attention(model: TextEncoder, tokenizer: Tokenizer, text: str) -> Words:
    """Each word and how much of it reaches the pooled vector: attention rolled out over all layers; the most is 1."""
    model.eval()
    [ids], room = tokenizer.encode([text]), tokenizer.room(model.config.max_length)
    skipped = max(len(ids) - room, 0) if tokenizer.cuts_left else 0
    kept = ids[skipped : skipped + room]
    framed = torch.tensor([tokenizer.frame(kept)])
    with record_attention() as calls:
        model.encode(framed)
    flow = attention_rollout([call.weights for call in calls])[0]
    prompt = len(flow) - framed.shape[1]  # tokens of an adapter, before the others
    flow = flow[prompt:, prompt:]
    reached = flow[0] if model.config.pool == "cls" else flow.mean(dim=0)
    reached = reached[len(tokenizer.before) :][: len(kept)].tolist()
    words, start = [], -skipped
    for word, count in tokenizer.words(text):
        if start + count > 0 and start < len(kept):
            words.append((word, sum(reached[max(start, 0) : start + count])))
        start += count
    most = max(weight for _, weight in words)
    return [(word, weight / most) for word, weight in words]


def draw_words(words: Words, title: str, columns: int = 100) -> Figure:
    """The text in lines, each word on a ground the stronger the more it weighs; no more lines than a picture holds."""
    lines: list[list[tuple[int, str, float]]] = [[]]
    column = 0
    for word, weight in words:
        for start in range(0, len(word), columns):  # what is longer than a line
            part = word[start : start + columns]
            if column and column + len(part) > columns:
                lines.append([])
                column = 0
            lines[-1].append((column, part, weight))
            column += len(part) + 1
    if len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES], [(0, "...", 0.0)]]
    # A letter of DejaVu Sans Mono is 0.602 times as wide as the font is high.
    fig, [[axis]] = figure(columns * 9 * 0.602 / 72 + 0.3, 0.24 * len(lines) + 0.5)
    axis.set(xlim=(-1, columns + 1), ylim=(len(lines), -0.5))
    axis.axis("off")
    axis.set_title(title, fontsize=9, loc="left", parse_math=False)
    for row, line in enumerate(lines):
        for column, word, weight in line:
            ground = {"facecolor": "#ea580c", "alpha": 0.75 * weight, "edgecolor": "none", "pad": 1.5}
            axis.text(column, row + 0.5, word, family="monospace", fontsize=9, va="center", bbox=ground)
    return fig


def texts_panel(
    model: TextEncoder,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    targets: Sequence[int],
    probabilities: Float[Tensor, "n classes"],
    labels: Sequence[str],
) -> Panel:
    rows = "<tr><th>text</th><th>predicted</th><th>truly</th></tr>"
    for text, target, chances in zip(texts, targets, probabilities, strict=True):
        guess = int(chances.argmax())
        color = "#15803d" if guess == target else "#dc2626"
        rows += (
            f"<tr><td>{_heated(word_attention(model, tokenizer, text))}</td>"
            f"<td style='color:{color}'>{html.escape(labels[guess])} {chances[guess]:.0%}</td>"
            f"<td>{html.escape(labels[target])}</td></tr>"
        )
    caption = (
        "Test texts, the worst mistakes first. The stronger a word's ground, the more of it reaches the decision "
        "(attention rolled out over all layers)."
    )
    return Panel("What it says, and where it looks", f"<table>{rows}</table>", caption, wide=True)


def numbers_panel(targets: Float[Tensor, "n"], predictions: Float[Tensor, "n"]) -> Panel:
    fig, [[axis]] = figure(4.5, 4)
    axis.plot(targets, predictions, ".", markersize=4, alpha=0.5)
    axis.axline((float(targets.mean()), float(targets.mean())), slope=1, color="#94a3b8", linewidth=1)
    axis.set_xlabel("true")
    axis.set_ylabel("predicted")
    return Panel("Number by number", fig, "Each point is a test text; on the line, it is told exactly.")


@torch.no_grad()
def hidden_words_panel(model: TextEncoder, tokenizer: Tokenizer, test: MaskedTexts, indices: Sequence[int]) -> Panel:
    rows = "<tr><th>text</th><th>hidden</th><th>guesses</th></tr>"
    model.eval()
    for index in indices:
        inputs, targets = test[index]
        where = targets != IGNORE
        chances = model(inputs[None], where=where[None]).softmax(dim=-1)
        truth, guesses = [], []
        for target, row in zip(targets[where].tolist(), chances, strict=True):
            best, words = row.topk(min(3, len(row)))
            color = "#15803d" if int(words[0]) == target else "#dc2626"
            truth.append(html.escape(tokenizer.token(target)))
            shown = ", ".join(f"{tokenizer.token(int(w))} {p:.0%}" for w, p in zip(words, best, strict=True))
            guesses.append(f"<span style='color:{color}'>{html.escape(shown)}</span>")
        rows += (
            f"<tr><td>{_gapped(inputs, where, tokenizer)}</td><td>{'<br>'.join(truth)}</td>"
            f"<td>{'<br>'.join(guesses)}</td></tr>"
        )
    caption = "Test texts with hidden words (a few are shown as another word, or as they are), and the best guesses."
    return Panel("What it guesses", f"<table>{rows}</table>", caption, wide=True)


def _heated(words: Words, most: int = 60) -> str:
    spans = (
        f"<span style='background:rgba(234,88,12,{0.75 * weight:.2f})'>{html.escape(word)}</span>"
        for word, weight in words[:most]
    )
    return " ".join(spans) + (" ..." if len(words) > most else "")


def _gapped(inputs: Int[Tensor, "n"], where, tokenizer: Tokenizer) -> str:
    """The text with its hidden words marked."""
    spans: list[str] = []
    inside = slice(len(tokenizer.before), len(inputs) - len(tokenizer.after))
    for number, hidden in zip(inputs.tolist()[inside], where.tolist()[inside], strict=True):
        token = html.escape(tokenizer.token(number))
        spans.append(f"<b style='color:#2563eb'>{token}</b>" if hidden else token)
    return " ".join(spans)
