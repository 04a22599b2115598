"""Adapters: small trainable modules on a frozen model. LoRA, DoRA, bottleneck adapters, prompt tokens.

    adapters.add(model, LoRA(rank=8))     # freezes all parameters but those of the adapter and the head
    adapters.save(model, "adapter/")      # without the model: a few MB
    adapters.merge(model)                 # into the weights: costs nothing any more

A model may have several, by name. A new adapter changes nothing. An adapter is a submodule of the layers whose outputs
it changes, so the names of the model's own weights do not change.
"""

from .attach import add, base_parameters, disable, enable, merge, modules, names, remove, scale, unmerge
from .kinds import ROLES, Bottleneck, LoRA, LoRAAdapter, Prompt, Role, Spec
from .saving import load, load_state, save, state

__all__ = [
    "ROLES",
    "Bottleneck",
    "LoRA",
    "LoRAAdapter",
    "Prompt",
    "Role",
    "Spec",
    "add",
    "base_parameters",
    "disable",
    "enable",
    "load",
    "load_state",
    "merge",
    "modules",
    "names",
    "remove",
    "save",
    "scale",
    "state",
    "unmerge",
]
