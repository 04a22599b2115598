"""Names of torch that are not public, and why each is needed."""

from collections.abc import Callable
from typing import Any

import torch
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode  # sees every operator that runs
from torch.utils._pytree import tree_leaves as tree_leaves  # the tensors in an operator's result
from torch.utils._pytree import tree_map_only as tree_map_only  # a function applied to those tensors

# The attention that torch runs on CPUs: FlopCounterMode does not know its cost.
cpu_flash_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
cpu_flash_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def custom_op_function(operator: Any) -> Callable[..., Any] | None:
    """The Python function of an operator made by torch.library.custom_op, None of any other: what such an operator does
    inside is not seen from outside."""
    custom = OPDEFS.get(operator._schema.name)
    return None if custom is None else custom._init_fn
