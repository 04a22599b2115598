"""The panel of neighbours, in every modality: each sample beside those nearest to it at the start and at the end."""

import re

import numpy as np
import torch

from audio import AST, ASTConfig
from audio.plots import neighbours_panel as clips_panel
from core import EncoderConfig
from core.experiments.features import nearest_before_and_after
from text.plots import neighbours_panel as texts_panel
from vision.model import Preprocess
from vision.plots import neighbours_panel as images_panel

COUNT = 12
ANGLES = np.linspace(0, 1, COUNT)
BEFORE = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32)  # neighbours have like numbers
AFTER = BEFORE[np.arange(COUNT) * 5 % COUNT]
FOUND = nearest_before_and_after(BEFORE, AFTER, 3)


def test_which_are_shown():
    assert [query for query, *_ in FOUND] == [0, 4, 8]
    assert [set(before) for _, before, _ in FOUND] == [{1, 2, 3, 4}, {2, 3, 5, 6}, {6, 7, 9, 10}]
    place = np.arange(COUNT) * 5 % COUNT
    for query, _, after in FOUND:
        distances = np.abs(place - place[query])
        assert max(distances[after]) <= sorted(distances)[4] and query not in after


def shown(row):
    """Numbers of the images of a row of axes."""
    return [None if not axis.images else round(100 * float(axis.images[0].get_array()[0, 0])) for axis in row]


def expected(query, before, after):
    return [query, None, *before, None, *after]


def test_images():
    images = [torch.full((1, 4, 4 + number % 2), number / 100) for number in range(COUNT)]
    panel = images_panel(images, BEFORE, AFTER, Preprocess(mean=(0.0,), std=(1.0,)), queries=3)
    axes = np.array(panel.content.axes).reshape(3, 11)
    assert [shown(row) for row in axes] == [expected(*row) for row in FOUND]


def test_clips():
    encoder = EncoderConfig(dim=8, depth=1, heads=1)
    model = AST(ASTConfig(sample_rate=8_000, n_mels=16, max_frames=64, patch_size=8, stride=8, encoder=encoder))
    clips = [torch.randn(2000 + 200 * number) for number in range(COUNT)]
    panel = clips_panel(model, clips, BEFORE, AFTER, queries=3)
    for row, found in zip(np.array(panel.content.axes).reshape(3, 11), FOUND, strict=True):
        frames = [axis.images[0].get_array().shape[1] if axis.images else None for axis in row]
        lengths = [n if n is None else model.spectrograms(clips[n][None])[0].shape[-1] for n in expected(*found)]
        assert frames == lengths


def test_texts():
    """Long ones are cut, and what is in them is no markup."""
    texts = [f"<b>text {number}. " + "word " * 60 for number in range(COUNT)]
    page = str(texts_panel(texts, BEFORE, AFTER, queries=3).content)
    numbers = [int(number) for number in re.findall(r"&lt;b&gt;text (\d+)\.", page)]
    assert numbers == [number for query, before, after in FOUND for number in (query, *before, *after)]
    assert "<b>" not in page and len(page) < 10_000


def test_fewer_samples_than_places():
    images = [torch.full((1, 4, 4), number / 100) for number in range(3)]
    panel = images_panel(images, BEFORE[:3], AFTER[:3], Preprocess(mean=(0.0,), std=(1.0,)))
    axes = np.array(panel.content.axes).reshape(3, 11)
    assert shown(axes[1])[:5] == [1, None, *shown(axes[1])[2:4], None] and set(shown(axes[1])[2:4]) == {0, 2}
