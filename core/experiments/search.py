"""Searches: Optuna looks for the best values of options, by the validation set.

`python -m vision.train digits --search 'train.lr=log(1e-4,1e-2)' 'model.depth=int(2,6)' --trials 30` is 30 runs in
runs/digits-search, one after the other. A run that is worse than most earlier ones at the same step is ended early.
"""

import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from typing_extensions import TypedDict

from ..errors import UserError
from ..files import read_json, write_json
from ..submitted import LOG
from ..training.tracking import read_metrics
from .comparison import OF_THE_LOSS
from .config import Experiment
from .jobs import FIELDS, Places, running
from .plots import Trial, trials_panels
from .run import CONFIG, make_folder, newest, owned, refuse_taken
from .words import Option, out_option, read_options, words_of

SEARCH, JOURNAL = "search.json", "search.log"
KINDS = ("log", "uniform", "int", "choice")
STARTING = 4  # trials that none is ended early against
TRIALS = 20


class Record(TypedDict):
    """search.json: what a search consists of."""

    command: str
    experiment: str
    options: list[str]
    spaces: list[str]
    trials: int


@dataclass(frozen=True)
class Space:
    """The values of an option to choose from."""

    text: str
    field: str
    kind: Literal["log", "uniform", "int", "choice"]
    values: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> "Space":
        found = re.fullmatch(rf"(?:--)?([\w.-]+)=({'|'.join(KINDS)})\((.*)\)", text)
        if found is None:
            raise UserError(
                f"--search {text!r} is not understood: write NAME=log(LEAST,MOST), NAME=uniform(LEAST,MOST), "
                "NAME=int(LEAST,MOST) or NAME=choice(VALUE,VALUE,...)."
            )
        name, kind, values = found[1], found[2], tuple(value.strip() for value in found[3].split(","))
        space = cls(text, name.replace("_", "-"), kind, values)  # pyright: ignore[reportArgumentType]
        if kind != "choice":
            space._check_bounds()
        elif len(set(values)) < 2 or not all(values):
            raise UserError(f"--search {text!r} needs at least two different values to choose from.")
        return space

    def _check_bounds(self) -> None:
        try:
            least, most = map(int if self.kind == "int" else float, self.values)
        except ValueError:
            what = "whole numbers" if self.kind == "int" else "numbers"
            raise UserError(f"--search {self.text!r} needs two {what}, the least and the most.") from None
        if not least < most or (self.kind == "log" and least <= 0):
            above = " more than 0 and" if self.kind == "log" else ""
            raise UserError(f"--search {self.text!r}: the least must be{above} less than the most.")

    def suggest(self, trial: Any) -> str:
        """A value for a trial of Optuna, as the command line has it."""
        if self.kind == "choice":
            return trial.suggest_categorical(self.field, self.values)
        if self.kind == "int":
            return str(trial.suggest_int(self.field, *map(int, self.values)))
        least, most = map(float, self.values)
        return f"{trial.suggest_float(self.field, least, most, log=self.kind == 'log'):.6g}"


def is_search(words: Sequence[str]) -> bool:
    """Whether the options of a command line make a search, or resume one."""
    out = out_option(words)
    resumed = "--resume" in words and out is not None and (out / SEARCH).is_file()
    return resumed or any(option.field in ("search", "trials") for option in read_options(words))


def run_search(module: str, name: str, words: Sequence[str], parse: Callable[[list[str]], Experiment]) -> None:
    """Train trials in processes of their own, `python -m module name`, and compare them.

    words: the options. parse: makes an experiment from options.
    """
    if "RANK" in os.environ:
        raise UserError("A search starts its runs itself: start it without torchrun.")
    if find_spec("optuna") is None:
        raise UserError("--search needs the package optuna: pip install optuna.")
    options = read_options(words)
    spaces = [Space.of(text) for option in options if option.field == "search" for text in option.given]
    trials = _trials([option for option in options if option.field == "trials"])
    others = [option for option in options if option.field not in ("search", "trials", "out", "resume", *FIELDS)]
    places = Places.of(options)
    if places.slurm is not None and places.most is None:
        places = replace(places, most=STARTING)  # a trial learns from those before it
    if "--resume" in words:
        out = out_option(words) or newest(f"{name}-search")
        saved = _saved(out, module, name)
        if spaces or others:
            raise UserError(f"{out} is a search with settings of its own: resume it without others than --trials.")
        spaces = [Space.of(text) for text in saved["spaces"]]
        record = {**saved, "trials": trials or saved["trials"]}
        with owned(out):
            _search(record, spaces, out, places)
        return
    arguments = words_of(others)
    check_spaces(spaces, arguments, parse)  # mistakes are found before anything is made
    out, created = make_folder(out_option(words), f"{name}-search")
    record = Record(
        command=module,
        experiment=name,
        options=arguments,
        spaces=[space.text for space in spaces],
        trials=trials or TRIALS,
    )
    try:
        with owned(out):
            refuse_taken(out)
            if (out / SEARCH).exists():
                raise UserError(f"{out} already holds a search: choose another --out, or go on with it by --resume.")
            _search(record, spaces, out, places)
    finally:
        for folder in created:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def check_spaces(spaces: Sequence[Space], arguments: list[str], parse: Callable[[list[str]], Experiment]) -> None:
    """Refuse a search for nothing, and values that the options do not take. arguments: the other options."""
    if not spaces:
        raise UserError("--trials is for a search: name what is searched, as in --search 'train.lr=log(1e-4,1e-2)'.")
    if repeated := [space.field for space in spaces if [other.field for other in spaces].count(space.field) > 1]:
        raise UserError(f"--search has {repeated[0]} twice: give it once.")
    for space in spaces:
        for value in space.values:
            data = parse([*arguments, f"--{space.field}", value]).data
            of_loss = space.field.startswith(OF_THE_LOSS)
            if of_loss and (not space.field.startswith("data.") or getattr(data, "masks_tokens", False)):
                raise UserError(
                    f"--search {space.field} would change the loss that trials are judged by: start runs of your own, "
                    "and compare what a probe finds in their features."
                )
            if getattr(data, "folds", None) is not None and getattr(data, "fold", None) is None:
                raise UserError("A trial is one run, but --data.folds makes several: name the fold by --data.fold.")


def _search(record: Any, spaces: Sequence[Space], out: Path, places: Places) -> None:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    write_json(out / SEARCH, record)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(out / JOURNAL))),
        study_name=record["experiment"],
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTING, n_warmup_steps=2),
        direction="maximize",
        load_if_exists=True,
    )
    for interrupted in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(interrupted.number, state=TrialState.FAIL)
        run = interrupted.user_attrs.get("run")
        study.enqueue_trial(interrupted.params, user_attrs={"run": run} if run else None)
    resume_command = f"python -m {record['command']} {record['experiment']} --out {shlex.quote(str(out))} --resume"
    watches: dict[Path, Watch] = {}
    with running(places, out) as jobs:
        while jobs.active or (len(_done(study)) < record["trials"] and not jobs.stopped):
            while jobs.has_room and (number := len(_done(study)) + len(jobs.active)) < record["trials"]:
                # Resumed or not, a trial has the same values, if one runs at a time; else each avoids the others'.
                study.sampler = optuna.samplers.TPESampler(seed=number, constant_liar=jobs.several)
                trial = study.ask()
                values = {space.field: space.suggest(trial) for space in spaces}
                run = out / trial.user_attrs.get("run", f"trial-{trial.number}")
                trial.set_user_attr("run", run.name)
                shown = ", ".join(f"{field} {value}" for field, value in values.items())
                print(f"[{number + 1}/{record['trials']}] {run.name}: {shown}", flush=True)
                arguments = [word for field, value in values.items() for word in (f"--{field}", value)]
                command = [sys.executable, "-m", record["command"], record["experiment"], *record["options"]]
                jobs.start([*command, *arguments], run)
                watches[run] = Watch(trial, run)
            ended = jobs.wait()
            for job in jobs.active:
                if not watches[job.run].ended and watches[job.run]():
                    job.end()
            for job in ended:
                _judge(study, watches.pop(job.run), job.code, jobs.stopped)
    if len(_done(study)) < record["trials"]:
        print(
            f"Stopped the search after {len(_done(study))} of {record['trials']} trials; go on with: {resume_command}"
        )
        sys.exit(130)
    _report(study, spaces, out, resume_command)


def _judge(study: Any, watch: "Watch", code: int | None, stopped: bool) -> None:
    """Enter the result of a trial whose run has ended. stopped: whether a signal asked it to."""
    from optuna.trial import TrialState

    if (watch.run / "summary.json").exists():
        study.tell(watch.trial, final_score(watch.run))
    elif watch.ended:
        print(f"{watch.run.name} was ended after step {watch.step}: it was worse than most.", flush=True)
        study.tell(watch.trial, state=TrialState.PRUNED)
    elif not stopped:
        watch.trial.set_user_attr("exit code", code)
        study.tell(watch.trial, state=TrialState.FAIL)


class Watch:
    """Looks at the rows of a trial's run while it trains."""

    def __init__(self, trial: Any, run: Path):
        self.trial, self.run = trial, run
        self.step, self.evaluations, self.ended = 0, 0, False

    def __call__(self) -> bool:
        """Whether the run is to be ended early."""
        if self.ended or not (rows := read_metrics(self.run)):
            return self.ended
        config = read_json(self.run / CONFIG)
        for row in rows:
            value = row.get(f"validation_{config.get('metric')}")  # None: an older run, which is not ended early
            if value is not None and row["step"] > self.step:
                self.step, self.evaluations = row["step"], self.evaluations + 1
                self.trial.report(-value if config["lower_is_better"] else value, self.evaluations)
                self.ended = bool(self.trial.should_prune())
        return self.ended


def final_score(run: Path) -> float:
    """The score of a finished run on the validation set, more is better; with `patience` that of its best step."""
    summary = read_json(run / "summary.json")
    value = summary["validation"][summary["metric"]]
    return -value if summary.get("lower_is_better", summary["metric"] == "loss") else value


def _report(study: Any, spaces: Sequence[Space], out: Path, resume_command: str) -> None:
    from optuna.trial import TrialState

    from .compare import Arguments, compare

    finished = study.get_trials(states=(TrialState.COMPLETE,))
    if not finished:
        raise UserError(
            f"No trial came to its end; their messages are above, or in their {LOG}; try again with: {resume_command}"
        )
    trials = [
        Trial(number, trial.params, trial.value, trial.state == TrialState.PRUNED)
        for number, trial in enumerate(_done(study), 1)
        if trial.value is not None
    ]
    panels = trials_panels(trials, [space.field for space in spaces if space.kind == "log"])
    runs = tuple(sorted(out / trial.user_attrs["run"] for trial in finished))
    compare(Arguments(runs=runs, out=out / "compare.html"), panels)
    best = study.best_trial
    values = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in best.params.items()
    )
    print(f"best of {len(_done(study))} trials: {values} ({best.user_attrs['run']}, validation score {best.value:.4g})")


def _done(study: Any) -> list[Any]:
    """The trials that need not be done again: a run that failed is one, one that was interrupted is not."""
    from optuna.trial import TrialState

    trials = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    return [trial for trial in trials if trial.state != TrialState.FAIL or "exit code" in trial.user_attrs]


def _trials(given: Sequence[Option]) -> int | None:
    words = [word for option in given for word in option.given]
    if not given:
        return None
    if len(words) != 1 or not words[0].isdecimal() or int(words[0]) < 1:
        raise UserError(f"--trials must be a whole number of at least 1, not {' '.join(words) or 'nothing'}.")
    return int(words[0])


def _saved(out: Path, module: str, name: str) -> Record:
    if not (out / SEARCH).is_file():
        raise UserError(f"{out} holds no search to resume: name its directory with --out, or leave out --resume.")
    saved = read_json(out / SEARCH, Record)
    if (saved["command"], saved["experiment"]) != (module, name):
        raise UserError(
            f"{out} is a search of python -m {saved['command']} {saved['experiment']}: resume it with that."
        )
    return saved
