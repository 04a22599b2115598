"""Evaluation: the metrics of a data set; and when a run evaluates its validation and test set or measures its model."""

from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from ..objectives.objective import Batch, Objective
from .config import TrainConfig
from .interruptions import dead_workers_explained, deaths_unreported, end_workers, failed_starts_explained
from .memory import freed_memory
from .processes import any_process, gather, to_device
from .sampling import seed_everything, start_worker
from .state import TrainingState
from .task import Data, Task
from .token_order import token_counts

EVALUATING, MEASURING = 2, 3  # give evaluation and measurements random numbers other than training's


class Evaluator:
    """Evaluates the validation set during training, and the test set after the last step."""

    def __init__(self, task: Task, config: TrainConfig, state: TrainingState, say: Callable[[str], None]):
        self.task, self.config, self.state, self.say = task, config, state, say
        self.stopped: Callable[[], bool] = lambda: False  # whether a signal asks this process to stop
        self.validation: dict[str, float] = {}
        self.measured: dict[str, float] = {}
        self.test: dict[str, float] = {}
        self.test_results: dict[str, Tensor] = {}

    @property
    def score(self) -> float:
        """The primary metric of the validation set, negated if less of it is better."""
        objective = self.task.objective
        return self.validation[objective.primary] * (-1 if objective.lower_is_better else 1)

    def evaluate(self, last: bool) -> bool:
        """Evaluate the validation set, if there is one, measure, and with `last` evaluate the test set.

        False if a signal interrupts; a measurement is finished all the same.
        """
        if self.task.validation is not None:
            found = self._evaluate("validation", self.task.validation)
            if found is None:
                return False
            self.validation, _ = found
        self.measure()
        if last:
            found = self._evaluate("test", self.task.test)
            if found is None:
                return False
            self.test, self.test_results = found
        return True

    def measure(self) -> None:
        """Take the task's further figures, if it has any. All processes must call it, and each takes them."""
        if self.task.measure is None:
            return
        state, device = self.state, self.state.accelerator.device
        seed_everything(self.config.seed, 0, state.step, 0, MEASURING)  # the same in all processes
        model = state.whole_model().to(device).eval()
        with torch.no_grad(), state.accelerator.autocast():
            self.measured = self.task.measure(model)
        if model is state.unsharded:  # it is in nobody's way
            model.cpu()
        self._say(", ".join(f"{name} {value:.4f}" for name, value in self.measured.items()))

    def _say(self, text: str) -> None:
        self.say(f"step {self.state.step}: {text}")

    def _evaluate(self, split: str, data: Data) -> tuple[dict[str, float], dict[str, Tensor]] | None:
        accelerator, step = self.state.accelerator, self.state.step
        seed_everything(self.config.seed, accelerator.process_index, step, 0, EVALUATING)
        found = evaluate_model(
            accelerator,
            self.state.evaluated_model,
            self.task.objective,
            data,
            self.task.collate,
            evaluated_at_once(self.config, data, accelerator.num_processes),
            stopped=lambda: any_process(accelerator, self.stopped()),
            workers=self.config.workers or 0,
        )
        if found is not None:
            metrics = ", ".join(f"{name} {value:.4f}" for name, value in found[0].items())
            self._say(f"{split} {metrics}")
        return found


def evaluated_at_once(config: TrainConfig, data: Data, world: int) -> int:
    """How many samples a process evaluates at a time: without gradients, twice what it trains at a time."""
    if config.eval_batch_size is not None:
        return config.eval_batch_size
    parts = config.accumulate * world
    if config.tokens_per_batch is None:
        return max(2 * config.batch_size // parts, 1)
    counts = token_counts(data)
    return max(2 * config.tokens_per_batch // (parts * int(counts.max())), 1) if counts is not None else 1


@torch.no_grad()
def evaluate_model(
    accelerator: Accelerator,
    model: nn.Module,
    objective: Objective,
    dataset: Data,
    collate: Callable[[list], Batch],
    batch_size: int,
    stopped: Callable[[], bool] = lambda: False,
    workers: int = 0,
) -> tuple[dict[str, float], dict[str, Tensor]] | None:
    """The objective's metrics and per-sample results, in the order of the data set, whatever the number of processes.

    stopped: is called after each batch, and must return the same in all processes; if it is True, the result is None.
    workers: processes that load the data, as far as there are batches for them.
    """
    model.eval()
    rank, world = accelerator.process_index, accelerator.num_processes
    size, in_shards = len(dataset), getattr(dataset, "shards", None) is not None
    own = Subset(dataset, samples_of(rank, world, size, in_shards))
    collected: dict[str, list[Tensor]] = {}
    for batch in _loaded(own, batch_size, collate, workers):
        batch = to_device(batch, accelerator.device)
        with accelerator.autocast():
            results = objective.evaluate(model, batch)
        for name, values in results.items():
            gathered = gather(accelerator, values.contiguous()).unflatten(0, (world, -1))
            collected.setdefault(name, []).append(gathered.cpu())
        freed_memory.check()
        if stopped():
            return None
    joined = {}
    for name, parts in collected.items():
        by_process = torch.cat(parts, dim=1)
        joined[name] = (by_process if in_shards else by_process.transpose(0, 1)).flatten(0, 1)[:size]
    return objective.metrics(joined), joined


def samples_of(rank: int, world: int, size: int, in_shards: bool) -> list[int]:
    """The samples that a process evaluates: each as many, for which the first ones are repeated at the end.

    One of `world` samples in turn, since those of like length lie side by side; of shards a stretch, so that a process
    reads few of them.
    """
    count = -(-size // world)
    own = range(rank * count, (rank + 1) * count) if in_shards else range(rank, count * world, world)
    return [index % size for index in own]


def _loaded(data: Data, batch_size: int, collate: Callable[[list], Batch], workers: int) -> Iterator[Batch]:
    """All batches in order; one batch alone is not worth a process."""
    workers = min(workers, -(-len(data) // batch_size))
    loader = DataLoader(
        data,
        batch_size=batch_size,
        collate_fn=collate,
        num_workers=workers if len(data) > batch_size else 0,
        worker_init_fn=start_worker,
    )
    with deaths_unreported(), failed_starts_explained():
        batches = iter(loader)
    try:
        for _ in range(len(loader)):
            with dead_workers_explained():
                batch = next(batches)
            yield batch
    finally:
        end_workers(batches)
