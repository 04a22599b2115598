"""What a process does that tests kill; found by name in that process."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path


def run_once(modality: str, arguments: list[str], out: Path) -> None:
    """What the command does, from reading the data to the last step."""
    import torch

    from core.experiments.command import parse_experiment
    from core.training import fit
    from core.training.sampling import seed_everything

    torch.set_num_threads(1)
    package = import_module(f"{modality}.train")
    _, experiment = parse_experiment(getattr(package, modality.upper()), [*arguments, f"--out={out}"])
    seed_everything(experiment.train.seed)
    task = package.make_task(experiment)
    out.mkdir(exist_ok=True)
    fit(replace(task, in_memory=True), experiment.train, out, resume=True)


def predict_once(modality: str, words: list[str], folder: Path) -> None:
    """The command of prediction, in a folder."""
    import multiprocessing
    import os
    import sys

    import torch

    from core.experiments import predict_command

    multiprocessing.set_start_method("fork", force=True)  # loading processes are started as by the command
    torch.set_num_threads(1)
    os.chdir(folder)
    program = import_module(f"{modality}.predict")
    sys.argv = ["predict", *words]
    predict_command("predict", program.Arguments, program.predict)
