"""Comparing runs: what differs, what is best, and what is said of runs that are old, unfinished, or no runs."""

import json
import re
from pathlib import Path

import pytest

from core.experiments import predict_command, train_command
from core.experiments.compare import Arguments, compare
from vision.train import VISION

pytestmark = pytest.mark.usefixtures("elsewhere")


def write_run(
    name, results=(0.5, 0.9), *, validation=None, done=True, metric="accuracy", percent=True, named=True, **changes
):
    """A run's directory, evaluated at steps 10 and 20; changes: train__lr=1.

    validation: the results on the validation set; such a run evaluates the test set at its end alone.
    """
    settings = {
        "modality": "vision",
        "experiment": "digits",
        "data": {"name": "digits"},
        "model": {"encoder": {"depth": 4, "dropout": 0.0}, "dropout": 0.0},
        "train": {"steps": 20, "batch_size": 10, "lr": 0.001, "seed": 0},
        "out": name,
        "resume": False,
    }
    for change, value in changes.items():
        *parents, last = change.split("__")
        place = settings
        for parent in parents:
            place = place[parent]
        place[last] = value
    run = Path(name)
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(settings))
    rows = [
        {"step": step, "loss": 2.0 / step, "samples_per_second": 5.0, f"test_{metric}": value}
        for step, value in zip((10, 20), results, strict=False)
    ]
    if validation is not None:
        for row, value in zip(rows, validation, strict=True):
            row[f"validation_{metric}"] = value
            if row is not rows[-1] or not done:
                del row[f"test_{metric}"]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    if done:
        summary = {"metrics": {"loss": 0.3, metric: results[-1]}, "steps": 20, "train_seconds": 1, "parameters": 1234}
        summary |= {"metric": metric, "percent": percent} if named else {}
        summary |= {} if validation is None else {"validation": {metric: validation[-1]}}
        (run / "summary.json").write_text(json.dumps({**summary, "baseline": {"RBF-SVM": 0.95}}))


def table(text, name):
    """Each row's first cell and the rest."""
    lines = text.split(f"{name}\n", 1)[1].split("\n\n")[0].splitlines()
    rows = [re.split(r"  +", line[2:]) for line in lines]
    both = zip(lines, rows, strict=True)
    return {(line[0] == "*", row[0]): dict(zip(rows[0][1:], row[1:], strict=True)) for line, row in both}


def run(*words, monkeypatch):
    monkeypatch.setattr("sys.argv", ["compare", *map(str, words)])
    predict_command("compare", Arguments, compare)


def test_seeds_are_taken_together_and_the_best_is_marked(capsys, monkeypatch):
    for lr, results in ((0.1, (0.8, 0.9)), (0.2, (0.7, 0.95))):
        for seed, result in enumerate(results):
            write_run(f"runs/{lr}-{seed}", (0.5, result), train__lr=lr, train__seed=seed)
    run(*sorted(Path("runs").iterdir()), monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    settings, runs = table(said, "settings"), table(said, "\nruns")
    # By hand: mean and sample standard deviation of (80, 90) and (70, 95).
    assert settings[True, "lr=0.1"]["test accuracy"] == "85.00% ± 7.07%" and settings[True, "lr=0.1"]["n"] == "2"
    assert settings[False, "lr=0.2"]["test accuracy"] == "82.50% ± 17.68%"
    assert runs[True, "0.2-1"] == {
        **{"lr": "0.2", "seed": "1", "test accuracy": "95.00%", "RBF-SVM": "95.00%", "time": "0:00:40"},
        **{"parameters": "1,234", "steps": "20"},
    }
    assert [name for mark, name in runs][1:] == ["0.2-1", "0.1-1", "0.1-0", "0.2-0"]
    page = Path("runs/compare.html").read_text()
    assert page.count("<svg") == 1 and "★ best" in page and "85.00% ± 7.07%" in page
    assert not re.search(r"(src|href)=['\"]?https?:", page) and "page: runs/compare.html" in said


def test_the_time_of_steps_that_differ_in_samples(capsys):
    write_run("runs/tokens", train__tokens_per_batch=2048)
    rows = [{"step": step, "samples_per_second": 5.0, "samples": seen} for step, seen in ((10, 70), (20, 150))]
    Path("runs/tokens/metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    write_run("runs/samples")
    compare(Arguments(runs=(Path("runs/tokens"), Path("runs/samples"))))
    runs = table(capsys.readouterr().out, "runs")
    times = {name: (row["tokens_per_batch"], row["time"]) for (_, name), row in runs.items() if name != "run"}
    assert times == {"tokens": ("2048", "0:00:30"), "samples": ("–", "0:00:40")}


def test_the_best_is_chosen_on_the_validation_set(capsys):
    """Both results are shown; the test result has no say."""
    for lr, validation, test in ((0.1, 0.8, 0.7), (0.2, 0.7, 0.9)):
        for seed in (0, 1):
            write_run(f"runs/{lr}-{seed}", (0.5, test), validation=(0.6, validation), train__lr=lr, train__seed=seed)
    write_run("runs/cut", (0.5, 0.9), validation=(0.6, 0.99), done=False, train__lr=0.3)
    compare(Arguments(runs=tuple(sorted(Path("runs").iterdir()))))
    said = capsys.readouterr().out
    best = table(said, "settings")[True, "lr=0.1"]
    assert (best["validation accuracy"], best["test accuracy"]) == ("80.00% ± 0.00%", "70.00% ± 0.00%")
    runs = table(said, "\nruns")
    assert [name for mark, name in runs if mark] == ["0.1-0", "0.1-1"]
    cut = runs[False, "cut (not finished)"]
    assert (cut["validation accuracy"], cut["test accuracy"]) == ("99.00%", "–")


def test_beside_runs_without_a_validation_set_the_test_set_decides(capsys):
    write_run("runs/old", (0.5, 0.9), train__lr=0.1)
    write_run("runs/new", (0.5, 0.8), validation=(0.6, 0.99), train__lr=0.2)
    compare(Arguments(runs=(Path("runs/old"), Path("runs/new"))))
    runs = table(capsys.readouterr().out, "runs")
    assert runs[True, "old"]["validation accuracy"] == "–" and runs[True, "old"]["test accuracy"] == "90.00%"
    assert runs[False, "new"]["validation accuracy"] == "99.00%"


def test_only_what_differs_is_shown_and_names_stay_apart(capsys):
    write_run("runs/a", model__dropout=0.1, model__encoder__dropout=0.2, train__lr=0.5)
    write_run("runs/b", train__lr=0.25)
    compare(Arguments(runs=(Path("runs/a"), Path("runs/b"))))
    columns = list(table(capsys.readouterr().out, "runs")[False, "run"])
    assert set(columns[:3]) == {"model.dropout", "model.encoder.dropout", "lr"} and columns[3] == "test accuracy"
    assert "depth" not in columns and "seed" not in columns


def test_less_loss_is_better(capsys):
    for name, loss in (("a", 2.0), ("b", 1.5), ("c", float("nan"))):
        write_run(f"runs/{name}", (3.0, loss), metric="loss", percent=False, train__lr=loss)
    compare(Arguments(runs=tuple(Path("runs").iterdir())))
    runs = table(capsys.readouterr().out, "runs")
    assert runs[True, "b"]["test loss"] == "1.5" and (False, "a") in runs and runs[False, "c"]["test loss"] == "nan"


def test_runs_that_are_not_finished_are_shown_with_what_is_known(capsys):
    write_run("runs/done")
    write_run("runs/cut", (0.99,), done=False, train__lr=1.0)
    write_run("runs/begun", (), done=False, train__lr=2.0)
    (Path("runs/cut") / "metrics.jsonl").open("a").write('{"step": 20, "lo')  # the crash that ended it
    compare(Arguments(runs=tuple(Path("runs").iterdir())))
    runs = table(capsys.readouterr().out, "runs")
    cut, begun = runs[False, "cut (not finished)"], runs[False, "begun (not finished)"]
    assert cut["test accuracy"] == "99.00%" and cut["steps"] == "10 of 20" and cut["time"] == "0:00:20"
    assert begun["test accuracy"] == "–" and begun["steps"] == "0 of 20" and cut["parameters"] == "–"
    assert (False, "done") in runs  # alone in the contest, so that there is none


def test_a_run_that_was_never_evaluated_stands_with_its_kind(capsys):
    write_run("runs/cut", (0.99,), done=False, train__lr=1.0)
    write_run("runs/begun", (), done=False, train__lr=2.0)
    (Path("runs/begun") / "metrics.jsonl").write_text('{"step": 10, "loss": 2.5}\n')
    compare(Arguments(runs=tuple(Path("runs").iterdir())))
    runs = table(capsys.readouterr().out, "runs")
    assert runs[False, "begun (not finished)"]["test accuracy"] == "–"
    assert runs[False, "cut (not finished)"]["test accuracy"] == "99.00%"


def test_nothing_but_unfinished_runs(capsys):
    for name in ("a", "b"):
        write_run(f"runs/{name}", (), done=False, train__seed=name)
    compare(Arguments(runs=(Path("runs/a"), Path("runs/b"))))
    assert table(capsys.readouterr().out, "settings")[False, "a and 1 more"]["n"] == "0"


def test_different_metrics_and_data_get_tables_of_their_own(capsys):
    write_run("runs/a")
    write_run("runs/b", metric="r2", percent=False)
    write_run("runs/c", modality="audio", data__name="dtmf")
    compare(Arguments(runs=tuple(Path("runs").iterdir())))
    said = capsys.readouterr().out
    for title, name in (("vision digits accuracy", "a"), ("vision digits r2", "b"), ("audio dtmf accuracy", "c")):
        assert list(table(said, f"{title}: runs")) == [(False, "run"), (False, name)]
    assert Path("runs/compare.html").read_text().count("<svg") == 3


def test_losses_of_different_objectives_are_not_compared(capsys):
    for name in ("MaskedLatents", "MaskedTokens"):
        write_run(f"runs/{name}", metric="loss", percent=False, objective=name)
    write_run("runs/error", metric="error", percent=False, results=(0.5, 0.9), lower_is_better=True, train__lr=1)
    write_run("runs/less", metric="error", percent=False, results=(0.5, 0.4), lower_is_better=True, train__lr=2)
    compare(Arguments(runs=tuple(Path("runs").iterdir())))
    said = capsys.readouterr().out
    for name in ("MaskedLatents", "MaskedTokens"):
        assert list(table(said, f"vision digits {name} loss: runs")) == [(False, "run"), (False, name)]
    assert (True, "less") in table(said, "vision digits error: runs")


def test_losses_of_other_predictions_are_not_compared(capsys):
    for name, size in (("few", 1000), ("many", 8000), ("again", 8000)):
        write_run(
            f"runs/{name}", metric="loss", percent=False, objective="MaskedTokens", data__tokenizer={"size": size}
        )
    write_run("runs/words", data__tokenizer={"size": 1000}, train__lr=2)
    write_run("runs/pieces", data__tokenizer={"size": 8000})  # accuracies can be compared
    compare(Arguments(runs=tuple(Path("runs").iterdir())))
    said = capsys.readouterr().out
    assert list(table(said, "vision digits MaskedTokens size=1000 loss: runs")) == [(False, "run"), (False, "few")]
    assert {name for _, name in table(said, "vision digits MaskedTokens size=8000 loss: runs")} == {
        "run",
        "many",
        "again",
    }
    assert {name for _, name in table(said, "vision digits accuracy: runs")} == {"run", "words", "pieces"}


def test_an_older_run_has_its_metric_guessed_and_that_is_said(capsys):
    write_run("runs/old", named=False)
    compare(Arguments(runs=(Path("runs/old"),)))
    said = capsys.readouterr()
    assert table(said.out, "runs")[False, "old"]["test accuracy"] == "90.00%"
    assert said.err == "runs/old does not name its metric: accuracy is taken.\n"


def test_what_is_no_run_is_skipped_with_a_word(capsys):
    write_run("runs/a")
    Path("runs/notes.txt").write_text("hello")
    Path("runs/empty").mkdir()
    Path("runs/model").mkdir()
    Path("runs/model/config.json").write_text('{"dim": 8}')
    Path("runs/torn").mkdir()
    Path("runs/torn/config.json").write_text('{"dim"')
    Path("runs/sweep").mkdir()
    Path("runs/sweep/sweep.json").write_text("{}")
    compare(Arguments(runs=(*sorted(Path("runs").iterdir()), Path("runs/../runs/a"))))
    said = capsys.readouterr()
    assert len(table(said.out, "runs")) == 2
    skipped = [f"skipped runs/{name}: not a run" for name in ("empty", "model", "notes.txt")]
    torn = "skipped runs/torn: runs/torn/config.json is not as it was written: invalid JSON"
    assert torn in said.err
    skipped.insert(3, "skipped runs/sweep: a sweep, whose runs are runs/sweep/*")
    assert sorted(line for line in said.err.splitlines() if torn not in line) == sorted(skipped)


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["runs/nowhere"], "There is no runs/nowhere"),
        (["runs/*"], r"There is no runs/\*"),
        ([], "There is nothing to compare"),
        (["notes.txt"], "There is nothing to compare"),
        (["runs/a", "--out", "notes.txt/page.html"], "page.html cannot be written"),
        (["runs/a", "--out", "runs"], "runs cannot be written"),
    ],
)
def test_a_mistake_gets_one_sentence(words, sentence, capsys, monkeypatch):
    write_run("runs/a")
    Path("notes.txt").write_text("hello")
    with pytest.raises(SystemExit) as exit:
        run(*words, monkeypatch=monkeypatch)
    error = capsys.readouterr().err.split("skipped notes.txt: not a run\n")[-1]
    assert exit.value.code == 1 and error.startswith("error: ") and error.count("\n") == 1
    assert re.search(sentence, error)


UNDRAWABLE = [
    ("metrics.jsonl", '{"step": 1, "samples_per_second": 0.0}'),
    ("metrics.jsonl", '{"step": 1, "samples_per_second": 1e-320}'),
    ("metrics.jsonl", '{"step": 1, "loss": 1%s}' % ("0" * 400)),
    ("metrics.jsonl", '{"step": 1%s, "loss": 1}' % ("0" * 400)),
    ("metrics.jsonl", '{"step": 1, "test_accuracy": 1e308}'),
    ("summary.json", '{"metrics": {"accuracy": NaN}}'),
    ("summary.json", '{"metrics": {"accuracy": 1e308}}'),
    ("summary.json", '{"metrics": {"accuracy": 0.5}, "baseline": {"x": 1e308}}'),
    ("summary.json", '{"metrics": {"accuracy": 0.5}, "train_seconds": NaN}'),
    ("summary.json", '{"metrics": {"accuracy": 0.5}, "parameters": 1%s}' % ("0" * 400)),
    ("config.json", '{"modality": ["x"], "experiment": "digits", "train": {"steps": 1, "batch_size": 1}}'),
    ("config.json", '{"data": {"name": []}, "experiment": "digits", "train": {"steps": 1, "batch_size": 1}}'),
]


def test_figures_that_cannot_be_drawn_spoil_no_other_runs(capsys):
    for number, (file, text) in enumerate(UNDRAWABLE):
        write_run(f"runs/{number}")
        Path(f"runs/{number}", file).write_text(text + "\n")
    write_run("runs/sound", train__lr=0.1)
    compare(Arguments(runs=tuple(Path("runs").iterdir())))
    assert table(capsys.readouterr().out, "vision digits accuracy: runs")[True, "sound"]["test accuracy"] == "90.00%"
    assert Path("runs/compare.html").exists()


@pytest.mark.parametrize("out", ["runs/a/config.json", "runs/a/page.html", "runs/b/../a/metrics.jsonl"])
def test_the_page_replaces_no_file_of_a_run(out, capsys, monkeypatch):
    write_run("runs/a")
    write_run("runs/b")
    before = Path("runs/a/config.json").read_text()
    with pytest.raises(SystemExit):
        run("runs/a", "--out", out, monkeypatch=monkeypatch)
    assert "is inside the run runs/a" in capsys.readouterr().err
    assert Path("runs/a/config.json").read_text() == before and not Path("runs/a/page.html").exists()


def test_real_runs_compare(one_thread, capsys, monkeypatch):
    tiny = ["--train.steps", "6", "--train.eval-every", "3", "--train.device", "cpu", "--model.dim", "8"]
    for heads in ("1", "2"):
        train_command(VISION, ["digits", *tiny, "--model.heads", heads, "--out", f"runs/{heads}"])
    capsys.readouterr()
    run("runs/1", "runs/2", "--out", "pages/both.html", monkeypatch=monkeypatch)
    runs = table(capsys.readouterr().out, "runs")
    for heads in ("1", "2"):
        summary = json.loads(Path(f"runs/{heads}/summary.json").read_text())
        assert summary["metric"] == "accuracy" and summary["percent"] is True
        row = runs.get((True, heads)) or runs[False, heads]
        assert row["heads"] == heads and row["test accuracy"] == f"{summary['metrics']['accuracy']:.2%}"
        assert row["parameters"] == f"{summary['parameters']:,}" and row["steps"] == "6"
    assert 'href="../runs/2/report.html"' in Path("pages/both.html").read_text()
