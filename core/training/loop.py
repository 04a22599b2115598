"""The one training loop.

Everything random is a pure function of where the run stands: the order of data of (seed, step), augmentation of (seed,
epoch, index), dropout and mixing of (seed, rank, step, micro-batch), the learning rate of the step. So a resumed run
needs weights, optimiser state and one integer to go on bit for bit.
"""

import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, Subset

from ..errors import UserError
from ..objectives import Batch, Objective
from .checkpoint import Damaged, load_checkpoint, newest_healthy, save_checkpoint
from .config import TrainConfig
from .interruptions import dead_workers_explained, stop_on_signal
from .monitor import FINITE_AGAIN, Monitor, blame
from .optim import learning_rate, make_optimizer, set_learning_rate
from .sampling import MicroBatches, Order, seed_everything, train_loader
from .tracking import Tracker

MOST_LOST = 5  # steps skipped in a row, or rollbacks, before a run is given up


@dataclass
class Fit:
    """What `fit` gives back."""

    model: nn.Module
    """The trained model (its running average if there is one), on the CPU."""
    metrics: dict[str, float]
    """Of the test set, when last evaluated."""
    results: dict[str, torch.Tensor]
    """What the objective found for each test sample."""
    step: int
    """Steps done in all."""
    seconds: float
    """Spent on training steps by this process since it started, evaluations and checkpoints not counted."""
    finished: bool
    """False if a signal stopped the run before its last step."""
    precision: str
    """What the arithmetic ran in."""
    device: str


def fit(
    model: nn.Module,
    objective: Objective,
    train: Dataset,
    test: Dataset,
    collate: Callable[[list], Batch],
    config: TrainConfig,
    run: Path,
    *,
    mix: Callable[[Batch], Batch] | None = None,
    in_memory: bool = False,
    resume: bool = False,
) -> Fit:
    """Train `model` on `train`, evaluating on `test`, and write metrics and checkpoints into the directory `run`.

    train.lengths, if there are any, put samples of like length into the same batch.
    mix: changes a whole training batch on the device (mixup).
    in_memory: samples cost nothing to fetch, so that no worker processes are worth starting.
    resume: go on from the newest checkpoint in `run`.
    """
    accelerator, precision = make_accelerator(config)
    rank, world = accelerator.process_index, accelerator.num_processes
    if config.batch_size % (config.accumulate * world):
        raise UserError(
            f"--train.batch-size {config.batch_size} cannot be cut into {config.accumulate} micro-batches on "
            f"{world} processes: choose a multiple of {config.accumulate * world}."
        )
    if len(train) == 0 or len(test) == 0:
        raise UserError("The data set is empty: training and testing need at least one sample each.")
    optimizer = make_optimizer(model, config)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema)) if config.ema else None
    if config.compile:
        model.compile()
    prepared, optimizer = accelerator.prepare(model, optimizer)
    if average is not None:
        average.to(accelerator.device)
    workers = config.workers
    if workers is None:
        workers = 0 if in_memory else min(os.cpu_count() or 1, 8)
    order = Order(config.seed, len(train), config.batch_size, getattr(train, "lengths", None))
    step, slowed, seconds = 0, 1.0, 0.0  # slowed: what rollbacks made of the learning rate
    metrics, results = {}, {}

    def evaluate() -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        evaluated = prepared if average is None else average.module
        return evaluate_model(accelerator, evaluated, objective, test, collate, config.eval_batch_size)

    def start() -> tuple[Iterator[Batch], Tracker]:
        batches = MicroBatches(order, config.accumulate, step, config.steps, rank, world)
        loader = train_loader(train, collate, batches, workers, pin_memory=accelerator.device.type == "cuda")
        return iter(loader), Tracker(run, step, config.steps, enabled=accelerator.is_main_process)

    def save(score: float | None = None) -> None:
        if accelerator.is_main_process:
            state = {"optimizer": optimizer.state_dict(), "slowed": slowed, "monitor": monitor.state()}
            if average is not None:
                state["average"] = average.state_dict()
            unwrapped = accelerator.unwrap_model(prepared)
            try:
                save_checkpoint(run / "checkpoints", step, unwrapped, state, config.keep, score)
            except OSError as error:
                if config.on_save_error == "stop" or step == config.steps:
                    raise UserError(f"{error}. Make room, and go on with --resume.") from None
                tracker.say(f"{error}: training goes on without it.")
        accelerator.wait_for_everyone()

    def anyone(asked: bool) -> bool:
        """Whether any process is asked to: they must stop at the same step."""
        if world == 1:
            return asked
        return bool(accelerator.reduce(torch.tensor(float(asked), device=accelerator.device), reduction="sum"))

    def restore() -> bool:
        """Go back to the newest checkpoint that is whole, if there is one."""
        nonlocal step, slowed
        path, damages = newest_healthy(run / "checkpoints")
        for damage in damages:
            warnings.warn(f"{damage}: going on from the checkpoint before it.", stacklevel=2)
        if path is None:
            return False
        try:
            step, state = load_checkpoint(path, accelerator.unwrap_model(prepared))
        except Damaged as damage:
            raise UserError(f"{damage}.") from None
        optimizer.load_state_dict(state["optimizer"])
        slowed = state["slowed"]
        monitor.load(state["monitor"])
        if average is not None:
            average.load_state_dict(state["average"])
        return True

    monitor = Monitor(accelerator.unwrap_model(prepared), look_at_attention=not config.compile)
    if resume:
        restore()
    loader, tracker = start()
    last_logged, waited, lost = (step, 0.0), 0.0, 0  # lost: steps skipped one after the other, or rollbacks
    with stop_on_signal() as stopped, dead_workers_explained():
        stopping = anyone(stopped())
        while step < config.steps and not stopping:
            started = time.perf_counter()
            prepared.train()
            lr = slowed * learning_rate(config, step)
            set_learning_rate(optimizer, lr)
            try:
                micro_batches = [send_to_device(next(loader), accelerator.device) for _ in range(config.accumulate)]
            except UserError:  # a file that is gone
                save()
                tracker.close()
                raise
            waited += time.perf_counter() - started
            logs = (step + 1) % config.log_every == 0 or step + 1 == config.steps or step == 0
            loss, norm = _gradients(
                accelerator, prepared, objective, micro_batches, mix, config, step, monitor if logs else None
            )
            healthy = math.isfinite(loss) and (math.isfinite(norm) or precision == "fp16")  # fp16: its scaler's job
            health: dict[str, float] = {}
            if healthy:
                if logs:
                    clipped = max(norm / config.clip, 1.0) if config.clip else 1.0
                    health, before = monitor.gradients(clipped), monitor.weights()
                optimizer.step()
                if logs:
                    health |= {**monitor.updates(before), **monitor.attention()}
                lost = 0 if config.on_divergence == "skip" else lost
            else:
                why = _blame(accelerator, prepared, objective, micro_batches, mix, config, step, order)
                what = f"step {step + 1}: the {'gradient' if math.isfinite(loss) else 'loss'} is not finite; {why}"
                lost += 1
                if config.on_divergence == "halt" or lost > MOST_LOST:
                    optimizer.zero_grad(set_to_none=True)
                    save()
                    tracker.close()
                    raise UserError(
                        f"{what[0].upper()}{what[1:]}. The weights before it are saved: lower --train.lr, or choose "
                        f"--train.on-divergence skip or rollback, and go on with --resume."
                    )
                if config.on_divergence == "rollback" and restore():
                    slowed /= 2**lost
                    tracker.say(f"{what}: back to step {step}, the learning rate times {slowed:g}")
                    tracker.close()
                    loader, tracker = start()
                    last_logged, waited = (step, seconds), 0.0
                    optimizer.zero_grad(set_to_none=True)
                    continue
                tracker.say(f"{what}: step left out")
            optimizer.zero_grad(set_to_none=True)
            if average is not None and healthy:
                average.update_parameters(accelerator.unwrap_model(prepared))
            step += 1
            seconds += time.perf_counter() - started
            tracker.advance(loss, lr)
            row, score = {}, None
            if logs:
                passed = seconds - last_logged[1]
                row = {
                    "epoch": step * config.batch_size / len(train),
                    "loss": loss,
                    "lr": lr,
                    "grad_norm": norm,
                    "samples_per_second": (step - last_logged[0]) * config.batch_size / passed,
                    "data_wait": waited / passed,
                    **health,
                }
                last_logged, waited = (step, seconds), 0.0
            if step % config.eval_every == 0 or step == config.steps:
                metrics, results = evaluate()
                row |= {f"test_{name}": value for name, value in metrics.items()}
                score = metrics[objective.primary] * (-1 if objective.primary == "loss" else 1)
                figures = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
                tracker.say(f"step {step}: test {figures}")
            alarms = [*monitor.alarms(health), *filter(None, [monitor.spike(loss)])]
            for alarm in alarms:
                tracker.say(f"step {step}: {alarm}")
            if row or alarms:
                tracker.log(step, {**row, **({"alarms": alarms} if alarms else {})})
            stopping = anyone(stopped())
            if step % config.save_every == 0 or step == config.steps or stopping:
                save(score)
    if step == config.steps and not metrics:  # the run was resumed at its end
        metrics, results = evaluate()
    tracker.close()
    trained = accelerator.unwrap_model(prepared) if average is None else average.module
    finished = step == config.steps
    return Fit(trained.cpu(), metrics, results, step, seconds, finished, precision, accelerator.device.type)


def _gradients(
    accelerator: Accelerator,
    model: nn.Module,
    objective: Objective,
    micro_batches: list[Batch],
    mix: Callable[[Batch], Batch] | None,
    config: TrainConfig,
    step: int,
    monitor: Monitor | None,
) -> tuple[float, float]:
    """One step's gradients, clipped; its mean loss over valid targets, and the gradient's norm before clipping.

    monitor: looks at the attention of the first micro-batch.
    """
    # The gradient of the mean over all valid targets of the step, wherever they lie: exactly the big batch's.
    count = sum(objective.count(batch) for batch in micro_batches).to(accelerator.device)
    count = accelerator.reduce(count, reduction="sum").clamp(min=1)
    total = torch.zeros((), device=accelerator.device)
    for micro, batch in enumerate(micro_batches):
        seed_everything(config.seed, accelerator.process_index, step, micro)
        batch = batch if mix is None else mix(batch)
        last = micro == len(micro_batches) - 1
        with nullcontext() if last else accelerator.no_sync(model):
            with accelerator.autocast(), monitor.watch() if monitor and not micro else nullcontext():
                loss = objective.loss(model, batch) / count
            # Processes average their gradients; we want their sum.
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.detach()
    norm = accelerator.clip_grad_norm_(model.parameters(), config.clip or torch.inf)
    return accelerator.reduce(total, reduction="sum").item(), float(norm)


def _blame(
    accelerator: Accelerator,
    model: nn.Module,
    objective: Objective,
    micro_batches: list[Batch],
    mix: Callable[[Batch], Batch] | None,
    config: TrainConfig,
    step: int,
    order: Order,
) -> str:
    """Where the step's NaN or inf began, as far as this process can tell."""
    rank, world = accelerator.process_index, accelerator.num_processes
    batches = MicroBatches(order, config.accumulate, step, step + 1, rank, world)
    found = ""
    for micro, (batch, keys) in enumerate(zip(micro_batches, batches, strict=True)):
        seed_everything(config.seed, rank, step, micro)
        batch = batch if mix is None else mix(batch)

        def loss(batch: Batch = batch) -> torch.Tensor:
            with accelerator.autocast():
                return objective.loss(accelerator.unwrap_model(model), batch)

        found = blame(accelerator.unwrap_model(model), loss, batch, [index for _, index in keys])
        if found != FINITE_AGAIN:
            break
    return found


@torch.no_grad()
def evaluate_model(
    accelerator: Accelerator,
    model: nn.Module,
    objective: Objective,
    dataset: Dataset,
    collate: Callable[[list], Batch],
    batch_size: int,
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """The objective's metrics and per-sample results, in the data set's order, exact under any number of processes."""
    model.eval()
    rank, world = accelerator.process_index, accelerator.num_processes
    # Equal work for all: the last indices are repeated, and dropped again below.
    padded = -(-len(dataset) // world) * world
    mine = [index % len(dataset) for index in range(rank, padded, world)]
    collected: dict[str, list[torch.Tensor]] = {}
    for batch in DataLoader(Subset(dataset, mine), batch_size=batch_size, collate_fn=collate):
        batch = send_to_device(batch, accelerator.device)
        with accelerator.autocast():
            found = objective.evaluate(model, batch)
        for name, values in found.items():
            # Rank r has samples r, r + world, ...: interleave what the processes found.
            gathered = accelerator.gather(values.contiguous())
            gathered = gathered.unflatten(0, (world, -1)).transpose(0, 1).flatten(0, 1)
            collected.setdefault(name, []).append(gathered.cpu())
    results = {name: torch.cat(parts)[: len(dataset)] for name, parts in collected.items()}
    return objective.metrics(results), results


def make_accelerator(config: TrainConfig) -> tuple[Accelerator, str]:
    """The device and precision asked for, and the precision's name."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if config.device != "auto" and not available[config.device]:
        raise UserError(f"--train.device {config.device}: there is no such device here; choose auto or cpu.")
    device = config.device
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if has_fast_bf16(device) else "fp32"
    if precision == "fp16" and device == "cpu":
        raise UserError("--train.precision fp16 needs a GPU: choose auto, fp32 or bf16 on a CPU.")
    AcceleratorState._reset_state()  # so that one process can train in one precision, then in another
    accelerator = Accelerator(mixed_precision="no" if precision == "fp32" else precision, cpu=device == "cpu")
    return accelerator, precision


def has_fast_bf16(device: str) -> bool:
    """Whether the device has bf16 arithmetic, rather than emulating it."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    return device == "cpu" and torch.cpu._is_avx512_bf16_supported()
