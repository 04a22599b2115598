"""Prediction for work: many inputs in batches, read by loading processes, one row for each; what is bad is a row, too.

A modality says how an input is read, and what the model makes of a batch (`Predictor`); the rest is the same for all.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, get_worker_info

from ..config import Count, configclass, to_dict
from ..errors import UserError
from ..files import first_line
from ..memory import memory_explained
from ..training.config import BatchSize, Device, Workers
from ..training.interruptions import (
    dead_workers_explained,
    deaths_unreported,
    end_workers,
    failed_starts_explained,
    stop_on_signal,
)
from ..training.processes import chosen_device
from ..training.progress import Progress
from ..training.sampling import MOST_WORKERS, cores, start_worker
from .cli import say
from .inputs import Input
from .outputs import Form, check_finite, make_output_folder, output_names
from .results import ERROR, Columns, Journal, Kind, Row, check_table


@configclass
class PredictOptions:
    """The options of all predict commands."""

    top: Count | None = None
    """How many classes to show; 3 by default, if the model has so many."""
    embed: bool = False
    """One vector per input instead: the input of the head. A model without a head gives nothing else."""
    out: Path | None = None
    """Table with a row for each input: .csv, .jsonl or .parquet. Without it the rows are printed. If a call is
    interrupted, the same command goes on where it was."""
    plots: Path | None = None
    """Directory of plots of the attention, which are made on the CPU; none by default. They are named after the inputs
    and overwrite no file."""
    batch_size: BatchSize = 64
    """Inputs that are predicted together."""
    workers: Workers | None = None
    """Processes that read files and, on a CPU, predict them, each on one core; None: one per core, or 0 where they are
    not worth starting."""
    device: Device = "auto"
    """Device; auto: the fastest that is available."""
    quiet: bool = False
    """Show no progress."""


# Options of a call that its rows do not depend on, or that are compared in another way.
FREE = {field.name for field in fields(PredictOptions)} - {"top", "embed", "batch_size"} | {"run", "inputs"}


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


def predict_inputs(predictor: Predictor, inputs: Sequence[Input], options: PredictOptions) -> None:
    """Predict all inputs, and print or write a row for each. At the end, a UserError says that some were bad.

    The inputs are cut into batches by their order alone: a call that goes on computes what the first would have.
    """
    if options.plots is not None and predictor.plot is None:
        raise UserError("--plots has no effect where no classes are predicted: leave it out.")
    if options.out is not None:
        check_table(options.out)
    predictor.model.eval().to("cpu" if options.plots else chosen_device(options.device, "--device"))
    names: dict[str, Kind] = {name: "text" for entry in inputs for name in entry.names}
    columns: Columns = {**names, **predictor.form.columns, ERROR: "text"}
    plots = [] if options.plots is None else output_names([entry.file for entry in inputs], options.plots, ".png")
    batches = _Batches(inputs, predictor.read, options.batch_size)
    with _results(predictor, inputs, columns, options, plots) as results:
        if options.plots is not None:
            make_output_folder(options.plots, "--plots")
            plots = [options.plots / name for name in results.kept]
        done = min(results.batches * options.batch_size, len(inputs))
        quiet = options.quiet or options.out is None
        progress = Progress(getattr(options.out, "name", ""), len(inputs), "input", done, quiet)
        explained = memory_explained("this model and its inputs", "choose a smaller --batch-size, or fewer --workers")
        rows_of = partial(_rows, predictor, columns, plots)
        with (
            stop_on_signal() as stopped,
            explained,
            closing(progress),
            closing(_predictions(batches, results.batches, rows_of, predictor, options)) as predictions,
        ):
            for rows in predictions:
                results.add(rows)
                done += len(rows)
                progress.advance(len(rows))
                if stopped() and done < len(inputs):
                    break
        if done < len(inputs):
            if options.out is not None:
                print(f"Stopped after {done:,} of {len(inputs):,} inputs; the same command goes on from there.")
            sys.exit(130)
        results.finish(columns)
    _report(results, len(inputs), options.out)


def predict_input(predictor: Predictor, entry: Input) -> Row:
    """The row of one input; a UserError says why there is none."""
    (row,) = _rows(predictor, (), (), _Batches([entry], predictor.read, 1)[0])
    if error := row.pop(ERROR):
        raise UserError(error)
    return row


def _report(results: "Journal | _Printed", count: int, out: Path | None) -> None:
    """The end of a call: how many inputs there were, and an error if some were bad."""
    if out is not None:
        say(f"{out}: {count - results.failed:,} of {count:,} inputs are predicted.")
    if not results.failed:
        return
    if count == 1:
        raise UserError(results.first_error)
    where = f"the column {ERROR} of {out} says why" if out else "the lines above say why"
    raise UserError(
        f"{results.failed:,} of {count:,} inputs could not be predicted, and {where}; the first: {results.first_error}"
    )


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


def _predictions(
    batches: _Batches, start: int, rows_of: Callable[[_Read], list[Row]], predictor: Predictor, options: PredictOptions
) -> Generator[list[Row]]:
    """The rows of each batch from number `start`, in order.

    On a CPU each loading process predicts what it reads: threads of a model that share the cores with processes that
    read would wait for each other, and samples need not be handed over.
    """
    device = _device(predictor.model)
    there = device.type == "cpu" and options.plots is None
    workers = _usual_workers(predictor, len(batches)) if options.workers is None else options.workers
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
    """A row for each input of a batch. plots: of all inputs, or none."""
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


# --- results ----------------------------------------------------------------------------------------------------------


class _Printed(nullcontext):
    """Prints the row of each input."""

    def __init__(self, form: Form, inputs: Sequence[Input], plots: Sequence[Path]):
        super().__init__(self)
        self.form, self.inputs, self.plots, self.kept = form, inputs, plots, [path.name for path in plots]
        self.batches = self.printed = self.failed = 0
        self.first_error = ""

    def add(self, rows: Sequence[Row]) -> None:
        for row in rows:
            shown, plot = self.inputs[self.printed].shown, self.plots[self.printed] if self.plots else None
            self.printed += 1
            if error := row.pop(ERROR):
                self.failed += 1
                self.first_error = self.first_error or error
                if len(self.inputs) > 1:
                    say(f"{shown}: error: {error}")
            elif (said := self.form.say(row)) is None:
                say(json.dumps({key: value for key, value in row.items() if value is not None}, ensure_ascii=False))
            else:
                say(f"{shown}: {said}" + (f" (attention: {plot})" if plot else ""))

    def finish(self, columns: Columns) -> None:
        """Everything is printed."""


def _results(
    predictor: Predictor, inputs: Sequence[Input], columns: Columns, options: PredictOptions, plots: Sequence[Path]
) -> Journal | _Printed:
    if options.out is None:
        return _Printed(predictor.form, inputs, plots)
    own = {f"--{name}": value for name, value in to_dict(options).items() if name not in FREE}
    listed = hashlib.sha256()
    for entry in inputs:
        listed.update(repr((entry.names, entry.source)).encode("utf-8", "backslashreplace"))
    header = {"inputs": f"{len(inputs)}, {listed.hexdigest()}", "weights": _digest(predictor), **own}
    header |= {"--plots": options.plots and str(options.plots), "columns": columns}
    return Journal(options.out, header, kept=[path.name for path in plots])


def _digest(predictor: Predictor) -> str:
    """Of the model, so that no other one goes on with its rows."""
    found = hashlib.sha256(predictor.version.encode("utf-8", "backslashreplace"))
    found.update(repr(getattr(predictor.model, "config", None)).encode())
    for name, tensor in predictor.model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy())
    return found.hexdigest()
