"""The tasks of texts: what is learnt of them, beside their classes."""

from array import array
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from core import MaskedTokens, UserError
from core.experiments import ExperimentTask, Panel
from core.experiments.adaptation import adaptation_task
from core.experiments.build import model_to_train, regression_task
from core.experiments.features import evenly_spaced
from core.models.targets import number_head
from core.training.loop import Fit

from .baselines import (
    TFIDF,
    TFIDF_COSINE,
    class_numbers,
    comparison_panel,
    tfidf_pairs,
    tfidf_predictions,
    unigram_entropy,
)
from .datasets import Manifest, MaskedTexts, TextData, Texts
from .model import TextConfig, TextEncoder
from .pairing import SCALE, PairContrastive, PairEncoder, PairScores
from .plots import masked_tokens_panel, neighbours_panel
from .tagging import BASELINE, EntityTagging, baseline_score, kinds_panel, tagging_of, tags_panel
from .teacher import load_token_teacher


def tags_task(
    config: TextConfig, start: TextEncoder | None, data: TextData, common: Mapping[str, Any]
) -> ExperimentTask:
    """Predict a tag for each word. common: further fields of the task."""
    objective = tagging_of(data)
    head = {"head": "tags", "classes": len(data.labels), "labels": data.labels, "multilabel": False}

    def plots(fit: Fit) -> list[Panel]:
        kinds = [kinds_panel(data, fit.results)] if isinstance(objective, EntityTagging) else []
        return [tags_panel(data, fit.results, evenly_spaced(len(data.test), 18)), *kinds]

    return ExperimentTask(
        model=model_to_train(TextEncoder, replace(config, **head), start),
        objective=objective,
        **data.parts(),
        split_note=data.note,
        baseline=lambda: (BASELINE, baseline_score(data, objective)),
        plots=plots,
        **common,
    )


def tokens_task(
    config: TextConfig, start: TextEncoder | None, data: TextData, common: Mapping[str, Any]
) -> ExperimentTask:
    """Predict masked tokens. common: further fields of the task."""

    test = data.test
    assert isinstance(test, MaskedTexts)

    def plot(fit: Fit) -> list[Panel]:
        indices = evenly_spaced(len(test), 12)
        short = [index for index in indices if test.token_counts[index] <= 80]
        return [masked_tokens_panel(fit.model, data.tokenizer, test, short or indices[:1])]

    return ExperimentTask(
        model=model_to_train(TextEncoder, replace(config, head="tokens"), start),
        objective=MaskedTokens(),
        **data.parts(),
        split_note=data.note,
        baseline=lambda: ("unigram entropy", unigram_entropy(data)),
        plots=plot,
        **common,
    )


def unlabelled_task(
    config: TextConfig, start: TextEncoder | None, data: TextData, common: Mapping[str, Any], experiment: Any
) -> ExperimentTask:
    """Learn by masked latent prediction, or from a teacher's tokens. common: further fields of the task."""
    plain = {
        split: Texts(part.texts, [array("i", ids.tolist()) for ids in part.ids]) for split, part in data.parts().items()
    }

    return adaptation_task(
        model_to_train(TextEncoder, replace(config, head="none", labels=()), start),
        experiment,
        replace(data, **plain),
        grid=lambda sample: (len(sample[0]), 1),
        frame=(len(data.tokenizer.before), len(data.tokenizer.after)),
        features=TextEncoder.pooled_texts,
        labelled=lambda path: Manifest(path=path).read(config.max_length, data.tokenizer),
        neighbours=lambda indices, before, after: neighbours_panel(
            [plain["validation"].texts[index].text for index in indices], before, after
        ),
        teacher=load_token_teacher(experiment.distill.teacher, config, data.tokenizer),
        **common,
    )


def pairs_task(
    config: TextConfig, start: TextEncoder | None, data: TextData, common: Mapping[str, Any], sizes: tuple[int, ...]
) -> ExperimentTask:
    """Learn sentence vectors from pairs. common: further fields of the task. sizes: of shortened vectors."""
    width = config.sentence_width or config.encoder.dim
    if too_long := [size for size in sizes if size >= width]:
        raise UserError(f"--matryoshka {too_long[0]}: the vectors have {width} numbers; choose fewer.")
    scored = isinstance(data.train.texts[0].target, float)
    vectors = {"sentence_pool": config.pool, "sentence_norm": True, "sentence_prompt": ""}
    encoder = model_to_train(TextEncoder, replace(config, head="none", labels=(), **vectors), start)
    return ExperimentTask(
        model=PairEncoder(encoder, None if scored else SCALE),
        objective=PairScores(sizes) if scored else PairContrastive(sizes=sizes),
        **data.parts(),
        split_note=data.note,
        saved_part=lambda model: model.encoder,
        baseline=lambda: (TFIDF_COSINE, tfidf_pairs(data)),
        **common,
    )


def numbers_task(
    config: TextConfig, start: TextEncoder | None, data: TextData, common: Mapping[str, Any]
) -> ExperimentTask:
    """Predict a number for each text. common: further fields of the task."""
    config = replace(config, head="classes", **number_head([text.target for text in data.train.texts]))
    return regression_task(model_to_train(TextEncoder, config, start), data, **common)


def tfidf_baseline(data: TextData) -> dict[str, Any]:
    """The fields of a task that compare it with TF-IDF."""
    predictions = cache(lambda: tfidf_predictions(data))  # for the summary and for the plot
    targets = class_numbers(data.test)

    def plot(fit: Fit) -> list[Panel]:
        predicted = fit.results["probabilities"].argmax(dim=1).numpy()
        return [comparison_panel(predicted == fit.results["targets"].numpy(), predictions() == targets)]

    return {"baseline": lambda: (TFIDF, float((predictions() == targets).mean())), "plots": plot}
