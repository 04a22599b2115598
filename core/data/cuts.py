"""Cuts of samples into two parts, one to train on and one that is held out: the same for every seed."""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from ..errors import UserError

Cut = tuple[list[int], list[int]]
"""Indices of the samples to train on and of those that are held out, in ascending order."""
Classes = int | tuple[int, ...] | None
"""A sample's class number; the numbers of all its classes where samples have several; None without classes."""
ALL = -1  # counted like a class: every sample is in it
TRIES = 20  # random orders of the groups
NEAR_ENOUGH = 0.99  # of what is wanted


def cut(classes: Sequence[Classes], groups: Sequence[Hashable] | None, fraction: float) -> Cut:
    """Stratified by class, and without a group in both parts. The single sample of a class is trained on."""
    if not 0 < fraction < 1:
        raise UserError(f"The share of samples that is held out must be between 0 and 1, not {fraction}.")
    several = [() if c is None else (c,) if isinstance(c, int) else c for c in classes]
    if groups is not None:
        return group_split(several, groups, fraction)
    if any(isinstance(c, tuple) for c in classes):
        return several_labels_split(several, fraction)
    counts = Counter(classes)
    places = [place for place, number in enumerate(classes) if counts[number] > 1]
    if not places:
        raise UserError(
            "Too few samples to hold some out: for a training, a validation and a test split a class needs three; add "
            "some, or name the splits."
        )
    numbers = [number if isinstance(number, int) else 0 for number in (classes[place] for place in places)]
    held_out = [places[index] for index in stratified_split(numbers, fraction)[1]]
    return sorted({*range(len(classes))} - {*held_out}), held_out


def stratified_split(labels: Sequence[int], fraction: float) -> Cut:
    """Each class is in both parts, with the same share. Every class needs two samples."""
    from sklearn.model_selection import train_test_split

    classes = len(set(labels))
    size = min(max(math.ceil(fraction * len(labels)), classes), len(labels) - classes)
    cut = train_test_split(range(len(labels)), test_size=size, random_state=0, stratify=labels)
    train, held_out = map(list, cut)
    for part, other in ((train, held_out), (held_out, train)):  # all samples of a rare class may be in one part
        earliest = {labels[index]: index for index in sorted(other, reverse=True)}
        moved = {earliest[label] for label in set(earliest) - {labels[index] for index in part}}
        part.extend(moved)
        other[:] = [index for index in other if index not in moved]
    return sorted(train), sorted(held_out)


def several_labels_split(labels: Sequence[tuple[int, ...]], fraction: float) -> Cut:
    """Each sample has several labels; every label is in the training part."""
    if len(labels) < 2:
        raise UserError("There is a single sample: one is needed to train on and one to hold out.")
    train, candidates = stratified_split([0] * len(labels), fraction)
    learnt = {label for index in train for label in labels[index]}
    held_out = []
    for index in candidates:
        part = held_out if learnt.issuperset(labels[index]) else train
        part.append(index)
        learnt.update(labels[index])
    if not held_out:
        raise UserError("Too few samples share their labels with others for some to be held out: add more.")
    return sorted(train), held_out


def group_split(labels: Sequence[tuple[int, ...]], groups: Sequence[Hashable], fraction: float) -> Cut:
    """Samples of one group stay together; every label is in the training part.

    Groups are visited in a random order, and one is held out if this brings the held-out part nearer to its share of
    all samples and of each class (but one sample at least); the best of several orders is taken. StratifiedGroupKFold
    of scikit-learn has only shares of 1/n and one label per sample, and may leave no sample of a class for training.
    """
    members = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    sizes = [
        Counter({ALL: len(indices)} | Counter(label for index in indices for label in set(labels[index])))
        for indices in members.values()
    ]
    total = Counter()
    for size in sizes:
        total.update(size)
    wanted = {label: max(fraction * count, 1.0) for label, count in total.items()}

    def gain(size: Counter, held: Counter) -> float:
        """How much nearer to the wanted counts the held-out part is with a group; -inf if training loses a class."""
        if any(held[label] + count >= total[label] for label, count in size.items()):
            return -math.inf
        return sum(abs(held[c] - wanted[c]) - abs(held[c] + count - wanted[c]) for c, count in size.items())

    best, chosen = -math.inf, []
    members = list(members.values())
    for seed in range(TRIES):
        order = np.random.default_rng(seed).permutation(len(sizes)).tolist()
        held, taken, reached = Counter(), [], 0.0
        for number in order:
            more = gain(sizes[number], held)
            if more > 0 or (not taken and more > -math.inf):
                held.update(sizes[number])
                taken.append(number)
                reached += more
        if taken and reached > best:
            best, chosen = reached, taken
        if best > NEAR_ENOUGH * sum(wanted.values()):
            break
    if not chosen:
        raise UserError(
            "No samples can be held out, since training would lose a class: each group has all samples of a class. "
            "Add groups, or name the splits."
        )
    held_out = sorted(index for number in chosen for index in members[number])
    return sorted({*range(len(labels))} - {*held_out}), held_out
