"""The directory of a run: it belongs to one process at a time, and a start that fails leaves it unchanged."""

import errno
import os
import re
import shutil
import socket
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..config import from_dict
from ..errors import UserError
from ..files import PARTIAL, printable, read_json, reason, write_json
from ..objectives.objective import Objective
from ..training.checkpoint import has_checkpoint
from .config import Experiment

E = TypeVar("E", bound=Experiment)
CONFIG, LOCK = "config.json", ".lock"
FILES = (
    CONFIG,
    "metrics.jsonl",
    "trace.json",
    "report.html",
    "explore.html",
    "summary.json",
    "samples.json",
    "tokenizer.json",
)
FOLDERS = ("tensorboard", "checkpoints", "model", "adapter", "samples")
READ_WHOLE = ("folder", "unlabelled", "lines")  # data sets of all files below a folder
# In config.json besides the settings of the experiment.
HEADER = ("modality", "experiment", "run", "objective", "metric", "lower_is_better")


@dataclass
class Run:
    """A run whose directory this process owns."""

    path: Path
    id: str
    """Written into its checkpoints, which distinguishes them from those of another run in the same directory."""
    resumed: bool
    before: frozenset[str] = frozenset()
    """The names in the directory before the run."""
    begun: bool = False

    def begin(self, modality: str, experiment: str, objective: Objective, settings: Mapping[str, Any]) -> None:
        """Write config.json, with the settings from now on."""
        if not self.begun:
            what = (type(objective).__name__, objective.primary, objective.lower_is_better)
            header = dict(zip(HEADER, (modality, experiment, self.id, *what), strict=True))
            write_json(self.path / CONFIG, {**header, **settings})
            self.begun = True

    def undo_start(self) -> None:
        """Remove the files of a new run that has saved no checkpoint."""
        if self.resumed or has_checkpoint(self.path / "checkpoints", self.id):
            return
        for name in {*FILES, *FOLDERS} - self.before:
            path = self.path / name
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def open_run(experiment: Experiment, name: str) -> Iterator[Run]:
    """The directory of an experiment: a new one, or with `resume` the one to go on with; nobody else's meanwhile.

    name: of the experiment. If the body fails before a checkpoint is saved, what was made here is removed again.
    """
    if experiment.resume:
        path = old_run(experiment.out, name)
        with owned(path):
            _check_places(path)
            _remove_partial(path)
            yield Run(path, _id(path), resumed=True)
        return
    path, created = make_folder(experiment.out, name)
    try:
        _refuse_inside_data(path, experiment.data)
        with owned(path):
            refuse_taken(path)
            _check_places(path)
            _remove_partial(path)
            run = Run(path, uuid.uuid4().hex[:12], resumed=False, before=frozenset(os.listdir(path)))
            try:
                yield run
            except BaseException:
                run.undo_start()
                raise
    finally:
        for folder in created:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _refuse_inside_data(path: Path, data: Any) -> None:
    """Refuse to write where files would be read as data later."""
    folder = getattr(data, "path", None)
    if getattr(data, "name", None) not in READ_WHOLE or folder is None or not Path(folder).is_dir():
        return
    if path.resolve().is_relative_to(Path(folder).resolve()):
        raise UserError(
            f"{path}, where the run would be, lies inside --data.path {folder}, all of whose files are data: name a "
            "directory elsewhere by --out."
        )


def _check_places(path: Path) -> None:
    """Refuse at the start what would prevent the run from writing its results."""
    for names, fits, kind in ((FILES, Path.is_file, "file"), (FOLDERS, Path.is_dir, "directory")):
        for place in (path / name for name in names):
            if os.path.lexists(place) and not fits(place):
                raise UserError(f"{place} is not a {kind}: move it away, for a run writes its own there.")


def _remove_partial(path: Path) -> None:
    """Remove files that a killed process did not finish."""
    for folder in (path, *(path / name for name in FOLDERS)):
        for left in folder.glob(f"{PARTIAL}*"):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def make_folder(out: Path | None, name: str) -> tuple[Path, list[Path]]:
    """Create `out`, or the next runs/<name>[-2...]; and the directories that are new, the innermost first."""
    number = _newest(name) + 1
    while True:
        path = _numbered(name, number) if out is None else out
        try:
            if out is not None and out.exists() and not out.is_dir():
                raise UserError(f"--out {out} is a file: choose a directory.")
            if any("\ud800" <= letter <= "\udfff" for letter in str(path)):  # the library for weights takes none
                raise UserError(f"--out {printable(str(out))} is not valid UTF-8 text: choose another name.")
            new = [folder for folder in (path, *path.parents) if not folder.exists()]
            path.mkdir(parents=True, exist_ok=out is not None)
            return path, new
        except FileExistsError:
            if not path.exists():
                raise UserError(f"The run directory {path} cannot be made: a link on its path leads nowhere.") from None
            number += 1
        except UserError:
            raise
        except (OSError, ValueError) as error:  # ValueError: a name with a null byte
            raise UserError(f"The run directory {path} cannot be written: {reason(error)}.") from None


def refuse_taken(path: Path) -> None:
    """Refuse the directory of another run for a new one."""
    if (path / CONFIG).exists():
        raise UserError(f"{path} already holds a run: choose another --out, or go on with it by --resume.")


def old_run(out: Path | None, name: str) -> Path:
    """The directory of a run to go on with: `out`, or the newest runs/<name>[-2...]."""
    if out is None:
        out = newest(name)
    if not (out / CONFIG).is_file():
        raise UserError(f"{out} holds no run to resume: name its directory with --out, or start one without --resume.")
    return out


def newest(name: str) -> Path:
    """The newest directory runs/<name>[-2...], or runs/<name> if there is none."""
    return _numbered(name, max(_newest(name), 1))


def _newest(name: str) -> int:
    """The highest number of a directory runs/<name>[-2...]; 0 if there is none."""
    taken = [path for path in Path("runs").glob(f"{name}*") if re.fullmatch(rf"{re.escape(name)}(-\d+)?", path.name)]
    return max((int(path.name.removeprefix(name)[1:] or 1) for path in taken), default=0)


def _numbered(name: str, number: int) -> Path:
    return Path("runs") / (name if number == 1 else f"{name}-{number}")


def saved_experiment(run: Path, kind: type[E], modality: str, name: str) -> E:
    """The experiment that a run's config.json holds, which must be the one called `name`."""
    path = run / CONFIG
    content = read_json(path)
    was = content.get("modality", modality), content.get("experiment", name)
    if was != (modality, name):
        raise UserError(f"{run} is a run of python -m {was[0]}.train {was[1]}: resume it with that.")
    settings = {key: value for key, value in content.items() if key not in HEADER}
    try:
        return from_dict(kind, settings)
    except UserError as error:
        raise UserError(f"{path} is not as it was written: {error}") from None


def _id(run: Path) -> str:
    content = read_json(run / CONFIG).get("run", "")
    if not isinstance(content, str):
        raise UserError(f"{run / CONFIG} is not as it was written: the run's id is {content!r}.")
    return content


# --- one owner at a time --------------------------------------------------------------------------------------------


@contextmanager
def owned(path: Path) -> Iterator[None]:
    """Inside, no other process owns the directory; a lock that ends with its process, whatever ends that.

    A POSIX lock of a file, which network file systems know too; where one does not, a warning says so.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        _no_lock(path)
        yield
        return
    lock = path / LOCK
    while True:
        try:
            file = lock.open("a+")
        except OSError as error:
            raise UserError(f"The run directory {path} cannot be written: {reason(error)}.") from None
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            with file:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    file.seek(0)
                    owner = file.read().strip() or "another process"
                    raise UserError(
                        f"{path} is in use by {owner}: wait until it ends, or choose another --out."
                    ) from None
            lock.unlink(missing_ok=True)
            _no_lock(path)
            yield
            return
        if _same(lock, file):
            break
        file.close()  # its last owner removed it between our two steps
    with file:
        with suppress(OSError):  # a full disk: then nobody learns who the owner is
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        try:
            yield
        finally:
            if _same(lock, file):  # not if the directory was replaced, and has an owner of its own
                lock.unlink(missing_ok=True)


def _same(path: Path, file: Any) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False


def _no_lock(path: Path) -> None:
    print(f"{path}: this file system has no locks, so nothing keeps a second process out of the run.", file=sys.stderr)
