"""Sweeps: an option that takes one value and is given several spans a grid of runs, done one after the other.

`python -m vision.train digits --train.seed 0 1 2 --model.depth 2 4` is six runs in runs/digits-sweep.
"""

import hashlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from functools import reduce
from itertools import product
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from typing_extensions import TypedDict

from ..config import flatten, short_names, to_dict
from ..errors import UserError
from ..files import read_json, write_json
from ..training.interruptions import STOPS
from .config import Experiment
from .run import make_folder, owned, refuse_taken

SWEEP = "sweep.json"
FROM_TERMINAL = {getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)}


class Record(TypedDict):
    """sweep.json: what a sweep consists of."""

    command: str
    experiment: str
    options: list[str]
    runs: dict[str, list[str]]
    """Each run's directory and options."""


class Option(NamedTuple):
    """A word of the command line that begins with --, and the words that follow it."""

    word: str
    values: tuple[str, ...]

    @property
    def field(self) -> str:
        """The field of the experiment that is meant: train.batch_size."""
        return self.word.removeprefix("--").split("=")[0].replace("-", "_")


def read_options(words: Sequence[str]) -> list[Option]:
    """What stands before the first option comes under an empty one."""
    groups: list[list[str]] = [[""]]
    for word in words:
        if word.startswith("--"):
            groups.append([word])
        else:
            groups[-1].append(word)
    return [Option(word, tuple(values)) for word, *values in groups if word or values]


def given_out(words: Sequence[str]) -> Path | None:
    """The directory that --out names."""
    found = None
    for option in read_options(words):
        if option.field == "out":
            values = option.word.split("=", 1)[1:] or option.values[:1]
            found = Path(values[0]) if values else None
    return found


def is_sweep(words: Sequence[str], default: Experiment) -> bool:
    """Whether the options of a command line span a grid, or go on with one."""
    if {"-h", "--help"} & set(words):
        return False
    out = given_out(words)
    resumed = "--resume" in words and out is not None and (out / "sweep.json").is_file()
    return resumed or any(_spans(option, default) for option in read_options(words))


def run_sweep(
    module: str, name: str, words: Sequence[str], default: Experiment, parse: Callable[[list[str]], Experiment]
) -> None:
    """Train every combination in a process of its own, `python -m module name`, and compare them.

    words: the options; parse: the experiment that options make.
    """
    if "RANK" in os.environ:
        raise UserError("A sweep starts its runs itself: start it without torchrun, or each run alone by torchrun.")
    options = [option for option in read_options(words) if option.field != "out" and option != Option("--resume", ())]
    if "--resume" in words:
        out = _old_sweep(given_out(words), module, name)
        with owned(out):
            saved = read_json(out / SWEEP, Record)
            if not options:
                options = read_options(saved["options"])
            elif not any(_spans(option, default) for option in options):
                raise UserError(f"{out} is a sweep, with settings of its own: leave out {' '.join(_words(options))}.")
            runs = _plan(options, default, parse)
            for run in runs.keys() & saved["runs"].keys():
                if (out / run / "config.json").exists():
                    _check_unchanged(out / run, parse(saved["runs"][run]), parse(runs[run]))
            _run_all(module, name, options, out, runs, saved["runs"])
        return
    runs = _plan(options, default, parse)  # mistakes are found before anything is made
    out, created = make_folder(given_out(words), f"{name}-sweep")
    try:
        with owned(out):
            refuse_taken(out)
            if (out / SWEEP).exists():
                raise UserError(f"{out} already holds a sweep: choose another --out, or go on with it by --resume.")
            _run_all(module, name, options, out, runs, {})
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
) -> None:
    runs = {out / run: arguments for run, arguments in plan.items()}
    again = f"python -m {module} {name} --out {shlex.quote(str(out))} --resume"
    record = {"command": module, "experiment": name, "options": _words(options)}
    record["runs"] = {**begun, **plan}
    write_json(out / SWEEP, record)
    failed = []
    with _children() as (start, stopped):
        for number, (run, arguments) in enumerate(runs.items(), 1):
            if stopped():
                break
            done = (run / "summary.json").exists()
            print(f"[{number}/{len(runs)}] {run.name}{': finished before' if done else ''}", flush=True)
            if done:
                continue
            resume = ["--resume"] if (run / "config.json").exists() else []
            code = start([sys.executable, "-m", module, name, *arguments, "--out", str(run), *resume])
            if code:
                failed.append(f"{run.name} ({f'exit code {code}' if code > 0 else signal.Signals(-code).name})")
        left = sum(not (run / "summary.json").exists() for run in runs)
        if stopped() and left:
            print(f"Stopped the sweep with {left} of {len(runs)} runs to go; go on with: {again}")
            sys.exit(130)
    compared = sorted(path.parent for path in out.glob("*/config.json"))
    if compared:
        from .compare import Arguments, compare

        try:
            compare(Arguments(runs=tuple(compared), out=out / "compare.html"))
        except UserError as error:  # what failed above matters more
            print(f"The runs are not compared: {error}", file=sys.stderr)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}; what was wrong stands above, at each; "
            f"try them again with: {again}"
        )


def _plan(options: list[Option], default: Experiment, parse: Callable[[list[str]], Experiment]) -> dict[str, list[str]]:
    """Each run's directory and options. All are parsed here, before the first one starts."""
    spanning = [option for option in options if _spans(option, default)]
    fields = [option.field for option in options]
    for option in spanning:
        if fields.count(option.field) > 1:
            raise UserError(f"{option.word} is given twice: give all its values in one place.")
    names = short_names([option.field for option in spanning])
    runs: dict[str, list[str]] = {}
    for chosen in product(*(option.values for option in spanning)):
        values = dict(zip(spanning, chosen, strict=True))
        arguments = _words([_one(option, values.get(option), _kind(default, option.field)) for option in options])
        experiment = parse(arguments)
        found = {field: reduce(getattr, field.split("."), experiment) for field in names}
        run = ",".join(f"{names[field]}={_plain(value)}" for field, value in found.items())
        if run in runs:
            raise UserError(f"The sweep has {run} twice: give each value once.")
        runs[run] = arguments
    return runs


def _check_unchanged(run: Path, before: Experiment, now: Experiment) -> None:
    """A sweep goes on with the settings that it began with, or its runs could not be compared."""
    old, new = flatten(to_dict(before)), flatten(to_dict(now))
    for name in old.keys() | new.keys():
        if new.get(name) != old.get(name):
            raise UserError(
                f"{run} has {name} {old.get(name)}, not {new.get(name)}: leave it so, or choose another --out."
            )


def _one(option: Option, value: str | None, kind: Any) -> Option:
    """The option with one of its values; as it is for None."""
    if value is None:
        return option
    if kind is not bool:
        return Option(option.word, (value,))
    if value not in ("True", "False"):
        raise UserError(f"{option.word} is on or off: its values in a sweep are True and False, not {value}.")
    parents, _, last = option.word.removeprefix("--").rpartition(".")
    return Option(option.word if value == "True" else f"--{parents}.no-{last}", ())


def _words(options: Sequence[Option]) -> list[str]:
    return [word for option in options for word in (option.word, *option.values) if word]


def _spans(option: Option, default: Experiment) -> bool:
    several = len(option.values) > 1 and "=" not in option.word
    return several and option.field not in ("out", "resume") and _takes_one(_kind(default, option.field))


def _kind(default: Experiment, field: str) -> Any:
    """The type of a field, train.seed; None if there is no such field."""
    *parents, last = field.split(".")
    owner = reduce(lambda owner, name: getattr(owner, name, None), parents, default)
    return get_type_hints(type(owner)).get(last) if is_dataclass(owner) else None


def _takes_one(kind: Any) -> bool:
    """Whether a field of this type is given by one word; not if it may be a tuple."""
    if get_origin(kind) in (Union, UnionType):
        return all(_takes_one(part) for part in get_args(kind))
    plain = isinstance(kind, type) and not is_dataclass(kind) and not issubclass(kind, tuple | list | set | dict)
    return plain or get_origin(kind) is Literal


def _plain(value: Any) -> str:
    """A value as part of a file's name: what must not be there makes way for a checksum."""
    text = str(value)
    plain = re.sub(r"[^\w.+-]+", "_", text, flags=re.ASCII)[-24:]
    return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:4]}"


def _old_sweep(out: Path | None, module: str, name: str) -> Path:
    """`out`, or the newest runs/<name>-sweep[-2...]."""
    if out is None:
        taken = [path.parent for path in Path("runs").glob(f"{name}-sweep*/sweep.json")]
        out = max(taken, key=lambda path: (len(path.name), path.name), default=Path("runs") / f"{name}-sweep")
    if not (out / SWEEP).is_file():
        raise UserError(f"{out} holds no sweep to resume: name its directory with --out, or leave out --resume.")
    saved = read_json(out / SWEEP, Record)
    if (saved["command"], saved["experiment"]) != (module, name):
        raise UserError(f"{out} is a sweep of python -m {saved['command']} {saved['experiment']}: resume it with that.")
    return out


@contextmanager
def _children() -> Iterator[tuple[Callable[[Sequence[str]], int], Callable[[], bool]]]:
    """Gives what runs a command and returns its exit code, and what tells whether a signal came.

    SIGINT and SIGHUP reach the command without us (a terminal sends them to the whole group); others are passed on.
    """
    asked: list[int] = []
    child: subprocess.Popen | None = None

    def ask(number: int, frame: Any) -> None:
        asked.append(number)
        if number not in FROM_TERMINAL and child is not None:
            child.send_signal(number)

    def start(command: Sequence[str]) -> int:
        nonlocal child
        # Held back till the command can answer them (train_command lets them through), not in the middle of imports.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        try:
            child = subprocess.Popen(command)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        return child.wait()

    before = {number: signal.signal(number, ask) for number in STOPS}
    try:
        yield start, lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def let_signals_through() -> None:
    """A run of a sweep starts with them held back."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
