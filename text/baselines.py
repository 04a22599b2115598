"""Simple methods to compare with: TF-IDF with logistic regression for classes, token frequencies for masked tokens."""

import re
from collections import Counter

import numpy as np
import torch
from jaxtyping import Bool, Int

from core import IGNORE
from core.experiments import Panel
from core.experiments.report import render_table
from core.objectives.regression import correlations

from .datasets import TextData, Texts

TFIDF_COSINE = "cosine of TF-IDF"
TFIDF = "TF-IDF + logistic regression"
MAX_TFIDF_TEXTS = 50_000  # training texts; more take too long


def tfidf_predictions(data: TextData) -> Int[np.ndarray, "n"]:
    """The classes of the test texts by logistic regression on weighted counts of words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts = [" ".join(text.texts) for text in data.train.texts]
    word = r"(?u)\b\w\w+\b" if any(re.search(r"\w\w", text) for text in texts) else r"\S+"
    counts = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=word)
    pipeline = make_pipeline(counts, LogisticRegression(C=10.0, max_iter=1000))
    pipeline.fit(texts, class_numbers(data.train))
    return pipeline.predict([" ".join(text.texts) for text in data.test.texts])


def class_numbers(texts: Texts) -> Int[np.ndarray, "n"]:
    return np.array([text.target for text in texts.texts])


def tfidf_pairs(data: TextData) -> float:
    """The metric of the test pairs by cosines of weighted counts: how often the nearest text is of the pair; with
    scores, Spearman's correlation with them."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    counts = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"\S+")
    counts.fit([part for text in data.train.texts for part in text.texts])
    first, second = (counts.transform([text.texts[side] for text in data.test.texts]) for side in (0, 1))
    targets = torch.tensor([text.target for text in data.test.texts])
    if targets.is_floating_point():
        cosines = torch.from_numpy(np.asarray(first.multiply(second).sum(axis=1)).ravel())
        return correlations(cosines, targets)["spearman"]
    nearest = [np.asarray((a @ b.T).argmax(axis=1)).ravel() for a, b in ((first, second), (second, first))]
    return float(np.mean([(targets[torch.from_numpy(each)] == targets).numpy() for each in nearest]))


def unigram_entropy(data: TextData) -> float:
    """Nats per masked token of the test set, predicted from the frequencies of tokens in training (plus one each)."""
    before, after = len(data.tokenizer.before), len(data.tokenizer.after)
    counts = Counter(token for ids in data.train.ids for token in ids.tolist()[before : len(ids) - after])
    total = counts.total() + data.tokenizer.size
    masked = torch.cat([targets[targets != IGNORE] for _, targets in (data.test[i] for i in range(len(data.test)))])
    return float(np.mean([np.log(total / (counts[token] + 1)) for token in masked.tolist()]))


def comparison_panel(model_correct: Bool[np.ndarray, "n"], tfidf_correct: Bool[np.ndarray, "n"]) -> Panel:
    """The model's accuracy beside that of TF-IDF, and the texts that only one of them classifies correctly."""
    both = ("this model", model_correct, tfidf_correct), (TFIDF, tfidf_correct, model_correct)
    rows = [(name, f"{own.mean():.2%}", f"{(own & ~other).sum():,}") for name, own, other in both]
    difference = 100 * (model_correct.mean() - tfidf_correct.mean())
    caption = f"This model is {abs(difference):.1f} points {'above' if difference >= 0 else 'below'} {TFIDF}."
    table = render_table(("method", "accuracy", "texts that only this method classifies correctly"), rows)
    return Panel("Comparison with the baseline", table, caption)
