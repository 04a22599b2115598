"""Small trainable parts on a frozen model: LoRA, DoRA, bottleneck adapters, prompt tokens.

    adapters.add(model, LoRA(rank=8))     # freezes all but the adapter and the head
    adapters.save(model, "adapter/")      # alone: a few MB
    adapters.merge(model)                 # into the weights: costs nothing any more

Several may be on one model, by name. Each starts as the identity. They hang on the layers whose outputs they change, so
a model's own weights keep their names.
"""

from .attach import (
    add,
    disable,
    enable,
    load,
    load_state,
    merge,
    names,
    on,
    remove,
    save,
    scale,
    state,
    unmerge,
    weights_beside,
)
from .kinds import ROLES, Bottleneck, LoRA, LowRank, Prompt, Role, Spec

__all__ = [
    "ROLES",
    "Bottleneck",
    "LoRA",
    "LowRank",
    "Prompt",
    "Role",
    "Spec",
    "add",
    "disable",
    "enable",
    "load",
    "load_state",
    "merge",
    "names",
    "on",
    "remove",
    "save",
    "scale",
    "state",
    "unmerge",
    "weights_beside",
]
