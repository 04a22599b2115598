"""What a modality's predictor makes of inputs: they are read and predicted in batches, and each becomes a row."""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, get_worker_info

from ..errors import UserError
from ..files import first_line
from ..training.interruptions import dead_workers_explained, deaths_unreported, end_workers, failed_starts_explained
from ..training.memory import freed_memory
from ..training.sampling import MOST_WORKERS, cores, start_worker
from .inputs import Input
from .outputs import Form, check_finite
from .results import ERROR, Columns, Row


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """What a modality adds to the command line of prediction."""

    run: Path | str
    """Where the model comes from."""
    model: nn.Module
    read: Callable[[Input], Any]
    """What the model takes of an input. A UserError is the reason why it cannot be predicted."""
    compute: Callable[[list[Any]], Any]
    """What is predicted of a batch: a tensor with a row for each sample, or a list. If it raises a UserError, the
    samples are taken one by one."""
    form: Form
    plot: Callable[[Any, Input, Row, Path], None] | None = None
    """Writes a plot of one prediction: of a sample, its input and its row."""
    in_memory: bool = False
    """Whether reading costs so little that it needs no processes."""
    version: str = ""
    """Of what predictions depend on besides the weights, such as a tokenizer."""


def predict_input(predictor: Predictor, entry: Input) -> Row:
    """The row of one input; a UserError says why there is none."""
    (row,) = _rows(predictor, (), (), _Batches([entry], predictor.read, 1)[0])
    if error := row.pop(ERROR):
        raise UserError(error)
    return row


# --- reading ----------------------------------------------------------------------------------------------------------


class _Read(NamedTuple):
    """A batch as it was read."""

    first: int
    """The place of its first input among all."""
    inputs: Sequence[Input]
    errors: list[str]
    """For each input why it has no sample; empty if it has one."""
    samples: Any
    """A list; or if they are tensors from a loading process, all their numbers in one tensor: such a process opens a
    file for each tensor that it hands over."""
    shapes: list[tuple[int, ...]] | None = None


class _Batches(Dataset):
    """Inputs, read a batch at a time."""

    def __init__(self, inputs: Sequence[Input], read: Callable[[Input], Any], size: int):
        self.inputs, self.read, self.size = inputs, read, size

    def __len__(self) -> int:
        return -(-len(self.inputs) // self.size)

    def __getitem__(self, number: int) -> _Read:
        samples, errors, first = [], [], number * self.size
        inputs = self.inputs[first : first + self.size]
        for entry in inputs:
            error = entry.error
            if not error:
                try:
                    samples.append(self.read(entry))
                except UserError as mistake:
                    error = str(mistake)
                except MemoryError:
                    error = f"{entry.where} needs more memory to be read than there is."
                except Exception as mistake:  # a damaged file may raise any kind, and the others are to be predicted
                    error = f"{entry.where} cannot be read: {type(mistake).__name__}, {first_line(mistake)}."
            errors.append(error)
        return _Read(first, inputs, errors, samples)


def predictions(
    predictor: Predictor,
    inputs: Sequence[Input],
    size: int,
    columns: Columns,
    plots: Sequence[Path],
    start: int,
    workers: int | None,
) -> Generator[list[Row]]:
    """The rows of each batch from number `start`, in order. size: inputs of a batch; plots: of all inputs, or none.

    On a CPU each loading process predicts what it reads: threads of a model that share the cores with processes that
    read would wait for each other, and samples need not be handed over.
    """
    device = _device(predictor.model)
    batches, rows_of = _Batches(inputs, predictor.read, size), partial(_rows, predictor, columns, plots)
    there = device.type == "cpu" and not plots
    workers = _usual_workers(predictor, len(batches)) if workers is None else workers
    with deaths_unreported(), failed_starts_explained("--workers"):
        loader = DataLoader(
            Subset(batches, range(start, len(batches))),
            batch_size=None,
            collate_fn=rows_of if there else _packed,  # pyright: ignore[reportArgumentType]
            num_workers=workers,
            pin_memory=device.type == "cuda",
            worker_init_fn=start_worker,
        )
        found = iter(loader)
    try:
        while True:
            with dead_workers_explained("go on with the same command and fewer --workers"):
                batch = next(found, None)
            if batch is None:
                return
            yield batch if there else rows_of(_unpacked(batch, device))
    finally:
        end_workers(found)


def _packed(read: _Read) -> _Read:
    """Tensors as one, if they are to be handed over to another process."""
    samples = read.samples
    alike = samples and all(isinstance(sample, Tensor) and sample.dtype == samples[0].dtype for sample in samples)
    if not alike or get_worker_info() is None:
        return read
    flat = torch.cat([sample.flatten() for sample in samples])
    return read._replace(samples=flat, shapes=[tuple(sample.shape) for sample in samples])


def _unpacked(read: _Read, device: torch.device) -> _Read:
    """On the model's device."""
    samples: Any = send_to_device(read.samples, device, non_blocking=device.type == "cuda")
    if read.shapes is not None:
        parts = samples.split([torch.Size(shape).numel() for shape in read.shapes])
        samples = [part.view(shape) for part, shape in zip(parts, read.shapes, strict=True)]
    return read._replace(samples=samples, shapes=None)


def _usual_workers(predictor: Predictor, batches: int) -> int:
    """By the number of all batches, not of those that are left: one thread rounds as one, and two as two."""
    few = batches < 2 * cores() and _device(predictor.model).type == "cpu"
    return 0 if predictor.in_memory or cores() == 1 or batches == 1 or few else min(cores(), MOST_WORKERS, batches)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


# --- predicting -------------------------------------------------------------------------------------------------------


def _rows(predictor: Predictor, columns: Iterable[str], plots: Sequence[Path], read: _Read) -> list[Row]:
    """A row for each input of a batch."""
    predicted = zip(read.samples, _predicted(predictor, read.samples), strict=True)
    rows = []
    for number, (entry, error) in enumerate(zip(read.inputs, read.errors, strict=True), start=read.first):
        row: Row = {**dict.fromkeys(columns), **entry.names}
        if not error:
            sample, found = next(predicted)
            if isinstance(found, UserError):
                error = str(found)
            else:
                row |= found
                if plots and predictor.plot is not None:
                    predictor.plot(sample, entry, row, plots[number])
        rows.append(row | {ERROR: error or None})
    freed_memory.check()
    return rows


@torch.no_grad()
def _predicted(predictor: Predictor, samples: list[Any]) -> list[Row | UserError]:
    """What is predicted of each sample; an error for one whose prediction is not finite, or that the model refuses."""
    if not samples:
        return []
    try:
        made = predictor.compute(samples)
        if not isinstance(made, Tensor):
            return list(predictor.form.rows(made))
        made = made.float().cpu()
        if bool(made.isfinite().all()):
            return list(predictor.form.rows(made))
        if len(samples) == 1:
            check_finite(made, predictor.run)
    except UserError as error:
        if len(samples) == 1:
            return [error]
    return [row for sample in samples for row in _predicted(predictor, [sample])]
