"""Train a text encoder: `python -m text.train EXPERIMENT [options]`."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import field, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from core import IGNORE, Classification, EncoderConfig, MaskedTokens, Objective, Regression, UserError
from core.config import configclass
from core.experiments import Experiment, Modality, Panel, Task, train_command
from core.experiments.fixed import name_text
from core.experiments.plots import confusion_matrix, per_class_metrics
from core.experiments.report import render_table
from core.files import write_text
from core.models.tuning import start_from, started_config
from core.training import TrainConfig
from core.training.loop import Fit

from .datasets import DataConfig, TextData, Texts, collate, learns_words, read_data
from .model import LARGEST, TextConfig, TextEncoder
from .plots import masked_tokens_panel, predictions_panel, regression_panel
from .pretrained import load_pretrained
from .tokenizer import Tokenizer, TokenizerConfig

VOCABULARY = "tokenizer.json"
TFIDF = "TF-IDF + logistic regression"
MOST_FOR_TFIDF = 50_000  # training texts; with more it takes longer than it is worth

# What a started model keeps of its experiment: its head and dropout.
OWN = ("pool", "head_hidden", "head_bias", "head_activation", "head_norm", "head_dropout", "dropout")

SMALL = EncoderConfig(dim=128, depth=2, heads=4, mlp_dim=512, rotary="1d")
BERT_SMALL = EncoderConfig(dim=512, depth=4, heads=8, norm_order="post", norm_eps=1e-12, dropout=0.1)


@configclass
class TextExperiment(Experiment):
    data: DataConfig = field(default_factory=DataConfig)
    model: TextConfig = field(default_factory=TextConfig)


def docstrings() -> TextExperiment:
    """Which of twelve standard-library packages is a docstring from? Read from Python's own source: two minutes."""
    return TextExperiment(
        data=DataConfig(name="docstrings", tokenizer=TokenizerConfig(vocab_size=4096)),
        model=TextConfig(
            max_length=128,
            positions="none",
            pool="mean",
            head_dropout=0.1,
            encoder=replace(SMALL, dropout=0.1),
        ),
        train=TrainConfig(steps=1000, batch_size=32, lr=1e-3, warmup=100, precision="fp32", eval_every=250),
    )


def manuals() -> TextExperiment:
    """Hidden words of Python's language reference and docstrings: three minutes. Start others with --init."""
    return TextExperiment(
        data=DataConfig(name="manuals", test_fraction=0.1, tokenizer=TokenizerConfig(vocab_size=4096)),
        model=TextConfig(max_length=128, positions="none", head_activation="gelu", head_norm=True, encoder=SMALL),
        train=TrainConfig(steps=2400, batch_size=16, lr=3e-3, warmup=240, betas=(0.9, 0.98), weight_decay=0.01),
    )


def manifest() -> TextExperiment:
    """Your own texts, listed in a CSV or JSONL file with text, label and perhaps split: --data.path FILE."""
    return TextExperiment(
        data=DataConfig(name="manifest"),
        model=TextConfig(max_length=256, dropout=0.1, head_dropout=0.1, pool="mean", encoder=BERT_SMALL),
        train=TrainConfig(steps=2000, batch_size=32, lr=3e-4, warmup=200),
    )


def lines() -> TextExperiment:
    """Hidden words of your own texts, a text file or a folder of them, to start others from: --data.path PATH."""
    return TextExperiment(
        data=DataConfig(name="lines", tokenizer=TokenizerConfig(vocab_size=16_384)),
        model=TextConfig(max_length=256, dropout=0.1, head_activation="gelu", head_norm=True, encoder=BERT_SMALL),
        train=TrainConfig(steps=20_000, batch_size=64, lr=5e-4, warmup=1000, eval_every=1000, save_every=1000),
    )


def huggingface() -> TextExperiment:
    """A data set of the Hugging Face hub (needs the package datasets): --data.dataset NAME."""
    return replace(manifest(), data=DataConfig(name="huggingface"))


def make_task(experiment: TextExperiment) -> Task:
    config, start, tokenizer = experiment.model, None, None
    if experiment.init is not None:
        if experiment.data.tokenizer.path is not None:
            raise UserError("--init brings its own tokenizer: leave out --data.tokenizer.path.")
        start, tokenizer = load_pretrained(experiment.init)
        config = started_config(start.config, config, OWN)
        config = replace(config, pool=start.config.sentence_pool or config.pool)  # its own, if it was trained for one
    if experiment.resume and (experiment.out / VOCABULARY).exists():  # the one that the run began with
        tokenizer = Tokenizer.load(experiment.out / VOCABULARY, extend=False)
    data = read_data(experiment.data, config.max_length, tokenizer)
    config = replace(config, **head_of(experiment, data))
    if start is None:
        config = replace(config, vocab_size=data.tokenizer.size)
    model = TextEncoder(config)
    words = cache(partial(tfidf, data)) if data.labels and len(data.train) <= MOST_FOR_TFIDF else None
    if start is not None:
        start_from(model, start)
    return Task(
        model=model,
        objective=make_objective(experiment, config),
        train=data.train,
        test=data.test,
        collate=partial(collate, pad=data.tokenizer.pad),
        in_memory=True,
        baseline=make_baseline(data, config.head, words),
        panels=lambda found: report_panels(found, data, words),
        samples={"train": named_texts(data.train, data.labels), "test": named_texts(data.test, data.labels)},
        first=lambda run: data.tokenizer.save(run / VOCABULARY),
        beside=lambda folder: data.tokenizer.save(folder / VOCABULARY),
        finish=lambda run: save_samples(run, data),
    )


def head_of(experiment: TextExperiment, data: TextData) -> dict:
    """What the data ask of the model's head."""
    if learns_words(experiment.data):
        return {"head": "tokens"}
    if data.labels:
        return {"head": "classes", "classes": len(data.labels), "labels": data.labels, "multilabel": False}
    mean, std = standardised([text.target for text in data.train.texts])
    found = {"classes": 1, "labels": (), "multilabel": False, "target_mean": mean, "target_std": std}
    return {"head": "classes", **found}


def standardised(numbers: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of labels; 1 in place of one that is nothing but rounding."""
    largest = max(map(abs, numbers))
    if largest > LARGEST:
        raise UserError(f"The labels reach {largest:.3g}; those to be learnt must not exceed {LARGEST:g}: scale them.")
    scale = 2.0 ** math.frexp(largest)[1]  # the squares of small numbers would be 0
    std = float(np.std(np.divide(numbers, scale)))
    return float(np.mean(numbers)), std * scale if std > 1e-14 * largest / scale else 1.0


def make_objective(experiment: TextExperiment, config: TextConfig) -> Objective:
    if config.head == "tokens":
        return MaskedTokens()
    if config.predicts_number:
        return Regression(mean=config.target_mean, std=config.target_std)
    return Classification(label_smoothing=experiment.train.label_smoothing)


def make_baseline(
    data: TextData, head: str, words: Callable[[], np.ndarray] | None
) -> Callable[[], tuple[str, float] | None]:
    if head == "tokens":
        return lambda: ("unigram entropy", unigrams(data))
    return lambda: (TFIDF, float((words() == class_numbers(data.test)).mean())) if words else None


def tfidf(data: TextData) -> np.ndarray:
    """The test texts' classes by logistic regression on weighted counts of words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts = [text.text for text in data.train.texts]
    words = {} if any(re.search(r"\w\w", text) for text in texts) else {"token_pattern": r"\S+"}
    counts = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), **words)
    pipeline = make_pipeline(counts, LogisticRegression(C=10.0, max_iter=1000))
    pipeline.fit(texts, class_numbers(data.train))
    return pipeline.predict([text.text for text in data.test.texts])


def class_numbers(texts: Texts) -> np.ndarray:
    return np.array([text.target for text in texts.texts])


def unigrams(data: TextData) -> float:
    """Nats per hidden token of the test set, told from how frequent each token is in training (one added to each)."""
    before, after = len(data.tokenizer.before), len(data.tokenizer.after)
    counts = Counter(number for ids in data.train.ids for number in ids.tolist()[before : len(ids) - after])
    total = counts.total() + data.tokenizer.size
    hidden = torch.cat([targets[targets != IGNORE] for _, targets in (data.test[i] for i in range(len(data.test)))])
    return float(np.mean([np.log(total / (counts[number] + 1)) for number in hidden.tolist()]))


def report_panels(found: Fit, data: TextData, words: Callable[[], np.ndarray] | None) -> list[Panel]:
    model, results = found.model, found.results
    if model.config.head == "tokens":
        walk = [int(i * len(data.test) / 12) for i in range(12)]
        short = [i for i in dict.fromkeys(walk) if data.test.lengths[i] <= 80]
        return [masked_tokens_panel(model, data.tokenizer, data.test, short or walk[:1])]
    if not data.labels:
        return [regression_panel(results["targets"], results["predictions"])]
    targets, chances = results["targets"], results["probabilities"]
    predictions = chances.argmax(dim=-1)
    # The surest mistakes first, then an even walk through the test set.
    wrong = (predictions != targets).nonzero().flatten()
    wrong = wrong[chances[wrong, targets[wrong]].argsort()][:6].tolist()
    walk = [int(i * len(targets) / 12) for i in range(12)]
    shown = [*wrong, *(i for i in dict.fromkeys(walk) if i not in wrong)]
    texts = [data.test.texts[i].text for i in shown]
    return [
        predictions_panel(model, data.tokenizer, texts, targets[shown].tolist(), chances[shown], data.labels),
        *([baseline_panel((predictions == targets).numpy(), words() == class_numbers(data.test))] if words else []),
        confusion_matrix(targets.numpy(), predictions.numpy(), data.labels),
        per_class_metrics(targets.numpy(), predictions.numpy(), data.labels),
    ]


def baseline_panel(ours: np.ndarray, theirs: np.ndarray) -> Panel:
    """The correct predictions of the model beside those of the baseline."""
    ahead = 100 * (ours.mean() - theirs.mean())
    rows = [
        (name, f"{correct.mean():.2%}", f"{(correct & ~other).sum():,}")
        for name, correct, other in (("this model", ours, theirs), (TFIDF, theirs, ours))
    ]
    table = render_table(("", "accuracy", "texts that only it predicts correctly"), rows)
    caption = f"This model is {abs(ahead):.1f} points {'above' if ahead >= 0 else 'below'} {TFIDF}."
    return Panel("Comparison with the baseline", table, caption)


def named_texts(texts: Texts, labels: Sequence[str]) -> list[tuple[str, str]]:
    return [
        (name_text(text.text), str(label))
        for text in texts.texts
        for label in [labels[text.target] if labels else text.target]
    ]


def save_samples(run: Path, data: TextData) -> None:
    """A few test texts, one a line, to try text.predict on."""
    texts = [data.test.texts[i].text for i in range(0, len(data.test), max(1, len(data.test) // 10))]
    write_text(run / "samples.txt", "".join(" ".join(text.split()) + "\n" for text in texts))


TEXT = Modality(
    name="text",
    experiments=(docstrings, manuals, manifest, lines, huggingface),
    task=make_task,
    features=TextEncoder.pooled_texts,
)

if __name__ == "__main__":
    train_command(TEXT)
