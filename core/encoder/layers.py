"""The layers of any model, for layer-wise learning rates, freezing and monitoring."""

from typing import NamedTuple

from torch import nn

from .encoder import Encoder


class LayerGroup(NamedTuple):
    """Parameters of a model at one distance from its output.

    name: "embeddings", "block 0" and so on (with the encoder's path before it, where there are several), or "output".
    distance: 0 for what follows the encoder, 1 for an encoder's last block, 2 for the block before it, and so on; for
        the embeddings it is one more than for the first block of the deepest encoder.
    parameters: by their names in the model, in its order.
    """

    name: str
    distance: int
    parameters: dict[str, nn.Parameter]

    @property
    def is_block(self) -> bool:
        """Whether it is a block of an encoder."""
        return "block" in self.name.split()


def layer_groups(model: nn.Module) -> list[LayerGroup]:
    """All parameters of a model, from its embeddings over the blocks of its encoders to what follows them.

    Modules are expected to be registered in the order in which they are used: what stands before an encoder, in the
    module that holds it, counts as embeddings. Several encoders stand side by side. If the model wraps another one as
    its `model` (a masked autoencoder), only the encoders of the inner model count. A model without an encoder has
    nothing but an output. A parameter that is used twice belongs to the first group. Empty groups are left out.
    """
    wrapped = getattr(model, "model", None)
    inner = wrapped if isinstance(wrapped, nn.Module) else model
    encoders = {path: module for path, module in inner.named_modules() if isinstance(module, Encoder)}
    several = len(encoders) > 1

    depth = max((len(encoder.blocks) for encoder in encoders.values()), default=0)
    parts: list[tuple[str, int, list[nn.Parameter]]] = [("embeddings", depth + 1, _embeddings(inner))]
    for path, encoder in encoders.items():
        for number, block in enumerate(encoder.blocks):
            name = f"{path} block {number}" if several else f"block {number}"
            parts.append((name, len(encoder.blocks) - number, list(block.parameters())))
    parts.append(("output", 0, list(model.parameters())))

    group_of: dict[nn.Parameter, int] = {}
    for number, (_, _, parameters) in enumerate(parts):
        for parameter in parameters:
            group_of.setdefault(parameter, number)
    groups = [LayerGroup(name, distance, {}) for name, distance, _ in parts]
    for name, parameter in model.named_parameters():
        groups[group_of[parameter]].parameters[name] = parameter
    return [group for group in groups if group.parameters]


def _embeddings(module: nn.Module) -> list[nn.Parameter]:
    """What stands before an encoder: in the module that holds it, and in the encoder itself."""
    if isinstance(module, Encoder):
        positions = (module.relative_bias, module.distance_bias, module.position_vectors)
        shared = [part for part in positions if part is not None]
        return [parameter for part in (module.input_norm, *shared) for parameter in part.parameters()]
    with_encoder = [child for child in module.children() if any(isinstance(part, Encoder) for part in child.modules())]
    if not with_encoder:
        return []
    found = list(module.parameters(recurse=False))
    for child in module.children():
        if child is with_encoder[0]:
            break
        found += child.parameters()
    return found + [parameter for child in with_encoder for parameter in _embeddings(child)]
