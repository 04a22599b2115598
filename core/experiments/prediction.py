"""Prediction for work: many inputs, one row for each, printed or in a table; what is bad is a row, too.

A modality says how an input is read, and what the model makes of a batch (`Predictor`); the rest is the same for all.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import fields
from pathlib import Path

import torch

from ..config import Count, configclass, to_dict
from ..errors import UserError
from ..memory import memory_explained
from ..training.config import BatchSize, Device, Workers
from ..training.interruptions import stop_on_signal
from ..training.processes import chosen_device
from ..training.progress import Progress
from .cli import say
from .inputs import Input
from .outputs import Form, make_output_folder, output_names
from .predictor import Predictor, predictions
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
    with _results(predictor, inputs, columns, options, plots) as results:
        if options.plots is not None:
            make_output_folder(options.plots, "--plots")
            plots = [options.plots / name for name in results.kept]
        done = min(results.batches * options.batch_size, len(inputs))
        quiet = options.quiet or options.out is None
        progress = Progress(getattr(options.out, "name", ""), len(inputs), "input", done, quiet)
        explained = memory_explained("this model and its inputs", "choose a smaller --batch-size, or fewer --workers")
        found = predictions(
            predictor, inputs, options.batch_size, columns, plots, start=results.batches, workers=options.workers
        )
        with stop_on_signal() as stopped, explained, closing(progress), closing(found):
            for rows in found:
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
