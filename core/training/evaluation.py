"""How good a model is on a whole data set."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from ..objectives.objective import Batch, Objective
from .processes import to_device


@torch.no_grad()
def evaluate_model(
    accelerator: Accelerator,
    model: nn.Module,
    objective: Objective,
    dataset: Dataset,
    collate: Callable[[list], Batch],
    batch_size: int,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, float], dict[str, torch.Tensor]] | None:
    """The objective's metrics and per-sample results, in the data set's order, exact under any number of processes.

    stopped: asked after each batch; None is returned once it says yes, to all processes at the same time.
    """
    model.eval()
    rank, world = accelerator.process_index, accelerator.num_processes
    # Equal work for all: the last indices are repeated, and dropped again below.
    padded = -(-len(dataset) // world) * world
    mine = [index % len(dataset) for index in range(rank, padded, world)]
    collected: dict[str, list[torch.Tensor]] = {}
    for batch in DataLoader(Subset(dataset, mine), batch_size=batch_size, collate_fn=collate):
        batch = to_device(batch, accelerator.device)
        with accelerator.autocast():
            found = objective.evaluate(model, batch)
        for name, values in found.items():
            # Rank r has samples r, r + world, ...: interleave what the processes found.
            gathered = accelerator.gather(values.contiguous())
            gathered = gathered.unflatten(0, (world, -1)).transpose(0, 1).flatten(0, 1)
            collected.setdefault(name, []).append(gathered.cpu())
        if stopped():
            return None
    results = {name: torch.cat(parts)[: len(dataset)] for name, parts in collected.items()}
    return objective.metrics(results), results
