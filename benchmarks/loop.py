"""What the training loop costs beside training: `python -m benchmarks.loop`, two minutes on 2 cores.

Shares of the training time of the embedded jobs at their own settings: watching over gradients, updates and attention;
checkpoints; waiting for data. Each part is timed where it runs, so that fractions of a percent can be measured.
"""

import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import torch

from core.experiments.command import parse_experiment
from core.training import fit, saving
from core.training.monitor import Monitor
from core.training.sampling import seed_everything
from core.training.tracking import read_metrics

JOBS = {"vision": "digits", "audio": "dtmf", "text": "docstrings"}
WATCHING = ("gradients", "weights", "updates", "attention", "alarms", "spike")  # what the monitor does
STEPS = 250  # one checkpoint, one evaluation, as often as by default
LIMITS = {"monitor": 0.02, "checkpoints": 0.05, "waiting for data": 0.03}


def timed(spent: dict[str, float], name: str, owner: object, attribute: str):
    """In it, the time spent in a function is added up."""
    function = getattr(owner, attribute)

    def run(*args, **kwargs):
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[name] += time.perf_counter() - started

    return patch.object(owner, attribute, run)


def shares(modality: str, experiment_name: str) -> dict[str, float]:
    package = import_module(f"{modality}.train")
    options = [experiment_name, f"--train.steps={STEPS}", f"--train.eval-every={STEPS}"]
    _, experiment = parse_experiment(getattr(package, modality.upper()), options)
    seed_everything(0)
    task = package.make_task(experiment)
    spent: dict[str, float] = defaultdict(float)
    with ExitStack() as stack:
        for name in WATCHING:
            stack.enter_context(timed(spent, "monitor", Monitor, name))
        stack.enter_context(timed(spent, "checkpoints", saving, "save_checkpoint"))
        run = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = fit(task, experiment.train, run)
        spent["waiting for data"], before = 0.0, 0
        for row in (row for row in read_metrics(run) if "data_wait" in row):
            seconds = (row["step"] - before) * experiment.train.batch_size / row["samples_per_second"]
            spent["waiting for data"], before = spent["waiting for data"] + row["data_wait"] * seconds, row["step"]
    total = found.seconds + spent["checkpoints"]
    return {
        "monitor": spent["monitor"] / total,
        "checkpoints": spent["checkpoints"] / total,
        "waiting for data": spent["waiting for data"] / total,
    }


def main() -> None:
    found = {name: shares(modality, name) for modality, name in JOBS.items()}
    print(f"\n{torch.get_num_threads()} threads, torch {torch.__version__}; {STEPS} steps, shares of the training time")
    print(f"{'':<20}" + "".join(f"{name:>12}" for name in found) + f"{'limit':>10}")
    for part, limit in LIMITS.items():
        print(f"{part:<20}" + "".join(f"{found[name][part]:>12.2%}" for name in found) + f"{limit:>10.0%}")


if __name__ == "__main__":
    main()
