"""The gradients of a step: those of the whole batch, however it is divided into micro-batches and processes."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from ..objectives.objective import Batch, JointObjective, Objective
from .memory import freed_memory
from .monitor import FINITE_AGAIN, Monitor, blame
from .processes import all_weights_used, gather, gather_parts, gathered, is_sharded, total, without_sync


def step_gradients(
    accelerator: Accelerator,
    model: nn.Module,
    objective: Objective,
    micro_batches: Sequence[Batch],
    seed: Callable[[int], None] = lambda micro: None,
    clip: float = 0.0,
    monitor: Monitor | None = None,
) -> tuple[float, float]:
    """Add the gradient of the mean loss over the step's valid targets to the model, clipped to the norm `clip`.

    seed: sets the random numbers of a micro-batch. monitor: records attention and features of the first micro-batch.
    Returns the loss, and the norm of the gradient before clipping.
    """
    # Weighted by valid targets, wherever they lie: not by micro-batch.
    counts = torch.stack([objective.count(batch) for batch in micro_batches])
    count = total(accelerator, counts.sum().to(accelerator.device))
    count = count.where(count > 0, torch.ones_like(count))  # weighted targets may count for less than 1 together
    parts = len(micro_batches) * accelerator.num_processes
    if isinstance(objective, JointObjective) and parts > 1:
        losses, joint = _joint_losses(accelerator, model, objective, micro_batches, seed)
    else:
        losses, joint = [lambda batch=batch: objective.loss(model, batch) for batch in micro_batches], None
    summed = torch.zeros((), device=accelerator.device)
    for micro, loss_of in enumerate(losses):
        seed(micro)
        last = micro == len(losses) - 1
        with all_weights_used(model) if last else without_sync(accelerator, model):
            with accelerator.autocast(), monitor.watch() if monitor and not micro else nullcontext():
                loss = loss_of() / count
            # Processes average their gradients; we want their sum.
            accelerator.backward(loss * accelerator.num_processes)
        summed = summed + loss.detach()
        freed_memory.check()
    mean = total(accelerator, summed) if joint is None else joint / count
    norm = gathered(accelerator.clip_grad_norm_(model.parameters(), clip or torch.inf))
    return mean.item(), norm.item()


def _joint_losses(
    accelerator: Accelerator,
    model: nn.Module,
    objective: JointObjective,
    micro_batches: Sequence[Batch],
    seed: Callable[[int], None],
) -> tuple[list[Callable[[], Tensor]], Tensor]:
    """For each micro-batch a function whose gradients add up to those of the loss of the whole batch; and that loss.

    GradCache (Gao et al. 2021, section 3): the vectors of all samples are computed first, without gradients; then those
    of the loss with respect to the vectors; then each micro-batch is run again, to carry its vectors' gradients on.
    """
    outputs = []
    with torch.no_grad():
        for micro, batch in enumerate(micro_batches):
            seed(micro)
            with accelerator.autocast():
                outputs.append(objective.vectors(model, batch))
    sizes = [len(batch.targets) for batch in micro_batches]
    mine = [torch.cat(parts) for parts in zip(*outputs, strict=True)]
    lengths = gather(accelerator, torch.tensor([sum(sizes)], device=accelerator.device)).tolist()
    vectors = [gather_parts(accelerator, part, lengths).requires_grad_() for part in mine]
    targets = gather_parts(accelerator, torch.cat([batch.targets for batch in micro_batches]), lengths)
    loss = objective.joint_loss(vectors, targets)
    gradients = torch.autograd.grad(loss, vectors)
    first = sum(lengths[: accelerator.process_index])
    own = [gradient[first : first + sum(sizes)].split(sizes) for gradient in gradients]

    def carry(batch: Batch, upstream: Sequence[Tensor]) -> Tensor:
        pairs = zip(objective.vectors(model, batch), upstream, strict=True)
        return torch.stack([(vectors * gradient).sum() for vectors, gradient in pairs]).sum()

    return [
        lambda batch=batch, upstream=upstream: carry(batch, upstream)
        for batch, *upstream in zip(micro_batches, *own, strict=True)
    ], loss.detach()


def blame_step(
    accelerator: Accelerator,
    model: nn.Module,
    objective: Objective,
    micro_batches: Sequence[Batch],
    samples: Sequence[Sequence[int]],
    seed: Callable[[int], None],
) -> str:
    """Where the NaN or inf of the step began. samples: the indices of each micro-batch."""
    unwrapped, cause = accelerator.unwrap_model(model), FINITE_AGAIN
    for micro, (batch, indices) in enumerate(zip(micro_batches, samples, strict=True)):
        seed(micro)

        def loss_of(batch: Batch = batch) -> Tensor:
            with accelerator.autocast():
                return objective.loss(unwrapped, batch)

        # A sharded model only runs where all processes run it: one process alone cannot search it.
        cause = blame(unwrapped, None if is_sharded(model) else loss_of, batch, indices)
        if cause != FINITE_AGAIN:
            break
    everywhere = gather_object([cause]) if accelerator.num_processes > 1 else [cause]
    return next((text for text in everywhere if text != FINITE_AGAIN), FINITE_AGAIN)
