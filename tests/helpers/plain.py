"""Runs without the pictures and the baseline, which take most of a short run's time."""

from dataclasses import replace

from core.experiments import Modality


def plain(modality: Modality) -> Modality:
    def make_task(experiment):
        return replace(modality.task(experiment), plots=lambda found: [], baseline=lambda: None)

    return replace(modality, task=make_task)
