"""Labelled clips of files, decoded and changed when they are asked for, and batches of them."""

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from core import Batch, UserError
from core.data import Sample
from core.data.cache import DecodeCache
from core.data.shards import shards_of
from core.data.targets import Label, join_targets, target_of
from core.files import File

from .clips import AudioFormat, check_length, trimmed
from .decoding import read_audio

CLIPS_READ = 100  # of a class at most, in search of one that is not silent


class Clips(Dataset):
    """Samples of (path, label), decoded and transformed when asked for.

    count: gives the tokens of each of some paths, or None if they are not known.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        read: Callable,
        transform: Callable,
        form: AudioFormat,
        classes: int,
        count: Callable[[list[File]], list[int] | None] | None = None,
    ):
        self.samples, self.read, self.transform, self.form, self.classes = samples, read, transform, form, classes
        self.count, self.shards = count, shards_of(samples)

    @cached_property
    def class_numbers(self) -> list[Label]:
        return [label for _, label in self.samples]

    @cached_property
    def token_counts(self) -> list[int] | None:
        """Tokens of each clip, for batches of so many tokens; None if they are not known without decoding."""
        return None if self.count is None else self.count([path for path, _ in self.samples])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "samples"], int | float | Float[Tensor, "classes"]]:
        path, label = self.samples[index]
        clip = self.transform(self.read(path))
        check_length(f"{path}: a clip", len(clip), self.form)
        return clip, target_of(label, self.classes)


def read_clip(path: File, form: AudioFormat, cache: DecodeCache | None = None) -> Float[Tensor, "samples"]:
    """An audio file as a model takes it: in one channel, at its sample rate, and trimmed if its format says so."""
    rate = form.sample_rate
    if cache is None:
        return trimmed(read_audio(path, rate), form)
    clip = cache.get(path, f"mono, {rate} Hz", lambda: read_audio(path, rate).numpy())
    return trimmed(torch.from_numpy(clip), form)


def collate(
    samples: list[tuple[Float[Tensor, "_"], int | float | Float[Tensor, "classes"]]], padded: bool = False
) -> Batch:
    """A list of waveforms; padded: waveforms padded to the longest, and their lengths."""
    waveforms, targets = zip(*samples, strict=True)
    lengths = [len(waveform) for waveform in waveforms]
    targets = join_targets(targets)
    if padded:
        return Batch((pad_sequence([*waveforms], batch_first=True), torch.tensor(lengths)), targets)
    # Parts of one tensor: a loading process opens a file for each tensor that it hands over.
    return Batch(([*torch.cat(waveforms).split(lengths)],), targets)


def eval_transform(size: int | None) -> Callable[[Float[Tensor, "s"]], Float[Tensor, "t"]]:
    """The middle of a clip; size: samples, None for the whole."""

    def transform(clip: Float[Tensor, "s"]) -> Float[Tensor, "t"]:
        if size is None or len(clip) <= size:
            return clip
        return clip[(len(clip) - size) // 2 :][:size]

    return transform


def check_audible(
    train: Sequence[Sample], labels: Sequence[str], read: Callable[[File], Float[Tensor, "samples"]]
) -> None:
    """A class of nothing but silence cannot be learnt. Reads a file per class as a rule, and a hundred at most."""
    clips: list[list[File]] = [[] for _ in labels]
    for path, label in train:
        for number in label if isinstance(label, tuple) else (int(label),):
            clips[number].append(path)
    for label, paths in zip(labels, clips, strict=True):
        if not paths:
            raise UserError(f"Class {label!r} has no training clips, so it can't be learnt.")
        some = paths[:: -(-len(paths) // CLIPS_READ)]
        if not any(read(path).any() for path in some):
            which = "Every training clip" if len(some) == len(paths) else f"Each of {len(some)} training clips"
            raise UserError(f"{which} of class {label!r} is silent, so it can't be learnt.")
