"""Names of torch and accelerate that are private, each with the reason for its use. Other files use none of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor, nn

# The same as torch.compiler.disable, which takes two seconds to import torch's compiler.
from torch._compile import _disable_dynamo as outside_graphs  # noqa: F401
from torch.autograd import forward_ad

# The conformance kit sees every operator that runs, and the tensors in what it returns.
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode

# torch.compile and torch.export take a class of ours only if it is a node of a pytree.
from torch.utils._pytree import GetAttrKey as GetAttrKey
from torch.utils._pytree import register_pytree_node as register_pytree_node
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils._pytree import tree_map_only as tree_map_only

# FlopCounterMode and dense attention need torch's fused attention for CPUs by name.
flash_for_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_for_cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
# Attention from plain operators, which have all derivatives: scaled_dot_product_attention chooses it by itself only.
unfused_attention = torch.ops.aten._scaled_dot_product_attention_math


def in_forward_mode() -> bool:
    """Whether a forward-mode derivative is being taken: torch has no public function for it."""
    return forward_ad._current_level >= 0


def in_function_transform() -> bool:
    """Whether a transform of torch.func other than vmap is active: torch has no public function for it."""
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    levels = functorch.get_interpreter_stack() or ()
    return any(level.key() != functorch.TransformType.Vmap for level in levels)


def in_transform() -> bool:
    """Whether any transform of torch.func is active, vmap too."""
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    return bool(functorch.get_interpreter_stack())


def is_legacy_batch(tensor: Tensor) -> bool:
    """Whether autograd calls a backward pass for a batch of gradients (is_grads_batched=True), without torch.func."""
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    return functorch.is_legacy_batchedtensor(tensor)


def is_tracing() -> bool:
    """Whether torch.jit.trace records what is computed."""
    return torch._C._is_tracing()  # pyright: ignore[reportAttributeAccessIssue]


def in_dispatch_mode() -> bool:
    """Whether a TorchDispatchMode is active, under which torch.compile compiles nothing."""
    from torch.utils._python_dispatch import is_in_torch_dispatch_mode

    return is_in_torch_dispatch_mode(include_infra_modes=False)


def constant_in_graphs(function: Callable[..., str]) -> Callable[..., str]:
    """The same as torch.compiler.assume_constant_result, which takes two seconds to import torch's compiler."""
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return function


@contextmanager
def one_graph_for_all_shapes() -> Iterator[None]:
    """A context for calling what is compiled for tensors of any shape, and for many models: torch's limit of graphs is
    meant for one. Two sizes may be equal by chance, and numbers that are not whole are constants."""
    from torch.fx.experimental import _config

    by_chance = _config.patch(use_duck_shape=False)  # pyright: ignore[reportAttributeAccessIssue]
    with torch._dynamo.config.patch(recompile_limit=256, specialize_float=True), by_chance:
        yield


def fixed_axis(tensor: Tensor, axis: int) -> Tensor:
    """The tensor, whose size along an axis is a constant of every graph."""
    torch._dynamo.mark_static(tensor, axis)
    return tensor


def forward_hooks(module: nn.Module) -> dict[int, Callable]:
    """The hooks on a module, to see whether there are any, or to remove some of which no handle is left."""
    return module._forward_hooks


def forward_pre_hooks(module: nn.Module) -> dict[int, Callable]:
    return module._forward_pre_hooks


def has_hooks(module: nn.Module) -> bool:
    """Whether any hook is registered on the module, or on all modules."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(hooks) or bool(nn.modules.module._has_any_global_hook())


def reset_accelerator() -> None:
    """Make accelerate forget its precision, so that one process can train in one and then in another."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()


def shut_down_workers(batches: Any) -> None:
    """Ask the processes of a DataLoader's iterator to end, if it has any: torch ends them only when it is deleted."""
    if hasattr(batches, "_shutdown_workers"):
        batches._shutdown_workers()


def loading_processes(batches: Any) -> list[BaseProcess]:
    """The processes of a DataLoader's iterator, to end those that hang."""
    return getattr(batches, "_workers", [])


def custom_op_function(operator: Any) -> Callable[..., Any] | None:
    """The Python function of an operator made by torch.library.custom_op, None of any other: what such an operator does
    inside is not seen from outside."""
    from torch._library.custom_ops import OPDEFS

    custom = OPDEFS.get(operator._schema.name)
    return None if custom is None else custom._init_fn
