"""Sweeps: several values of an option that takes one value make a grid of runs, done one after the other or at once.

`python -m vision.train digits --train.seed 0 1 2 --model.depth 2 4` is six runs in runs/digits-sweep, and
`--data.folds 5` five runs, one for each fold.
"""

import hashlib
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from functools import reduce
from itertools import product
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from typing_extensions import TypedDict

from ..config import flatten, short_names, to_dict
from ..errors import UserError
from ..files import read_json, write_json
from ..submitted import LOG
from .config import Experiment
from .jobs import FIELDS, Jobs, Places, running
from .run import make_folder, newest, owned, refuse_taken
from .words import Option, out_option, read_options, words_of

SWEEP = "sweep.json"
FOLD = "data.fold"


class Record(TypedDict):
    """sweep.json: what a sweep consists of."""

    command: str
    experiment: str
    options: list[str]
    runs: dict[str, list[str]]
    """Each run's directory and options."""


def is_sweep(words: Sequence[str], default: Experiment) -> bool:
    """Whether the options of a command line make a sweep, or resume one."""
    if {"-h", "--help"} & set(words):
        return False
    out = out_option(words)
    resumed = "--resume" in words and out is not None and (out / "sweep.json").is_file()
    return resumed or any(_has_several_values(option, default) for option in with_folds(read_options(words), default))


def with_folds(options: list[Option], default: Experiment) -> list[Option]:
    """The options, with a run for each fold where --data.folds asks for folds and --data.fold names none."""
    found = [option for option in options if option.field == "data.folds"]
    if not found or _field_type(default, FOLD) is None or any(option.field == FOLD for option in options):
        return options
    words = found[0].given
    if len(found) > 1 or len(words) > 1:
        raise UserError("--data.folds takes one number: other numbers of folds make another comparison.")
    if not words or not re.fullmatch(r"[2-9]|[1-9]\d{1,2}", words[0]):  # the parser says what it should be
        return options
    return [*options, Option(f"--{FOLD}", tuple(str(number) for number in range(1, int(words[0]) + 1)))]


def run_sweep(
    module: str, name: str, words: Sequence[str], default: Experiment, parse: Callable[[list[str]], Experiment]
) -> None:
    """Train every combination of values in a process of its own, `python -m module name`, and compare the runs.

    words: the options. parse: makes an experiment from options.
    """
    if "RANK" in os.environ:
        raise UserError("A sweep starts its runs itself: start it without torchrun, or each run alone by torchrun.")
    options = [option for option in read_options(words) if option.field != "out" and option != Option("--resume", ())]
    places = Places.of(options)
    options = [option for option in options if option.field not in FIELDS]
    if "--resume" in words:
        out = _old_sweep(out_option(words), module, name)
        with owned(out):
            saved = read_json(out / SWEEP, Record)
            if not options:
                options = read_options(saved["options"])
            elif not any(_has_several_values(option, default) for option in with_folds(options, default)):
                raise UserError(f"{out} is a sweep, with settings of its own: leave out {' '.join(words_of(options))}.")
            runs = _plan(options, default, parse)
            for run in runs.keys() & saved["runs"].keys():
                if (out / run / "config.json").exists():
                    _check_unchanged(out / run, parse(saved["runs"][run]), parse(runs[run]))
            _run_all(module, name, options, out, runs, saved["runs"], places)
        return
    runs = _plan(options, default, parse)  # mistakes are found before anything is made
    out, created = make_folder(out_option(words), f"{name}-sweep")
    try:
        with owned(out):
            refuse_taken(out)
            if (out / SWEEP).exists():
                raise UserError(f"{out} already holds a sweep: choose another --out, or go on with it by --resume.")
            _run_all(module, name, options, out, runs, {}, places)
    finally:
        for folder in created:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _run_all(
    module: str,
    name: str,
    options: Sequence[Option],
    out: Path,
    plan: Mapping[str, list[str]],
    begun: Mapping[str, list[str]],
    places: Places,
) -> None:
    runs = {out / run: arguments for run, arguments in plan.items()}
    resume_command = f"python -m {module} {name} --out {shlex.quote(str(out))} --resume"
    record = {"command": module, "experiment": name, "options": words_of(options)}
    record["runs"] = {**begun, **plan}
    write_json(out / SWEEP, record)
    alike = FOLD in _differing([*plan.values()])
    with running(places, out) as jobs:
        failed = _start_all(jobs, [sys.executable, "-m", module, name], runs, alike)
        left = sum(not (run / "summary.json").exists() for run in runs)
        if jobs.stopped and left:
            print(f"Stopped the sweep with {left} of {len(runs)} runs to go; go on with: {resume_command}")
            sys.exit(130)
    if alike and failed and not jobs.several and not any((run / "config.json").exists() for run in runs):
        (out / SWEEP).unlink()
        raise UserError("No fold was trained: what is wrong with the first, above, is so with all.")
    compared = sorted(path.parent for path in out.glob("*/config.json"))
    if compared:
        from .compare import Arguments, compare
        from .folds import summarise_folds

        differing = _differing([*begun.values(), *plan.values()])
        of_folds = FOLD in differing
        try:
            compare(Arguments(runs=tuple(compared), out=out / "compare.html"), chosen=differing if of_folds else None)
            if not failed and of_folds:
                summarise_folds(name, out, list(runs), differing)
        except UserError as error:  # what failed above matters more
            print(f"The runs are not compared: {error}", file=sys.stderr)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}; their messages are "
            f"{'in their ' + LOG if jobs.several else 'above'}; "
            f"try them again with: {resume_command}"
        )


def _start_all(jobs: Jobs, command: Sequence[str], runs: Mapping[Path, list[str]], alike: bool) -> list[str]:
    """Start the runs that are not finished; those that failed, with the reason. alike: what is refused in one before
    its first step is refused in all."""
    waiting, failed = list(enumerate(runs.items(), 1)), {}
    while (waiting and not jobs.stopped) or jobs.active:
        while waiting and jobs.has_room:
            number, (run, arguments) = waiting.pop(0)
            done = (run / "summary.json").exists()
            print(f"[{number}/{len(runs)}] {run.name}{': finished before' if done else ''}", flush=True)
            if not done:
                jobs.start([*command, *arguments], run)
        for job in jobs.wait():
            if job.code:
                reason = f"exit code {job.code}" if job.code > 0 else signal.Signals(-job.code).name
                failed[job.run] = f"{job.run.name} ({reason})"
                if alike and not (job.run / "config.json").exists():
                    waiting.clear()
            if jobs.several and not jobs.stopped:
                print(failed.get(job.run, f"{job.run.name}: finished"), flush=True)
    return [failed[run] for run in runs if run in failed]


def _differing(runs: Sequence[Sequence[str]]) -> set[str]:
    """The fields of which the options of runs do not all give the same value."""
    options = [{option.field: option for option in read_options(words)} for words in runs]
    return {field for run in options for field in run if any(other.get(field) != run[field] for other in options)}


def _plan(options: list[Option], default: Experiment, parse: Callable[[list[str]], Experiment]) -> dict[str, list[str]]:
    """The directory and the options of each run. All options are parsed here, before the first run starts."""
    options = with_folds(options, default)
    spanning = [option for option in options if _has_several_values(option, default)]
    fields = [option.field for option in options]
    for option in spanning:
        if fields.count(option.field) > 1:
            raise UserError(f"{option.word} is given twice: give all its values in one place.")
    names = short_names([option.field for option in spanning])
    runs: dict[str, list[str]] = {}
    for chosen in product(*(option.values for option in spanning)):
        values = dict(zip(spanning, chosen, strict=True))
        arguments = words_of(
            [_with_value(option, values.get(option), _field_type(default, option.field)) for option in options]
        )
        experiment = parse(arguments)
        chosen_values = {field: reduce(getattr, field.split("."), experiment) for field in names}
        run = ",".join(f"{names[field]}={_for_file_name(value)}" for field, value in chosen_values.items())
        if run in runs:
            raise UserError(f"The sweep has {run} twice: give each value once.")
        runs[run] = arguments
    return runs


def _check_unchanged(run: Path, before: Experiment, now: Experiment) -> None:
    """Refuse to resume a run of a sweep with other settings: the runs could not be compared."""
    old, new = flatten(to_dict(before)), flatten(to_dict(now))
    for name in old.keys() | new.keys():
        if new.get(name) != old.get(name):
            raise UserError(
                f"{run} has {name} {old.get(name)}, not {new.get(name)}: leave it so, or choose another --out."
            )


def _with_value(option: Option, value: str | None, kind: Any) -> Option:
    """The option with one of its values; as it is for None."""
    if value is None:
        return option
    if kind is not bool:
        return Option(option.word, (value,))
    if value not in ("True", "False"):
        raise UserError(f"{option.word} is on or off: its values in a sweep are True and False, not {value}.")
    parents, _, last = option.word.removeprefix("--").rpartition(".")
    return Option(option.word if value == "True" else f"--{parents}.no-{last}", ())


def _has_several_values(option: Option, default: Experiment) -> bool:
    several = len(option.values) > 1 and "=" not in option.word
    return several and option.field not in ("out", "resume") and _is_single_value(_field_type(default, option.field))


def _field_type(default: Experiment, field: str) -> Any:
    """The type of a field, train.seed; None if there is no such field."""
    *parents, last = field.split(".")
    owner = reduce(lambda owner, name: getattr(owner, name, None), parents, default)
    return get_type_hints(type(owner)).get(last) if is_dataclass(owner) else None


def _is_single_value(kind: Any) -> bool:
    """Whether a field of this type takes one word; False if it can be a tuple."""
    if get_origin(kind) in (Union, UnionType):
        return all(_is_single_value(part) for part in get_args(kind))
    plain = isinstance(kind, type) and not is_dataclass(kind) and not issubclass(kind, tuple | list | set | dict)
    return plain or get_origin(kind) is Literal


def _for_file_name(value: Any) -> str:
    """A value as part of a file name: if it has characters that do not belong there, it gets a checksum instead."""
    text = str(value)
    plain = re.sub(r"[^\w.+-]+", "_", text, flags=re.ASCII)[-24:]
    return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:4]}"


def _old_sweep(out: Path | None, module: str, name: str) -> Path:
    """`out`, or the newest runs/<name>-sweep[-2...]."""
    if out is None:
        out = newest(f"{name}-sweep")
    if not (out / SWEEP).is_file():
        raise UserError(f"{out} holds no sweep to resume: name its directory with --out, or leave out --resume.")
    saved = read_json(out / SWEEP, Record)
    if (saved["command"], saved["experiment"]) != (module, name):
        raise UserError(f"{out} is a sweep of python -m {saved['command']} {saved['experiment']}: resume it with that.")
    return out
