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
