"""The processes of a run: their device, and how the model and results are distributed over them.

Each process has a copy of the model (DDP), or a shard of its weights, gradients and optimiser state (FSDP2). What is
saved is never sharded, so that a run can be resumed with any number of processes, sharded or not.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, send_to_device
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from ..encoder.blocks import Block
from ..errors import UserError
from ..objectives.objective import Batch
from ..private_torch import reset_accelerator
from .config import Device, TrainConfig
from .memory import keep_freed_memory

T = TypeVar("T")


def chosen_device(device: Device, option: str = "--train.device") -> str:
    """The kind of device that is asked for, or the fastest here. option: that asks for it, for messages."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available[device]:
        raise UserError(f"{option} {device}: there is no such device here; choose auto or cpu.")
    return device


def make_accelerator(config: TrainConfig) -> tuple[Accelerator, str]:
    """The device and precision asked for, and the precision's name."""
    device = chosen_device(config.device)
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if has_fast_bf16(device) else "fp32"
    if precision == "fp16" and device == "cpu":
        raise UserError("--train.precision fp16 needs a GPU: choose auto, fp32 or bf16 on a CPU.")
    if precision == "fp16" and config.shard:
        raise UserError("--train.shard does not go with --train.precision fp16: choose bf16 or fp32.")
    if device == "cpu":
        keep_freed_memory()
    reset_accelerator()  # so that one process can train in one precision, then in another
    accelerator = Accelerator(mixed_precision="no" if precision == "fp32" else precision, cpu=device == "cpu")
    return accelerator, precision


def shut_down(code: str | int | None = 0) -> None:
    """End a process that is one of several, after everything is written.

    It ends at once: with sharded models torch's own clean-up sometimes aborts (2.14, gloo).
    """
    if torch.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def is_main() -> bool:
    """Whether this is the process that writes files and messages: the first of `torchrun` or `accelerate launch`."""
    return os.environ.get("RANK", "0") == "0"


def decided_by_main(config: TrainConfig, decide: Callable[[], T]) -> T:
    """The main process calls `decide`, and all processes get its result."""
    make_accelerator(config)  # they meet
    decision, mistake = None, None
    if is_main():
        try:
            decision = decide()
        except UserError as error:
            mistake = error
    decision, failed = broadcast_object_list([decision, mistake is not None])
    if mistake is not None:
        raise mistake
    if failed:
        sys.exit(1)  # the main process says why
    return decision


def has_fast_bf16(device: str) -> bool:
    """Whether the device has bf16 arithmetic, rather than emulating it."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    return device == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """MPS has no float64: there, numbers to be predicted are rounded. A `Packing` stays on the CPU."""
    if device.type == "mps" and batch.targets.dtype == torch.float64:
        batch = batch._replace(targets=batch.targets.float())
    return send_to_device(batch, device)  # pyright: ignore[reportReturnType]


def distribute(accelerator: Accelerator, model: nn.Module, shard: bool) -> nn.Module:
    """The model, ready to train on this process's device; sharded, each block's weights are gathered when it runs.

    DDP searches each step for weights without a gradient if a module of the model says `skips_weights = True`: that a
    batch may lack what some of its weights are for (a modality).
    """
    if not shard or accelerator.num_processes == 1:
        skips = any(getattr(module, "skips_weights", False) for module in model.modules())
        found = DistributedDataParallelKwargs(find_unused_parameters=skips)
        accelerator.ddp_handler = found  # pyright: ignore[reportAttributeAccessIssue]
        return accelerator.prepare(model)
    from torch.distributed.fsdp import fully_shard  # seconds to import, with sympy

    model.to(accelerator.device)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    marks = {name: vars(parameter).copy() for name, parameter in model.named_parameters()}
    for module in [module for module in model.modules() if isinstance(module, Block)]:
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for name, parameter in model.named_parameters():  # they are new ones, without what was noted on the old
        vars(parameter).update(marks[name])
    return model


def is_sharded(part: Any) -> bool:
    """Recognised by the methods of FSDP2's modules and tensors: importing their types takes seconds."""
    return hasattr(part, "set_requires_gradient_sync" if isinstance(part, nn.Module) else "full_tensor")


@contextmanager
def without_sync(accelerator: Accelerator, model: Any) -> Iterator[None]:
    """Inside, gradients are not synchronised between the processes: more micro-batches of the step follow."""
    if not is_sharded(model):
        with accelerator.no_sync(model):
            yield
        return
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


@contextmanager
def all_weights_used(model: nn.Module) -> Iterator[None]:
    """Inside, each weight must get a gradient: DDP otherwise waits for it, or leaves others without their sum."""
    if not isinstance(model, DistributedDataParallel) or model.find_unused_parameters:
        yield
        return
    names = {weight: name for name, weight in model.module.named_parameters() if weight.requires_grad}
    unused = set(names)
    hooks = [weight.register_post_accumulate_grad_hook(unused.discard) for weight in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    if unused:
        name = next(name for weight, name in names.items() if weight in unused)
        raise UserError(
            f"{name} gets no gradient in a step, which several processes wait for: freeze it (requires_grad_(False)), "
            f"or state skips_weights = True in the class of the model, {type(model.module).__name__}."
        )


def gathered(tensor: Any) -> Tensor:
    """A sharded tensor gathered, any other as it is. All processes must ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def local_part(tensor: Any) -> Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers, not sharded, each once: tied weights have their first name."""
    return {name: gathered(tensor.detach()) for name, tensor in _tensors(model).items()}


@torch.no_grad()
def load_model_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    tensors = _tensors(model)
    if differing := sorted(tensors.keys() ^ state.keys()):
        which = "lacks" if differing[0] in tensors else "has, and the model has not,"
        raise UserError(f"The checkpoint {which} {differing[0]}: go on with the model that the run began with.")
    for name, tensor in tensors.items():
        if tensor.shape != state[name].shape:
            raise UserError(
                f"{name} is {tuple(state[name].shape)} in the checkpoint but {tuple(tensor.shape)} in the model: go on "
                "with the model that the run began with."
            )
        tensor.copy_(_placed_like(tensor, state[name]))


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """The optimiser's state of each weight, not sharded, by the name of the weight."""
    return {
        name: {key: gathered(value) for key, value in optimizer.state[parameter].items()}
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


def load_optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Tensor]]
) -> None:
    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        if name in state:
            optimizer.state[parameter] = {
                key: _placed_like(parameter, value) if value.ndim else value.to(parameter.device)
                for key, value in state[name].items()
            }


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    kept = model.state_dict().keys()  # some buffers are not
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    return dict(model.named_parameters()) | buffers


def _placed_like(tensor: Any, value: Tensor) -> Tensor:
    """A value on the device of `tensor`, and sharded like it."""
    value = value.to(tensor.device)
    if not is_sharded(tensor):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)


def gather(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """The tensors of all processes, one after the other along the first axis."""
    return accelerator.gather(tensor)  # pyright: ignore[reportReturnType]


def gather_parts(accelerator: Accelerator, tensor: Tensor, lengths: Sequence[int]) -> Tensor:
    """As `gather`, where the tensors of the processes have these lengths: collectives need tensors of one shape."""
    longest = max(lengths)
    padded = torch.cat([tensor, tensor.new_zeros(longest - len(tensor), *tensor.shape[1:])])
    parts = gather(accelerator, padded).split(longest)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


def total(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """The sum over all processes."""
    return accelerator.reduce(tensor, reduction="sum")  # pyright: ignore[reportReturnType]


def any_process(accelerator: Accelerator, condition: bool) -> bool:
    """Whether the condition holds in any process. All processes must ask."""
    if accelerator.num_processes == 1:
        return condition
    return bool(total(accelerator, torch.tensor(float(condition), device=accelerator.device)))
