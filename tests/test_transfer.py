"""The studies of real data run from end to end, on a few made-up files and for a few steps, each command once."""

import io
import json
import shlex
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import soundfile
from PIL import Image
from plain import plain

from audio.train import AUDIO
from benchmarks.transfer import __main__ as command
from benchmarks.transfer import commands as transfer
from benchmarks.transfer.cifar10 import LATENT, MAE, SCRATCH, Cifar10
from benchmarks.transfer.commands import Commands, cell, table, words_of
from benchmarks.transfer.real_data import few_of_each, rows_of, unpacked
from benchmarks.transfer.spoken_digits import BASELINE, SpokenDigits
from benchmarks.transfer.sst2 import START, Sst2
from benchmarks.transfer.tuning import TUNING, WAYS, Start
from core import UserError
from core.experiments import probe_command, train_command
from text.train import TEXT
from vision.train import VISION

MODALITIES = {"vision": VISION, "audio": AUDIO, "text": TEXT}
SMALL = {"model.dim": 16, "model.heads": 2, "model.depth": 1}
SHORT = {"train.steps": 2, "train.batch-size": 8, "train.warmup": 1}
HERE = {"train.precision": "fp32", "train.device": "cpu", "train.workers": 0}
WORDS = ["a", "film", "good", "bad", "long", "short", "and", "the", "is", "was", "with", "story", "actor"]


@pytest.fixture
def data(tmp_path):
    """Made-up files in zip files as the real ones are."""
    draw, folder = np.random.default_rng(0), tmp_path / "data"
    folder.mkdir()
    with ZipFile(folder / "cifar10.zip", "w") as file:
        for number in range(40):
            image = io.BytesIO()
            Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(image, "jpeg")
            split = "train" if number < 32 else "test"
            file.writestr(f"cifar10/{split}/{('cat', 'dog')[number % 2]}/{number}.jpg", image.getvalue())
    with ZipFile(folder / "spoken-digits.zip", "w") as file:
        rows = ["path,label,split,speaker"]
        for number in range(120):
            sound = io.BytesIO()
            soundfile.write(sound, draw.normal(0, 0.1, 1600 + 40 * number), 8000, format="WAV")
            rows.append(f"{number}.wav,{number % 10},{'test' if number % 30 < 10 else 'train'},{'dcba'[number // 30]}")
            file.writestr(f"spoken-digits/{number}.wav", sound.getvalue())
        file.writestr("spoken-digits/spoken-digits.csv", "\n".join(rows))
    with ZipFile(folder / "sst2.zip", "w") as file:
        rows = [
            f"{' '.join(draw.choice(WORDS, 8))},{('good', 'bad')[n % 2]},{'train' if n < 60 else 'test'}"
            for n in range(80)
        ]
        file.writestr("sst2/sst2.csv", "\n".join(["text,label,split", *rows]))
    return folder


@pytest.fixture
def study(data, tmp_path, monkeypatch):
    """Runs a study and returns what it says, the rows of its table, and its commands."""
    monkeypatch.setattr("core.experiments.experiment.write_run_report", lambda *_: None)  # half of a short run's time

    def run(name, changed):
        commands = Commands(tmp_path / "out", call=called)
        found = changed.run(commands, unpacked(name, data, tmp_path / "cache"), (0,))
        rows = [[part.strip() for part in line.strip("|").split("|")] for line in found.splitlines() if line[:1] == "|"]
        return found, {row[0]: row[1:] for row in rows[2:]}, commands

    return run


def called(words):
    """What a command prints, in this process."""
    modality, kind = words[0].split(".")
    said = io.StringIO()
    with redirect_stdout(said):
        {"train": train_command, "probe": probe_command}[kind](plain(MODALITIES[modality]), list(words[1:]))
    return said.getvalue()


def accuracy_of(commands, name):
    return json.loads((commands.out / name / "summary.json").read_text())["metrics"]["accuracy"]


def test_cifar10(study):
    start = Cifar10()
    changed = replace(
        start,
        minutes=1e-4,
        model={**start.model, **SMALL, "model.image-size": 8},
        batch=8,
        pretraining={name: (words, {**own, **HERE}) for name, (words, own) in start.pretraining.items()},
        few=2,
        fine_tuning={**start.fine_tuning, **SHORT, **HERE},
        rates=(1e-3,),
    )
    found, rows, commands = study("cifar10", changed)
    assert set(rows) == {LATENT, MAE, SCRATCH} and all(len(cells) == 3 and all(cells) for cells in rows.values())
    few = Counter((row["split"], row["label"]) for row in rows_of(commands.out / "few-0.csv"))
    counts = {"train": 2, "validation": 2, "test": 4}
    assert few == {(split, label): count for split, count in counts.items() for label in ("cat", "dog")}
    assert rows[SCRATCH][2] == cell([accuracy_of(commands, "random-weights-few-0")])
    assert [f"\n{name}: linear probe on validation data " in found for name in rows] == [True, False, False]
    linear, near, *random = json.loads((commands.out / "masked-autoencoder-0-probe.json").read_text())
    assert rows[MAE][:2] == [cell([linear]), cell([near])] and rows[SCRATCH][:2] != rows[MAE][:2] and len(random) == 2


def test_spoken_digits(study):
    start = SpokenDigits()
    changed = replace(
        start,
        model={**start.model, **SMALL, "model.max-frames": 100},
        pretraining={**start.pretraining, **SHORT, **HERE},
        few=2,
        fine_tuning={**start.fine_tuning, **SHORT, **HERE},
        rates=(1e-3,),
    )
    found, rows, commands = study("spoken-digits", changed)
    assert set(rows) == {BASELINE, LATENT, SCRATCH} and all(len(cells) == 1 and cells[0] for cells in rows.values())
    assert rows[LATENT] == [cell([accuracy_of(commands, "latent-few-0")])]
    assert f"\n{LATENT}: linear probe on validation data " in found
    few, unlabelled = rows_of(commands.out / "few-0.csv"), rows_of(commands.out / "unlabelled.csv")
    of_fourth = [int(Path(row["path"]).stem) < 30 for row in few]  # the speaker whose name is the last
    assert [row["split"] == "test" for row in few] == of_fourth
    assert Counter(row["split"] for row in few) == {"train": 20, "validation": 30, "test": 30}
    assert Counter(row["split"] for row in unlabelled) == {"train": 60, "validation": 30}
    assert min(int(Path(row["path"]).stem) for row in unlabelled) == 30


@pytest.fixture
def text_start(tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(" ".join(WORDS[n % 5 :]) for n in range(30)))
    small = {**SMALL, "model.max-length": 24, "data.tokenizer.vocab-size": 300}
    begin = {"data.path": tmp_path / "texts.txt", **small, **SHORT, **HERE, "out": tmp_path / "start"}
    called(["text.train", "lines", *words_of({name: v for name, v in begin.items() if name != "train.workers"})])
    return tmp_path / "start"


def test_sst2(study, data, text_start):
    start = Sst2()
    ways = {name: (words, {**own, **SHORT, "train.device": "cpu"}) for name, (words, own) in start.ways.items()}
    found, rows, commands = study("sst2", replace(start, ways=ways, start=text_start))
    assert set(rows) == {START, *ways} and all(len(cells) == 2 and all(cells) for cells in rows.values())
    latents = [f"\n{name}: linear probe on validation data " in found for name in rows]
    assert latents == [False, False, False, True]
    texts = {row["text"] for row in rows_of(data.parent / "cache" / "sst2" / "sst2.csv") if row["split"] == "train"}
    assert {row["text"] for row in rows_of(commands.out / "unlabelled.csv")} == texts


def tuned_shortly(study, data, small, **changed):
    """A study of tuning with few steps of small models, each way at one rate; its task and its commands."""
    tuning = TUNING[data]
    rates = {way: own[:1] for way, own in tuning.rates.items()}
    here = HERE if data != "sst2" else {"train.precision": "fp32", "train.device": "cpu"}
    options, model = {**tuning.options, **SHORT, **here}, {**tuning.model, **small}
    found, rows, commands = study(data, replace(tuning, options=options, model=model, rates=rates, **changed))
    assert list(rows) == [tuning.task] and rows[tuning.task] == [
        cell([accuracy_of(commands, f"{way.replace(' ', '-')}-0")]) for way in WAYS
    ]
    assert found.endswith(f"Learning rates: {', '.join(f'{way} {rate:g}' for way, (rate,) in rates.items())}.")
    trained = {
        way: json.loads((commands.out / f"{way.replace(' ', '-')}-0" / "summary.json").read_text()) for way in WAYS
    }
    counts = [trained[way]["trained_parameters"] for way in WAYS]
    assert counts[1] > counts[2] > counts[3] and counts[1] == trained["full"]["parameters"]
    return commands


def shortly(start, small):
    return Start(start.command, lambda folder: {**start.options(folder), **small, **SHORT, **HERE})


def test_tuning_on_images(study):
    small = {**SMALL, "model.image-size": 8}
    start = shortly(TUNING["cifar10"].start, small)
    commands = tuned_shortly(study, "cifar10", small, start=start, few=partial(TUNING["cifar10"].few, count=3))
    rows = Counter((row["split"], row["label"]) for row in rows_of(commands.out / "few-0.csv"))
    counts = {"train": 3, "validation": 3, "test": 4}
    assert rows == {(split, label): count for split, count in counts.items() for label in ("cat", "dog")}


def test_tuning_on_a_speaker_whom_the_start_does_not_know(study):
    small = {**SMALL, "model.stem": (4, 8), "model.max-frames": 100}
    start = shortly(TUNING["spoken-digits"].start, small)
    few = partial(TUNING["spoken-digits"].few, count=1)
    commands = tuned_shortly(study, "spoken-digits", small, start=start, few=few)
    rows = rows_of(commands.out / "few-0.csv")
    assert all(int(Path(row["path"]).stem) < 30 for row in rows)  # the last by name
    assert Counter(row["split"] for row in rows) == {"train": 10, "validation": 10, "test": 10}
    assert json.loads((commands.out / "start" / "summary.json").read_text())["test_samples"] == 30


def test_tuning_on_sentences(study, text_start):
    small = {**SMALL, "data.tokenizer.vocab-size": 300}
    few = partial(TUNING["sst2"].few, count=5)
    commands = tuned_shortly(study, "sst2", small, start=text_start, few=few)
    rows = Counter((row["split"], row["label"]) for row in rows_of(commands.out / "few-0.csv"))
    assert {rows["train", label] for label in ("good", "bad")} == {5}


def scores(words):
    """A run that does nothing, whose accuracy follows from its learning rate, seed and labels."""
    options = dict(zip(words[2::2], words[3::2], strict=False))
    run, rate = Path(options["--out"]), float(options["--train.lr"])
    run.mkdir(parents=True)
    found = {"validation": {"accuracy": rate if rate < 0.05 else 0.0}, "metrics": {"accuracy": 0.5}}
    (run / "summary.json").write_text(json.dumps(found))
    (run / "labels").write_text(options["--labels"])
    return ""


def test_the_learning_rate_is_chosen_on_validation_data_and_other_labels(tmp_path):
    commands = Commands(tmp_path, call=scores)
    accuracies, rate = commands.fine_tune(
        "a", "x.train y", lambda labels, start: {"labels": f"{labels} of {start}"}, (0.01, 0.03, 0.1), (3, 4)
    )
    assert (accuracies, rate) == ([0.5, 0.5], 0.03)
    read = {path.parent.name: path.read_text() for path in tmp_path.glob("*/labels")}
    assert read == {f"a-rate-{rate:g}": "5 of 3" for rate in (0.01, 0.03, 0.1)} | {"a-3": "3 of 3", "a-4": "4 of 4"}


def test_a_study_goes_on_where_it_stopped_with_the_same_commands_only(tmp_path):
    said = []
    commands = Commands(tmp_path, call=lambda words: said.append(words) or scores(words))
    options = {"train.lr": 0.01, "labels": "0"}
    for _ in range(2):
        commands.train("a", "x.train y", options)
    own = ["--size", "None", "--train.lr", "0.01", "--labels", "0"]  # no setting follows the data
    assert said == [["x.train", "y", *own, "--out", str(tmp_path / "a")]]
    assert (tmp_path / "a.command").read_text() == shlex.join(said[0])
    with pytest.raises(UserError, match=r"a\.command is another command than this study's now: choose another --out\."):
        commands.train("a", "x.train y", {**options, "labels": "1"})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_text("{}")

    def resumed(words):
        assert words[-1] == "--resume"
        (tmp_path / "b" / "summary.json").write_text("{}")

    replace(commands, call=resumed).train("b", "x.train y", options)
    lines = "z, features of a: linear probe 91.20%, nearest neighbours 85.00%\nz, features of random weights: linear "
    probing = replace(
        commands, call=lambda words: said.append(words) or lines + "probe 31.00%, nearest neighbours 9.00%"
    )
    for _ in range(2):
        assert probing.probe("c", "x.probe y", {}) == pytest.approx([0.912, 0.85, 0.31, 0.09])
    assert len(said) == 2


def test_the_time_of_a_step_is_a_median_without_the_first(tmp_path):
    def call(words):
        speeds = enumerate((1.0, 10.0, 40.0, 20.0))
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "summary.json").write_text("{}")
        rows = (json.dumps({"step": step, "samples_per_second": speed}) for step, speed in speeds)
        (tmp_path / "a" / "metrics.jsonl").write_text("\n".join(rows))

    assert Commands(tmp_path, call=call).step_seconds("a", "x.train y", {"train.batch-size": 8}) == 0.4


def test_a_command_says_what_went_wrong(capfd):
    assert transfer.call(["timeit", "-n", "1", "-r", "1", "0"]).startswith("1 loop")
    with pytest.raises(UserError, match=r"python -m timeit ended with status \d: its message is above\."):
        transfer.call(["timeit", "fail"])
    assert "name 'fail' is not defined" in capfd.readouterr().err


@pytest.mark.parametrize(
    "words, status, sentence",
    [
        (["cifar100"], 2, "error: Nothing begins with 'cifar100': choose from cifar10; "),
        (["sst2", "--data", "nowhere"], "error: There is no nowhere/sst2.zip: name the folder", ""),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(words, status, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        command.main([*words, "--cache", "cache"])
    assert str(end.value.code).startswith(str(status)) and sentence in capsys.readouterr().err


def test_lists_and_tables():
    rows = [{"label": label, "n": str(n)} for n in range(20) for label in ("b", "a")]
    drawn = [few_of_each(rows, 5, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and Counter(row["label"] for row in drawn[0]) == {"a": 5, "b": 5}
    assert words_of({"a.b": 1e-3, "c": (1, 2), "no-d": True}) == ["--a.b", "0.001", "--c", "1", "2", "--no-d"]
    expected = ["| | one | two |", "|---|---|---|", "| x | 15.0% (10.0, 20.0) | |", "| y | | 50.0% (50.0) |"]
    found = table(("one", "two"), {"x": {"one": [0.1, 0.2]}, "y": {"two": [0.5]}}).splitlines()
    assert [" ".join(line.split()) for line in found] == expected


def test_an_interrupted_study_ends_without_a_traceback(data, tmp_path, monkeypatch):
    def interrupted(words):
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.transfer.studies.Commands", lambda out: Commands(out, call=interrupted))
    where = {"data": data, "cache": tmp_path / "cache", "out": tmp_path / "out"}
    with pytest.raises(SystemExit) as end:
        command.main(["spoken-digits", *words_of(where)])
    assert end.value.code == 130
