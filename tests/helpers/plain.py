"""Runs without the plots and the baseline, which take most of a short run's time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from core.experiments import Modality, train_command


def plain(modality: Modality) -> Modality:
    def make_task(experiment):
        return replace(modality.task(experiment), plots=lambda found: [], baseline=lambda: None)

    return replace(modality, task=make_task)


def train_plainly(modality: Modality, words: Sequence[object]) -> None:
    """The training command."""
    with no_figures():
        train_command(plain(modality), [str(word) for word in words])


@contextmanager
def no_figures() -> Iterator[None]:
    """Inside, figures of reports are empty."""
    with patch("core.experiments.report.draw_figure", draw_nothing):
        yield


def draw_nothing(figure: Any, target: Any, **options: Any) -> None:
    target.write("<svg></svg>")
