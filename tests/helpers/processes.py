"""Processes for tests to watch, signal and kill: forks of one that has imported everything, which start at once.

Python's own fork server (multiprocessing) makes them.
"""

import gc
import multiprocessing
import os
import runpy
import signal
import socket
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from plain import no_figures

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [f"{package}.{program}" for package in ("vision", "audio", "text") for program in ("train", "predict")]
    + ["torch._dynamo", "torch.distributed.fsdp", "torch.utils.tensorboard", "matplotlib.backends.backend_svg"]
    + ["sklearn.datasets", "sklearn.svm", "sklearn.linear_model", "sklearn.pipeline", "core.testing"]
)


def start(
    program: str | Path,
    words: Sequence[object],
    folder: Path | str = ".",
    out: Path | None = None,
    err: Path | None = None,
    **environment: object,
) -> BaseProcess:
    """`python -m program words`, or a script, in a folder. out, err: files for what it prints; it may be the same one.

    Figures of its reports are empty. It leads a group of processes of its own, as a command in a terminal does.
    """
    given = str(program), [str(word) for word in words], Path(folder).resolve(), out and out.resolve()
    values = {name: str(value) for name, value in environment.items()}
    process = SERVER.Process(target=run, args=(*given, err and err.resolve(), values))
    process.start()
    return process


def run_together(count: int, program: str | Path, words: Sequence[object], err: Path) -> None:
    """To the end, with status 0; several processes meet as `torchrun --nproc-per-node count` lets them meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    same = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    places = [{**same, "RANK": rank, "LOCAL_RANK": rank} for rank in range(count)] if count > 1 else [{}]
    files = [err.with_name(f"{err.name}-{rank}") for rank in range(count)]
    processes = [start(program, words, err=file, **place) for file, place in zip(files, places, strict=True)]
    for process in processes:
        process.join()
    said = "\n".join(file.read_text()[-3000:] for file in files)
    assert [process.exitcode for process in processes] == [0] * count, said


def run_script(script: str, folder: Path) -> None:
    """Lines of Python in a process of its own, where shapes are not checked: the checkers are Python that no graph can
    hold. To the end, with status 0; folder: for files of this function.
    """
    path, err = folder / "script.py", folder / "errors"
    path.write_text(script)
    process = start(path, [], err=err)
    process.join()
    assert process.exitcode == 0, err.read_text()


def run(
    program: str, words: list[str], folder: Path, out: Path | None, err: Path | None, environment: dict[str, str]
) -> None:
    """In the fork."""
    import torch

    gc.freeze()  # all that is shared with the server
    multiprocessing.set_start_method("fork", force=True)  # loading processes are started as by the command
    torch.set_num_threads(1)
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    os.environ.update(environment)
    os.chdir(folder)
    sys.path.insert(0, str(folder))  # as `python -m` does
    for number, path in ((1, out), (2, err)):
        if path is not None:
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    sys.argv = [program, *words]
    with no_figures():
        if program.endswith(".py"):
            runpy.run_path(program, run_name="__main__")
        else:
            sys.modules.pop(program, None)
            runpy.run_module(program, run_name="__main__", alter_sys=True)
