"""K-fold cross-validation: samples cut into folds, each the test split of one run; the same for every seed."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from ..errors import UserError
from .cuts import ALL, TRIES, Classes


def cut_folds(
    classes: Sequence[Classes], groups: Sequence[Hashable] | None, count: int, labels: Sequence[str] = ()
) -> list[list[int]]:
    """Indices of the samples of each fold, in ascending order; each sample is in one fold.

    Stratified by class, and without a group in two folds: the largest groups come first, then those with the rarest
    classes (as in iterative stratification: Sechidis et al. 2011), and each goes to the fold that lacks its classes
    the most. Every class is in two folds at least, so that it can be learnt whichever fold is tested on.

    labels: names of the classes, for messages.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index in range(len(classes)):
        members[index if groups is None else groups[index]].append(index)
    what = "samples" if groups is None else "groups"
    if len(members) < count:
        raise UserError(f"{len(members)} {what} cannot be cut into {count} folds: choose fewer folds (--data.folds).")
    units = list(members.values())
    sizes = [Counter(number for index in unit for number in _numbers(classes[index])) for unit in units]
    spread = Counter(number for size in sizes for number in size)
    if alone := [number for number, units_of in spread.items() if units_of < 2]:
        name = labels[alone[0]] if labels else alone[0]
        raise UserError(
            f"Class {name!r} is in one of the {what} alone, so it cannot be learnt where that is tested on: each class "
            f"needs two for --data.folds."
        )
    for seed in range(TRIES):
        folds = _assigned(units, sizes, count, seed)
        held = [{number for index in fold for number in _numbers(classes[index])} for fold in folds]
        if all(folds) and all(sum(number in fold for fold in held) > 1 for number in spread):
            return [sorted(fold) for fold in folds]
    raise UserError(f"These {what} cannot be cut into {count} folds without a class that is in one alone: add some.")


def _assigned(units: Sequence[Sequence[int]], sizes: Sequence[Counter[int]], count: int, seed: int) -> list[list[int]]:
    """units: samples that stay together. sizes: how many of each class are among them."""
    total: Counter[int] = Counter()
    for size in sizes:
        total.update(size)
    rarest = [min((total[number] for number in size), default=0) for size in sizes]
    order = np.random.default_rng(seed).permutation(len(units)).tolist()
    order.sort(key=lambda place: (-len(units[place]), rarest[place]))
    folds: list[list[int]] = [[] for _ in range(count)]
    held: list[Counter[int]] = [Counter() for _ in range(count)]
    for place in order:
        size = sizes[place]

        def filled(fold: int, size: Counter[int] = size) -> tuple[float, int]:
            """How much of the unit's classes a fold has, as a share of all; and of samples."""
            share = sum(held[fold][number] * n / total[number] for number, n in size.items())
            return float(share), held[fold][ALL]

        chosen = min(range(count), key=filled)
        folds[chosen].extend(units[place])
        held[chosen].update(size)
        held[chosen][ALL] += len(units[place])
    return folds


def _numbers(classes: Classes) -> tuple[int, ...]:
    return () if classes is None else (classes,) if isinstance(classes, int) else tuple(set(classes))
