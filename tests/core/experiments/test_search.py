"""Searches: what is tried and where, that bad trials end early, and that a search goes on where it stopped."""

import json
import math
from contextlib import contextmanager
from pathlib import Path

import pytest

from core import UserError
from core.experiments import search, train_command
from core.experiments.command import parse_experiment
from core.experiments.jobs import Job, Jobs
from core.experiments.plots import Trial, trials_panels
from core.experiments.search import Space, final_score
from core.submitted import resumed
from text.train import TEXT
from vision.train import VISION

SPACES = ["train.lr=log(1e-4,1e-1)", "model.depth=int(1,3)", "train.optimizer=choice(adamw,muon)"]
RUN = ["--train.batch-size", "16", "--train.warmup", "2", "--train.steps", "12", "--train.eval-every", "4"]
METRIC = {"metric": "spearman", "lower_is_better": False}
RUN += ["--model.dim", "8", "--model.heads", "1", "--train.log-every", "1", "--train.device", "cpu"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, without_figures):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # in the runs


def train(*argv):
    train_command(VISION, [*argv])


def ended(*argv):
    with pytest.raises(SystemExit) as exit:
        train(*argv)
    return exit.value.code


def option(command, name):
    return command[command.index(f"--{name}") + 1]


def values(command):
    return [option(command, name) for name in ("train.lr", "model.depth", "train.optimizer")]


class Run(Job):
    """A training process that evaluates each time it is looked at. Its metric is not one of the usual ones."""

    def __init__(self, command, run, runs):
        super().__init__(run, 0)
        self.command, self.runs, self.step, self.ending = command, runs, 0, False
        lr, depth = float(option(command, "train.lr")), int(option(command, "model.depth"))
        self.final = 1 - 0.2 * abs(math.log10(lr / 0.01)) - 0.1 * abs(depth - 2)

    def poll(self):
        if self.ending or self.runs.stopped:
            self.code = 130
        elif self.step == 10:
            validation = {"loss": 1.0, "accuracy": 0.5, "spearman": self.final}
            (self.run / "summary.json").write_text(json.dumps({**METRIC, "validation": validation}))
            self.code = 0
        else:
            self.step += 1
            with (self.run / "metrics.jsonl").open("a") as file:
                row = {"loss": 1.0, "accuracy": 0.5, "spearman": self.final}
                row = {"step": self.step, **{f"validation_{name}": value for name, value in row.items()}}
                file.write(json.dumps(row) + "\n")

    def end(self):
        self.runs.early.append(self.final)
        self.ending = True

    def wait(self):
        pass


class Runs(Jobs):
    """Replaces the training processes. The best score is at a learning rate of 0.01 and a depth of 2."""

    def __init__(self, stop_after=None):
        self.commands, self.early, self.stop_after = [], [], stop_after

    @contextmanager
    def __call__(self, places, folder):
        super().__init__(places, folder)
        yield self

    @property
    def stopped(self):
        return self.stop_after is not None and len(self.commands) >= self.stop_after

    def start(self, command, run):
        run.mkdir(exist_ok=True)
        self.commands.append(resumed([*command, "--out", str(run)], run))
        (run / "config.json").write_text(json.dumps(METRIC))
        self.active.append(Run(command, run, self))


@pytest.fixture
def compared(monkeypatch):
    found = []
    monkeypatch.setattr("core.experiments.compare.compare", lambda arguments, panels: found.append((arguments, panels)))
    return found


def test_a_search_finds_the_best_values_and_ends_bad_trials_early(monkeypatch, compared, capsys):
    runs = Runs()
    monkeypatch.setattr(search, "running", runs)
    train("digits", "--search", *SPACES, "--trials", "30", *RUN)
    assert [option(command, "out") for command in runs.commands] == [f"runs/digits-search/trial-{n}" for n in range(30)]
    rates = [float(option(command, "train.lr")) for command in runs.commands]
    assert all(1e-4 <= rate <= 1e-1 for rate in rates) and len(set(rates)) == 30
    assert {option(command, "train.optimizer") for command in runs.commands} == {"adamw", "muon"}
    assert all(option(command, "train.steps") == "12" for command in runs.commands)
    assert len(runs.early) > 5
    (arguments, panels) = compared[0]
    assert len(arguments.runs) == 30 - len(runs.early) and len(panels) == 2
    last = capsys.readouterr().out.splitlines()[-1]
    best = float(last.split("train.lr ")[1].split(",")[0])
    assert last.startswith("best of 30 trials: ") and 0.004 < best < 0.025 and "model.depth 2" in last


def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(monkeypatch, compared, capsys):
    first, whole = Runs(stop_after=4), Runs()
    monkeypatch.setattr(search, "running", first)
    assert ended("digits", "--search", *SPACES, "--trials", "7", *RUN, "--out", "found") == 130
    assert "3 of 7 trials; go on with: python -m vision.train digits --out found --resume" in capsys.readouterr().out
    second = Runs()
    monkeypatch.setattr(search, "running", second)
    train("digits", "--out", "found", "--resume")
    assert second.commands[0] == [*first.commands[-1], "--resume"]
    assert len(second.commands) == 4
    monkeypatch.setattr(search, "running", whole)
    train("digits", "--search", *SPACES, "--trials", "8", *RUN, "--out", "whole")
    assert [values(each) for each in whole.commands[:7]] == [values(c) for c in [*first.commands[:3], *second.commands]]
    more = Runs()
    monkeypatch.setattr(search, "running", more)
    train("digits", "--out", "found", "--resume", "--trials", "8")
    assert [values(each) for each in more.commands] == [values(whole.commands[7])]


def test_two_real_trials(capfd):
    train("digits", "--search", "train.lr=log(1e-3,1e-2)", "--trials", "2", *RUN, "--quiet")
    out = Path("runs/digits-search")
    assert all((out / f"trial-{number}" / "summary.json").exists() for number in range(2))
    config = json.loads((out / "trial-0" / "config.json").read_text())
    assert (config["objective"], config["metric"]) == ("Classification", "accuracy") and not config["lower_is_better"]
    assert final_score(out / "trial-0") == last_row(out / "trial-0")["validation_accuracy"]
    page = (out / "compare.html").read_text()
    assert "Trials" in page and "Scores by value" in page and "trial-1" in page


def last_row(run):
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


def test_the_score_of_a_run_with_patience_is_that_of_its_best_step():
    Path("run").mkdir()
    train("digits", *RUN, "--train.lr", "0.3", "--train.steps", "40", "--train.patience", "1", "--out", "run/one")
    rows = [json.loads(row) for row in Path("run/one/metrics.jsonl").read_text().splitlines()]
    scores = [row["validation_accuracy"] for row in rows if "validation_accuracy" in row]
    assert scores[-1] < max(scores) == final_score(Path("run/one"))


@pytest.mark.parametrize(
    "text, words",
    [
        ("train.lr", "is not understood"),
        ("train.lr=log(1,2,3)", "needs two numbers"),
        ("model.depth=int(1,2.5)", "needs two whole numbers"),
        ("train.lr=log(0,1)", "the least must be more than 0 and less than the most"),
        ("train.lr=uniform(2,1)", "the least must be less than the most"),
        ("train.optimizer=choice(adamw)", "at least two different values"),
    ],
)
def test_spaces_that_mean_nothing_say_so(text, words):
    with pytest.raises(ValueError, match=words):
        Space.of(text)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--search", "train.rate=log(1e-4,1e-2)"], "there is no option --train.rate"),
        (["--search", "train.optimizer=choice(adamw,adam)"], "--train.optimizer must be one of"),
        (["--search", "train.lr=log(1e-3,1e-2)", "train.lr=log(1e-3,1e-2)"], "has train.lr twice"),
        (["--search", "train.lr=log(1e-3,1e-2)", "--trials", "0"], "--trials must be a whole number of at least 1"),
        (["--trials", "3"], "name what is searched"),
        (["--search", "masked.ratio=uniform(0.1,0.9)"], "would change the loss that trials are judged by"),
        (["--search", "train.lr=log(1e-3,1e-2)", "--resume"], "holds no search to resume"),
    ],
)
def test_mistakes_are_found_before_anything_is_made(options, words, capsys):
    assert ended("digits", *options) in (1, 2)
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not Path("runs").exists()


def test_the_vocabulary_changes_the_loss_of_masked_tokens_only():
    space = Space.of("data.tokenizer.vocab-size=int(1000,9000)")

    def parse(words):
        return parse_experiment(TEXT, ["manifest", "--data.path", "texts.csv", *words])[1]

    search.check_spaces([space], ["--data.target", "classes"], parse)
    with pytest.raises(UserError, match="would change the loss"):
        search.check_spaces([space], ["--data.target", "tokens"], parse)


def test_plots_show_each_trial_and_mark_those_that_were_ended():
    trials = [
        Trial(1, {"train.lr": 1e-3, "train.optimizer": "muon"}, 0.5, False),
        Trial(2, {"train.lr": 1e-1, "train.optimizer": "adamw"}, 0.9, True),
        Trial(3, {"train.lr": 1e-2, "train.optimizer": "muon"}, 0.7, False),
    ]
    history, scores = (panel.content for panel in trials_panels(trials, ["train.lr"]))
    (axis,) = history.axes
    finished, ended, best = axis.lines
    assert [*finished.get_ydata()] == [0.5, 0.7] and [*ended.get_ydata()] == [0.9]
    assert [*best.get_ydata()] == [0.5, 0.5, 0.7]  # the score of a trial that was ended is not that of a whole one
    rate, optimizer = scores.axes
    assert rate.get_xscale() == "log" and [*rate.lines[1].get_xdata()] == [1e-1]
    assert [*optimizer.lines[0].get_ydata()] == [0.5, 0.7]
