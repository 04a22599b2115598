"""Tags of words: the objective with the F1 of entities, a baseline, and what a model says of a text."""

import importlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Int, Shaped
from torch import Tensor, nn

from core import IGNORE, Batch, MaskedTokens, UserError
from core.experiments import Panel
from core.experiments.figures import CORRECT, WRONG
from core.experiments.report import render, render_table

from .datasets import TextData
from .model import TextEncoder
from .plots import SPANS
from .tagged import TaggedTexts
from .tokenizer import Tokenizer

Entities = set[tuple[str, int, int]]
"""Kind, first and last word of each."""
OUTSIDE = "O"
ENTITY_TAG = re.compile(r"[BIESLU]-.+")  # of BIO, and of BIOES or BILOU
OTHER_NAMES = {"L-": "E-", "U-": "S-"}  # of BILOU
# A letter of a script without blanks; or what stands between blanks without the marks around it; or such a mark.
CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{CJK}]|[^\W{CJK}](?:[^\s{CJK}]*[^\W{CJK}])?|[^\w\s]")
BASELINE = "most frequent tag of each word"


def is_entities(labels: Sequence[str]) -> bool:
    """Whether tags mark entities of several words (B-PER, I-PER, O), and do not each stand for themselves (NOUN)."""
    marks = [label for label in labels if label != OUTSIDE]
    return bool(marks) and all(ENTITY_TAG.fullmatch(label) for label in marks)


def entities(tags: Sequence[str]) -> Entities:
    """As conlleval finds them: an entity may begin with I, and a kind that changes begins another."""
    return set(_seqeval().get_entities(*standard([tags])))


def _seqeval() -> Any:
    try:
        return importlib.import_module("seqeval.metrics.sequence_labeling")
    except ImportError:
        raise UserError('Entities need the package seqeval: pip install seqeval, or -e ".[text]".') from None


@dataclass(frozen=True)
class Tagging(MaskedTokens):
    """A tag for the first piece of each word; the targets of all other tokens are IGNORE.

    labels: the names of the tags. longest: words of the longest text.
    """

    labels: tuple[str, ...] = ()
    longest: int = 0
    primary = "accuracy"
    lower_is_better = False
    percent = True

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Shaped[Tensor, "texts ..."]]:
        found, packing = batch.targets != IGNORE, batch.packing
        logits, targets = model(*batch.inputs, where=found).float(), batch.targets[found]
        if packing is None:
            text, count = found.nonzero()[:, 0], len(found)
        else:
            text, count = packing.tokens_on(found.device, found.shape[1]).sequence[found[0]], len(packing)
        counts = torch.bincount(text, minlength=count)
        word = torch.arange(len(text), device=text.device) - (counts.cumsum(0) - counts)[text]
        rows = targets.new_full((count, self.longest), IGNORE)
        losses = F.cross_entropy(logits, targets, reduction="none")
        return {
            "loss": torch.zeros(count, device=logits.device).index_add(0, text, losses),
            "targets": rows.index_put((text, word), targets),
            "predictions": rows.index_put((text, word), logits.argmax(dim=-1)),
        }

    def metrics(self, results: Mapping[str, Shaped[Tensor, "b ..."]]) -> dict[str, float]:
        """accuracy: of tags."""
        targets, predictions = results["targets"], results["predictions"]
        valid = targets != IGNORE
        correct = (targets == predictions)[valid]
        return {"loss": (results["loss"].sum() / valid.sum()).item(), "accuracy": correct.float().mean().item()}


@dataclass(frozen=True)
class EntityTagging(Tagging):
    """Tags that mark entities; an entity is found if its kind, its first and its last word are right."""

    primary = "f1"

    def metrics(self, results: Mapping[str, Shaped[Tensor, "b ..."]]) -> dict[str, float]:
        """f1, precision, recall: of entities, all kinds together."""
        tags = (named(results[name], self.labels) for name in ("targets", "predictions"))
        return super().metrics(results) | entity_scores(*tags)


def tagging_of(data: TextData) -> Tagging:
    longest = max(len(text.words) for part in data.parts().values() for text in part.texts)
    return (EntityTagging if is_entities(data.labels) else Tagging)(data.labels, longest)


def named(tags: Int[Tensor, "texts words"], labels: Sequence[str]) -> list[list[str]]:
    names = dict(enumerate(labels))
    return [[names[tag] for tag in row if tag != IGNORE] for row in tags.tolist()]


def entity_scores(targets: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> dict[str, float]:
    scores = _seqeval().precision_recall_fscore_support
    precision, recall, f1, _ = scores(standard(targets), standard(predictions), average="micro", zero_division=0)
    return {"f1": float(f1), "precision": float(precision), "recall": float(recall)}


def standard(tags: Sequence[Sequence[str]]) -> list[list[str]]:
    """Tags of BILOU under their names in BIOES, which seqeval knows."""
    return [[OTHER_NAMES.get(tag[:2], tag[:2]) + tag[2:] for tag in row] for row in tags]


def baseline_score(data: TextData, objective: Tagging) -> float:
    """The objective's metric of the test set if each word gets the tag that it has most often in training."""
    assert isinstance(data.test, TaggedTexts)
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for text in data.train.texts:
        for word, tag in zip(text.words, text.tags, strict=True):
            counts[word][tag] += 1
    usual = sum(counts.values(), Counter()).most_common(1)[0][0]
    best = {word: of_word.most_common(1)[0][0] for word, of_word in counts.items()}
    pairs = [
        [(text.tags[word], best.get(text.words[word], usual)) for word in kept]
        for text, kept in zip(data.test.texts, data.test.kept, strict=True)
    ]
    if objective.primary == "accuracy":
        flat = [target == found for row in pairs for target, found in row]
        return sum(flat) / len(flat)
    targets, guesses = ([[data.labels[pair[side]] for pair in row] for row in pairs] for side in (0, 1))
    return entity_scores(targets, guesses)["f1"]


class Said(NamedTuple):
    """An entity, or a word with a tag of its own."""

    text: str
    label: str
    probability: float
    """Of the least certain of its words."""


@torch.no_grad()
def tags_of_text(model: TextEncoder, tokenizer: Tokenizer, text: str, cut: bool = False) -> list[Said] | None:
    """The entities of a text, or the tags of its words; None if it has more tokens than the model takes.

    cut: leave out the words beyond that instead. As in training, words are given to the model with blanks between.
    """
    words = [match.span() for match in WORD.finditer(text)]
    [ids], [first] = tokenizer.encode_words([[text[start:end] for start, end in words]])
    room = tokenizer.room(model.config.max_length)
    if len(ids) > room and not cut:
        return None
    found = [(span, place) for span, place in zip(words, first, strict=True) if place is not None and place < room]
    if not found:
        return []
    device = next(model.parameters()).device
    logits = model(torch.tensor([tokenizer.frame(ids[:room])], device=device))[0].float().cpu()
    places = torch.tensor([place for _, place in found]) + len(tokenizer.before)
    probabilities, best = logits[places].softmax(dim=-1).max(dim=-1)
    if not bool(logits.isfinite().all()):
        raise UserError("The model's outputs are not finite.")
    labels = model.config.labels or tuple(map(str, range(model.config.classes)))
    tags, certain = [labels[number] for number in best.tolist()], probabilities.tolist()
    chunks = entities(tags) if is_entities(labels) else {(tag, place, place) for place, tag in enumerate(tags)}
    return [
        Said(text[found[start][0][0] : found[end][0][1]], label, min(certain[start : end + 1]))
        for label, start, end in sorted(chunks, key=lambda chunk: chunk[1])
    ]


def tags_panel(data: TextData, results: Mapping[str, Tensor], indices: Sequence[int]) -> Panel:
    assert isinstance(data.test, TaggedTexts)
    targets, predictions = (named(results[name], data.labels) for name in ("targets", "predictions"))
    rows = []
    for index in indices:
        words = [data.test.texts[index].words[word] for word in data.test.kept[index]]
        spans = []
        for word, target, found in zip(words, targets[index], predictions[index], strict=True):
            if target == found == OUTSIDE:
                spans.append((word, ""))
            else:
                color = CORRECT if target == found else WRONG
                shown = found if target == found else f"{found} (not {target})"
                spans.append((f"{word} [{shown}]", f"color: {color}"))
        rows.append((render(SPANS, spans=spans),))
    caption = "Test texts. Behind a word stands the predicted tag, in green where it is right."
    return Panel("Tags", render_table(("text",), rows), caption, wide=True)


def kinds_panel(data: TextData, results: Mapping[str, Tensor]) -> Panel:
    """Precision, recall and F1 of each kind of entity."""
    both = (standard(named(results[name], data.labels)) for name in ("targets", "predictions"))
    report = _seqeval().classification_report(*both, output_dict=True, zero_division=0)
    rows = [
        (kind, *(f"{scores[name]:.1%}" for name in ("precision", "recall", "f1-score")), f"{scores['support']:,}")
        for kind, scores in report.items()
        if kind not in ("macro avg", "weighted avg")
    ]
    return Panel("Entities", render_table(("kind", "precision", "recall", "F1", "in the test texts"), rows))
