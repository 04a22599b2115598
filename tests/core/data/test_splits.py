"""Splits: nothing is torn or lost, training knows every class, and the note says what was done."""

import random
from collections import Counter
from pathlib import Path

import pytest
from samplefiles import every, folder, listed, names, read, refused, touch

from core.data import few_per_class, make_splits
from core.data.cuts import cut, stratified_split
from core.data.dataset import SplitFractions
from core.data.labelled import Entry, read_manifest, split_entries


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("counts", [[2, 2], [2, 100], [2] * 50, [3, 40, 2, 2], [2, 2, 1000]])
def test_each_class_is_in_both_parts(fraction, counts):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    train, held_out = stratified_split(labels, fraction)
    assert sorted(train + held_out) == list(range(len(labels)))
    assert train == sorted(train) and held_out == sorted(held_out)
    for part in (train, held_out):
        assert {labels[index] for index in part} == set(labels)


def random_samples(seed: int, most_of_a_class: int = 40) -> list[tuple[int, int]]:
    """(number, class), the classes of very different sizes."""
    draw = random.Random(seed)
    classes = [label for label in range(draw.randint(2, 6)) for _ in range(draw.randint(2, most_of_a_class))]
    classes += [0] * 3
    draw.shuffle(classes)
    return list(enumerate(classes))


@pytest.mark.parametrize("seed", range(20))
def test_the_test_split_does_not_depend_on_the_validation_split(seed):
    samples = random_samples(seed)
    fractions = [0.05, 0.1, 0.5]
    data = [make_splits(samples, labels=("a",) * 6, classes=lambda s: s[1], validation_fraction=f) for f in fractions]
    _, held_out = stratified_split([label for _, label in samples], 0.2)
    for found in data:
        assert found.test == [samples[index] for index in held_out]
        assert sorted([*found.train, *found.validation, *found.test]) == samples
        counts = Counter(label for _, label in [*found.train, *found.validation])
        assert {label for _, label in found.train} == set(counts)
        assert {label for _, label in found.validation} == {label for label, count in counts.items() if count > 1}
    sizes = [len(found.validation) / len([*found.train, *found.validation]) for found in data]
    assert sizes[2] == pytest.approx(0.5, abs=0.1) and sizes == sorted(sizes)


def test_the_note_says_which_splits_were_cut():
    fractions = SplitFractions(test_fraction=0.25, validation_fraction=0.5)
    parts = [[Entry(f"{n}", n, f"{n % 2}") for n in range(20 * part, 20 * part + 20)] for part in range(3)]

    def note(**entries):
        return split_entries("list.csv", entries, fractions).note

    assert note(train=parts[0]) == (
        "Without splits of their own, 25 % of the samples were held out for testing, and 50 % of the rest for "
        "validation, stratified by class, the same in every run."
    )
    assert note(train=parts[0], test=parts[1]) == (
        "Without a validation split of their own, 50 % of the training samples were held out for it, stratified by "
        "class, the same in every run."
    )
    assert note(train=parts[0], validation=parts[1]) == (
        "Without a test split of their own, 25 % of the training samples were held out for it, stratified by class, "
        "the same in every run; the validation split is the data's own."
    )
    every_split = note(train=parts[0], validation=parts[1], test=parts[2])
    assert every_split == "The validation and the test split are the data's own."
    numbers = [Entry(f"{n}", n, target=float(n), group=f"{n // 3}") for n in range(30)]
    assert "for validation, with each group in one split, the same in every run." in note(train=numbers)


def test_a_class_needs_three_samples_and_may_have_two_beside_larger_ones():
    folder(classes=("cat",), count=5)
    folder(classes=("dog",), count=1)
    refused(read, "'dog' has a single sample")
    folder(classes=("dog",), count=2)
    data = read()
    assert [Counter(sample.label for sample in part) for part in data.parts().values()] == [
        {0: 3, 1: 1},
        {0: 1},
        {0: 1, 1: 1},
    ]
    folder("small", count=2)
    refused(lambda: read(Path("small")), "Too few samples", "a class needs three")


def test_numbers_are_cut_at_random():
    entries = [Entry(f"{n}", n, target=float(n)) for n in range(10)]
    data = split_entries("list.csv", {"train": entries}, SplitFractions())
    assert [len(part) for part in data.parts().values()] == [7, 1, 2] and data.labels == ()
    for count in (1, 2):
        refused(lambda count=count: split_entries("list.csv", {"train": entries[:count]}, SplitFractions()), "Too few")


def test_more_per_class_than_there_are():
    samples = [(number, number % 2) for number in range(7)]
    assert few_per_class(samples, 1000) == samples and len(few_per_class(samples, 2)) == 4


# --- Groups ---------------------------------------------------------------------------------------------------------


def grouped(seed: int, kind: str) -> list[Entry]:
    """Samples of groups of very different sizes; each class is in many groups."""
    draw = random.Random(seed)
    entries = []
    for group in range(draw.randint(25, 60)):
        for _ in range(draw.randint(1, 12)):
            classes = draw.sample("abcd", draw.randint(1, 2))
            label = {"one": classes[0], "several": tuple(classes), "number": None}[kind]
            target = draw.random() if kind == "number" else None
            entries.append(Entry(f"row {len(entries)}", len(entries), label, target, f"patient {group}"))
    return entries


@pytest.mark.parametrize("kind", ["one", "several", "number"])
@pytest.mark.parametrize("seed", range(12))
def test_groups_are_whole_classes_are_learnt_and_fractions_near(seed, kind):
    entries, draw = grouped(seed, kind), random.Random(seed)
    test, validation = draw.choice([0.1, 0.2, 0.3, 0.5]), draw.choice([0.1, 0.25])
    fractions = SplitFractions(test_fraction=test, validation_fraction=validation)
    data = split_entries("list.csv", {"train": entries}, fractions)
    assert sorted(entry.sample for entry in every(data)) == list(range(len(entries)))
    groups = [{entry.group for entry in part} for part in data.parts().values()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert len(data.test) / len(entries) == pytest.approx(test, abs=0.03)
    assert len(data.validation) / (len(entries) - len(data.test)) == pytest.approx(validation, abs=0.03)
    if kind != "number":
        counts = [Counter(name for e in part for name in e.label) for part in (data.train, data.test, entries)]
        assert set(counts[0]) == set("abcd")
        for name, count in counts[2].items():  # stratified as well
            assert counts[1][name] / count == pytest.approx(test, abs=0.12)
    again = split_entries("list.csv", {"train": entries}, fractions)
    assert again.test == data.test and again.validation == data.validation


def test_a_class_of_one_group_is_for_training_alone():
    classes = [0] * 40 + [1] * 20
    groups = [f"{index // 4}" for index in range(40)] + ["single"] * 20
    train, held_out = cut(classes, groups, 0.3)
    assert {classes[index] for index in held_out} == {0} and set(range(40, 60)) <= set(train)
    refused(lambda: cut([0, 0, 1, 1], ["a", "a", "b", "b"], 0.5), "each group has all samples of a class")


def test_one_large_group_is_held_out_only_if_nothing_else_comes_as_near():
    _, held_out = cut([None] * 100, ["large"] * 60 + [f"{n}" for n in range(40)], 0.2)
    assert len(held_out) == 20 and 0 not in held_out
    _, held_out = cut([None] * 100, ["a"] * 40 + ["b"] * 60, 0.1)
    assert len(held_out) == 40


def table(rows: list[tuple[str, ...]], *columns: str) -> str:
    touch(*(row[0] for row in rows))
    return "\n".join(",".join(row) for row in [("path", "label", *columns), *rows])


def test_a_column_of_groups_is_used_by_its_name_or_if_it_is_named():
    rows = [(f"{speaker}-{n}.png", "no" if n % 2 else "yes", f"s{speaker}") for speaker in range(9) for n in range(4)]

    def speakers(data):
        return [{sample.path.name[0] for sample in part} for part in data.parts().values()]

    def are_torn(data):
        parts = speakers(data)
        return bool(parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])

    assert are_torn(listed(table(rows, "speaker"), fraction=0.3))
    for column, options in (
        ("group", {}),
        (" Group", {}),
        ("speaker", {"group": "speaker"}),
        ("Who", {"group": "who"}),
    ):
        data = listed(table(rows, column), fraction=0.3, **options)
        assert not are_torn(data) and len(every(data)) == 36, column
    refused(lambda: listed(table(rows, "speaker"), group="patient"), "no column 'patient'; its columns are: path,")
    rows = [(*row[:2], "" if int(row[0][0]) > 4 else row[2]) for row in rows]  # a group is not known of all
    parts = speakers(listed(table(rows, "group"), fraction=0.3))
    assert not (parts[0] & parts[2] | parts[1] & parts[2]) & set("01234")


def test_a_split_that_tears_a_group_is_refused():
    rows = [("a.png", "x", "ann", "train"), ("b.png", "y", "bob", "train"), ("c.png", "x", "ann", "test")]
    rows += [("d.png", "y", "dan", "test")]
    said = refused(lambda: listed(table(rows, "group", "split")), "The group 'ann' is torn")
    assert "list.csv, row 1 is to train on and list.csv, row 3 is to test on" in said


def test_rows_that_share_a_file_are_in_one_split():
    touch(*(f"{n}.png" for n in range(20)), *(f"{n}.wav" for n in range(20)))
    lines = ["image,audio", *(f"{n}.png,{m}.wav" for n in range(20) for m in {n, n // 2 * 2})]

    def entry(where, row):
        files = Path(row["image"]), Path(row["audio"])
        return Entry(where, row, files=files)

    Path("pairs.csv").write_text("\n".join(lines))
    data = read_manifest(Path("pairs.csv"), entry, SplitFractions(), required=("image", "audio"))
    parts = [{name for entry in part for name in entry.sample.values()} for part in data.parts().values()]
    assert len(every(data)) == 30 and not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    content = "path,label\n" + "a.png,cat\nb.png,cat\nc.png,cat\nd.png,dog\ne.png,dog\nf.png,dog\n" * 3
    touch(*(f"{letter}.png" for letter in "abcdef"))
    found = [set(names(part)) for part in listed(content).parts().values()]
    assert not found[0] & found[1] and not found[0] & found[2] and len(found[0] | found[1] | found[2]) == 6
