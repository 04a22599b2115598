"""`--data.folds`: one run for each fold, and the mean and deviation of their results."""

import json
import random
from pathlib import Path
from statistics import mean, stdev

import pytest
from listed_jobs import listing
from plain import train_plainly
from small_runs import TEXTS

from audio.train import AUDIO
from core.experiments import sweep, train_command
from core.experiments.comparison import make_comparisons
from core.experiments.folds import fold_summary
from core.experiments.runs import Run
from core.objectives.interval import wilson_interval
from text.train import TEXT
from vision.train import VISION


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)


@pytest.fixture
def commands(monkeypatch):
    """Runs are not started, but listed."""
    listed = []
    monkeypatch.setattr(sweep, "running", listing(lambda command: listed.append(command[1:]) or 0))
    return listed


@pytest.fixture
def in_this_process(monkeypatch):
    """Runs are trained here, which saves their start."""

    def start(command):
        train_plainly(TEXT, command[3:])
        return 0

    monkeypatch.setattr(sweep, "running", listing(start))


def names(commands):
    return [Path(command[command.index("--out") + 1]).name for command in commands]


def ended(*argv, modality=TEXT):
    with pytest.raises(SystemExit) as exit:
        train_command(modality, [*argv])
    return exit.value.code


@pytest.mark.parametrize(
    "modality, experiment",
    [(m, e) for m in (VISION, AUDIO) for e in ("folder", "manifest")]
    + [(TEXT, e) for e in ("manifest", "tags", "pairs")],
)
@pytest.mark.parametrize("words", [["--data.folds", "3"], ["--data.folds=3"]])
def test_each_fold_is_a_run(modality, experiment, words, commands):
    train_command(modality, [experiment, "--data.path", "data", *words])
    assert names(commands) == ["fold=1", "fold=2", "fold=3"]
    assert commands[1][3:-2] == ["--data.path", "data", *words, "--data.fold", "2"]


def test_folds_and_seeds_span_a_grid_and_one_fold_none(commands, monkeypatch):
    train_command(TEXT, ["manifest", "--data.folds", "2", "--train.seed", "0", "1", "--data.path", "data"])
    assert names(commands) == ["seed=0,fold=1", "seed=0,fold=2", "seed=1,fold=1", "seed=1,fold=2"]
    trained = []
    monkeypatch.setattr("core.experiments.command.train_experiment", lambda *given: trained.append(given))
    train_command(TEXT, ["manifest", "--data.folds", "2", "--data.fold", "1", "--data.path", "data"])
    assert len(trained) == 1 and len(commands) == 4


@pytest.mark.parametrize(
    "options, words",
    [
        ("--data.folds 2 3", "--data.folds takes one number"),
        ("--data.folds 1", "--data.folds must be at least 2"),
        ("--data.folds 3 --data.fold 4", "--data.fold 4 is no fold: --data.folds must say at least 4"),
        ("--data.fold 4", "--data.folds must say how many there are"),
        ("--data.folds 3 --data.test-fraction 0.5", "--data.test-fraction has no effect, because --data.folds"),
    ],
)
def test_a_mistake_gets_one_sentence(options, words, commands, capsys):
    assert ended("manifest", "--data.path", "list.csv", *options.split())
    said = capsys.readouterr().err
    assert words in said and said.startswith("error: ") and said.count("\n") == 1
    assert not commands and not Path("runs").exists()


def test_what_is_wrong_with_all_folds_is_said_once(capfd):
    Path("list.csv").write_text("\n".join(["text,label,by", *(f"word {n},{'yn'[n % 2]},{n % 6}" for n in range(30))]))
    assert ended(
        "manifest", "--data.path", "list.csv", "--data.group", "by", "--data.folds", "7", "--out", "out", *TEXTS
    )
    said = capfd.readouterr().err
    assert said.count("6 groups cannot be cut into 7 folds") == 1 and "No fold was trained" in said
    assert not Path("out").exists()


def test_the_summary_is_of_all_samples(in_this_process, capsys):
    draw = random.Random(0)
    lines = [
        f"{'good fine' if n % 3 else 'bad awful'} {draw.choice('abcdefg')}{n},{'yn'[n % 3 > 0]}" for n in range(46)
    ]
    Path("list.csv").write_text("\n".join(["text,label", *lines]))
    words = ["manifest", "--data.path", "list.csv", "--data.folds", "3", "--out", "out", *TEXTS]
    train_command(TEXT, words)
    said = capsys.readouterr().out
    runs = [Path("out") / f"fold={fold}" for fold in (1, 2, 3)]
    tested = [json.loads((run / "samples.json").read_text())["test"] for run in runs]
    assert len({name for part in tested for name, _ in part}) == sum(map(len, tested)) == 46
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    results = [summary["metrics"]["accuracy"] for summary in summaries]
    [found] = json.loads(Path("out/summary.json").read_text())
    assert found["mean"] == pytest.approx(mean(results)) and found["deviation"] == pytest.approx(stdev(results))
    assert [run["fold"] for run in found["runs"]] == [1, 2, 3] and found["test_samples"] == 46
    right = sum(round(result * len(part)) for result, part in zip(results, tested, strict=True))
    assert found["interval"] == pytest.approx(wilson_interval(right / 46, 46))
    assert f"manifest: test accuracy {mean(results):.2%} ± {stdev(results):.2%} (mean and deviation of 3 runs" in said
    assert "settings" in said and f"{mean(results):.2%} ± {stdev(results):.2%}" in said  # compare's table has it, too
    train_command(TEXT, ["manifest", "--out", "out", "--resume"])  # finished: the same again
    assert json.loads(Path("out/summary.json").read_text()) == [found]


def test_settings_that_follow_from_the_samples_of_a_fold_tell_no_runs_apart():
    """Automatic sizes may give folds of other sizes other steps."""
    settings = {"experiment": "folder", "data.folds": 2, "train.seed": 0, "train.lr": 0.1}
    runs = [
        Run(Path(f"{lr}-{fold}"), {**settings, "data.fold": fold, "train.steps": 100 + fold, "train.lr": lr}, {}, [])
        for fold in (1, 2)
        for lr in (0.1, 0.2)
    ]
    [comparison] = make_comparisons(runs, {"data.fold", "train.lr"})
    assert [len(group) for group in comparison.groups.values()] == [2, 2] and set(comparison.groups) == {
        "lr=0.1",
        "lr=0.2",
    }
    [alone] = make_comparisons(runs[::2], {"data.fold"})
    assert len(alone.groups) == 1


def test_data_that_come_with_folds_have_a_mean_over_them_as_well():
    """ESC-50 says which fold is tested on, and not how many there are."""
    runs = [
        Run(
            Path(f"fold={fold}"),
            {"experiment": "esc50", "data.fold": fold, "train.seed": 0},
            {"metrics": {"accuracy": 0.5 + fold / 10}, "test_samples": 10, "interval": [0, 1]},
            [],
            "accuracy",
        )
        for fold in (1, 2, 3)
    ]
    [comparison] = make_comparisons(runs, {"data.fold"})
    found = fold_summary(comparison, runs)
    assert found["folds"] == 3 and found["mean"] == pytest.approx(0.7) and found["test_samples"] == 30
