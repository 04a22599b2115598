"""A small convolutional network in the recipe's place: `python -m benchmarks.results.small_cnn spoken-digits`.

Three convolutions of 3 x 3 with batch norm and pooling, then the mean over time and frequency, as is usual for this
data set; features, augmentation and training are those of the recipe, and it takes the recipe's options.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from audio import AST, ASTConfig
from audio.clips import Waveforms
from audio.train import AUDIO, AudioExperiment, make_task, spoken_digits
from core.experiments import ExperimentTask, train_command

WIDTHS = (32, 64, 128)


class SmallCNN(AST):
    """An AST with convolutions in place of its embedding and its encoder."""

    def __init__(self, config: ASTConfig | Mapping[str, Any]):
        super().__init__(config)
        del self.embed, self.encoder, self.head_norm
        self.convolutions = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
            for before, width in zip((1, *WIDTHS), WIDTHS, strict=False)
        )
        self.head = nn.Linear(WIDTHS[-1], self.config.classes)

    def features(self, waveforms: Waveforms, lengths: Int[Tensor, "b"] | None = None) -> Float[Tensor, "b d"]:
        spectrograms, frames = self.spectrograms(waveforms, lengths)
        assert frames is not None
        if self.training:
            spectrograms = self.augmented(spectrograms, frames)
        x = self._real(spectrograms[:, None], frames)
        for convolution in self.convolutions:
            x = nn.functional.max_pool2d(self._real(convolution(x), frames), 2, ceil_mode=True)
            frames = (frames + 1) // 2
        return x.mean(dim=2).sum(dim=2) / frames[:, None]

    @staticmethod
    def _real(x: Float[Tensor, "b c mel frames"], frames: Int[Tensor, "b"]) -> Float[Tensor, "b c mel frames"]:
        """0 after the end of each clip, so that nothing depends on its padding."""
        return x * (torch.arange(x.shape[3], device=x.device) < frames[:, None])[:, None, None]


def make_small_task(experiment: AudioExperiment) -> ExperimentTask:
    task = make_task(experiment)
    return replace(task, model=SmallCNN(task.model.config), plots=lambda fit: [], looks=lambda fit: [])


SMALL = replace(AUDIO, name="benchmarks.results.small_cnn", experiments=(spoken_digits,), task=make_small_task)

if __name__ == "__main__":
    train_command(SMALL)
