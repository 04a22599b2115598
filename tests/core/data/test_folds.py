"""Folds: every sample is tested once, classes and groups are kept, and what cannot be cut is refused."""

import random
from collections import Counter
from pathlib import Path

import pytest
from samplefiles import SUFFIXES, folder, refused, touch

from core.data import read_files, read_folder
from core.data.dataset import Folds
from core.data.folds import cut_folds
from core.data.labelled import Entry, split_entries


def drawn(seed, kind):
    """Classes of very different sizes, and groups or None. kind: grouped, several labels, numbers or plain."""
    draw = random.Random(seed)
    size = draw.randint(60, 200)
    several = [tuple(draw.sample(range(6), draw.randint(1, 3))) for _ in range(size)]
    one = [draw.choices(range(4), (40, 10, 3, 1))[0] for _ in range(size - 8)] + [0, 1, 2, 3] * 2
    classes = {"several": several, "numbers": [None] * size}.get(kind, one)
    groups = [draw.randint(0, 40) for _ in range(size)] if kind == "grouped" else None
    return classes, groups


@pytest.mark.parametrize("kind", ["plain", "grouped", "several", "numbers"])
@pytest.mark.parametrize("seed", range(8))
def test_each_sample_is_in_one_fold_and_classes_and_groups_are_kept(seed, kind):
    classes, groups = drawn(seed, kind)
    count = random.Random(seed).choice([2, 3, 5])
    try:
        folds = cut_folds(classes, groups, count)
    except ValueError:  # rightly so, if a class is in one group alone
        assert kind == "grouped" and any(
            len({group for other, group in zip(classes, groups, strict=True) if other == label}) == 1
            for label in set(classes)
        )
        return
    assert sorted(index for fold in folds for index in fold) == list(range(len(classes)))
    assert folds == cut_folds(classes, groups, count) and all(fold == sorted(fold) for fold in folds)
    sizes = [len(fold) for fold in folds]
    counts = [Counter(c for i in fold for c in (classes[i] if kind == "several" else [classes[i]])) for fold in folds]
    largest = max(Counter(groups).values()) if groups else 1
    if kind in ("plain", "numbers"):  # as even as can be, in all and in each class
        assert max(sizes) - min(sizes) <= len(set(classes)) / 2 + 1
        assert all(max(c[n] for c in counts) - min(c[n] for c in counts) <= 1 for n in set(classes))
    else:
        assert max(sizes) - min(sizes) <= max(0.35 * len(classes) / count, largest)
    if groups:
        held = [{groups[index] for index in fold} for fold in folds]
        assert sum(map(len, held)) == len(set(groups))
    for number in set().union(*counts):
        assert sum(number in found for found in counts) > 1  # it can be learnt, whichever fold is tested on


def test_folds_are_stratified_as_scikit_learns_are():
    from sklearn.model_selection import StratifiedKFold

    classes = [label for label, size in enumerate((53, 20, 7, 5)) for _ in range(size)]
    ours = cut_folds(classes, None, 5)
    theirs = [test for _, test in StratifiedKFold(5, shuffle=True, random_state=0).split(classes, classes)]
    for label in range(4):
        counts = [sorted(sum(classes[i] == label for i in fold) for fold in folds) for folds in (ours, theirs)]
        assert counts[0] == counts[1]


@pytest.mark.parametrize("grouped", [False, True])
def test_all_samples_of_a_manifest_are_tested_once(grouped):
    rows = [("path", "label", "group"), *((f"{n}.png", "ab"[n % 2], f"g{n // 3}" * grouped) for n in range(30))]
    touch(*(f"{n}.png" for n in range(30)))
    Path("list.csv").write_text("\n".join(map(",".join, rows)))
    tested = []
    for fold in (1, 2, 3):
        data = read_files(Path("list.csv"), Folds(folds=3, fold=fold, validation_fraction=0.2))
        names = [[int(sample.path.stem) for sample in part] for part in data.parts().values()]
        assert sorted(number for part in names for number in part) == list(range(30))
        groups = [{number // 3 for number in part} for part in names]
        assert not grouped or not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
        tested += names[2]
    assert sorted(tested) == list(range(30))
    note = "Fold 3 of 3 is the test split, and 20 % of the rest are held out for validation, stratified by class{}, "
    assert data.note == note.format(", with each group in one split" * grouped) + "the same in every run."


def test_what_cannot_be_cut_is_refused():
    refused(lambda: cut_folds([0, 1, 0], None, 5), "3 samples cannot be cut into 5 folds")
    refused(lambda: cut_folds([0] * 9, ["a", "b", "c"] * 3, 4), "3 groups cannot be cut into 4 folds")
    refused(lambda: cut_folds([0] * 9 + [1], None, 3, ("cat", "dog")), "Class 'dog' is in one of the samples alone")
    refused(lambda: cut_folds([0] * 9 + [1] * 2, [*"abcdabcda", "e", "e"], 3), "Class 1 is in one of the groups alone")
    folder("own/train")
    folder("own/test", count=2, start=9)
    refused(lambda: read_folder(Path("own"), SUFFIXES, Folds(folds=2, fold=1)), "these have a validation or a test")
    folder("plain")
    refused(lambda: read_folder(Path("plain"), SUFFIXES, Folds(folds=2)), "--data.folds 2 needs a run for each fold")
    refused(lambda: Folds(fold=2), "--data.folds must say how many there are")
    refused(lambda: Folds(folds=2, fold=3), "--data.folds must say at least 3")


def test_numbers_to_predict_are_cut_too():
    entries = [Entry(f"{n}", n, target=float(n)) for n in range(11)]
    parts = [split_entries("list.csv", {"train": entries}, Folds(folds=4, fold=fold)) for fold in (1, 2, 3, 4)]
    assert sorted(entry.sample for data in parts for entry in data.test) == list(range(11))
    assert sorted(len(data.test) for data in parts) == [2, 3, 3, 3]
