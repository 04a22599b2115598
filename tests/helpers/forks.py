"""Commands run as users run them, in forks of a process that has imported everything: some 50 a second.

    with Commands("vision.train") as commands:
        ended = commands.run("vision.train", ["digits", "--train.steps", "0"], folder)
        ended.status, ended.out, ended.err

With `faults`, writing below a directory can be made to fail, as on a full disk, or to kill the process (faults.c).
"""

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
FULL, KILL = "full", "kill"


class Ended(NamedTuple):
    status: int | None
    """Exit status, the negative number of a signal, or None for a command that did not end in time."""
    out: str
    err: str
    writes: int
    """How often it wrote, renamed, removed or created something below the directory with faults."""

    @property
    def sentence(self) -> str:
        """The one line that a mistake is answered with; anything else is an error."""
        last = self.err.strip().splitlines()[-1:] or [""]
        assert self.status not in (0, None), f"status {self.status}: {self.out[-300:]}{self.err[-300:]}"
        assert "Traceback" not in self.err and last[0].startswith("error: "), self.err[-2000:]
        return last[0].removeprefix("error: ")


class Commands:
    """A server process that forks for each command."""

    def __init__(self, *modules: str, faults: bool = False, root: Path = HERE.parent.parent):
        self.modules, self.faults, self.root = modules, faults, root

    def __enter__(self) -> "Commands":
        environment = {**os.environ, "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        if self.faults:
            environment["LD_PRELOAD"] = str(build_faults())
        self.server = subprocess.Popen(
            [sys.executable, __file__, *self.modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=self.root,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stdin.close()
        self.server.wait()

    def run(
        self,
        module: str,
        words: Sequence[object],
        folder: Path,
        fault: tuple[Path, int, str] | None = None,
        timeout: float = 60.0,
        stdin: str = "",
    ) -> Ended:
        """`python -m module words` in a folder. fault: where, after how many writes, and which (FULL or KILL)."""
        fault = fault and (str(fault[0].resolve()), *fault[1:])
        request = [module, [str(word) for word in words], str(folder), fault, timeout, stdin]
        print(json.dumps(request), file=self.server.stdin, flush=True)
        return Ended(*json.loads(self.server.stdout.readline()))


def build_faults() -> Path:
    """faults.c as a library, compiled once."""
    source = HERE / "faults.c"
    library = Path(tempfile.gettempdir()) / f"trivium-faults-{os.getuid()}-{source.stat().st_mtime_ns}.so"
    if not library.exists():
        compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
        part = library.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", part, source, "-ldl"], check=True)
        part.replace(library)
    return library


# --- the server -----------------------------------------------------------------------------------------------------


def serve(modules: Sequence[str]) -> None:
    import torch

    torch.set_num_threads(1)
    for name in modules:
        importlib.import_module(name)
    gc.freeze()  # forks share it all, and go through nothing of it
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryDirectory() as folder:
            answers = [Path(folder) / name for name in ("out", "err", "writes")]
            child = os.fork()
            if not child:
                command(request, answers)
            status = wait(child, request[4])
            out, err, writes = (path.read_text(errors="replace") if path.exists() else "" for path in answers)
        print(json.dumps([status, out, err, int(writes or 0)]), flush=True)


def wait(child: int, timeout: float) -> int | None:
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def command(request: list, answers: Sequence[Path]) -> None:
    """In the fork."""
    module, words, folder, fault, _, stdin = request
    given = answers[0].with_name("in")
    given.write_text(stdin)
    for number, path in enumerate((given, *answers[:2])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), number)
    os.chdir(folder)
    sys.argv = [f"python -m {module}", *words]
    library = None
    if fault:
        import ctypes

        library = ctypes.CDLL(None)
        library.faults_arm(os.fsencode(fault[0]), ctypes.c_long(fault[1]), int(fault[2] == KILL))
    status = 0
    try:
        sys.modules.pop(module, None)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 70
    if library is not None:
        library.faults_seen.restype = int
        writes = library.faults_seen()
        library.faults_arm(b"", ctypes.c_long(-1), 0)
        answers[2].write_text(str(writes))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1:])
