"""Key maps: weights of other libraries are renamed for our models, and every key is accounted for.

KEYS = {
    "norm.{p}": "encoder.final_norm.{p}",                               # renamed
    "blocks.{i}.fc1.{p}": "encoder.blocks.{i}.mlp.up.{p}",              # {i}: a number, {p}: the last part
    ("{i}.q.{p}", "{i}.k.{p}", "{i}.v.{p}"): "blocks.{i}.qkv.{p}",      # concatenated along the first axis
    "cls_token": Move("embed.class_token", lambda t: t[0]),             # changed
    "pooler.{p}": None,                                                 # not used
}
"""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from ..encoder.init import without_random_values
from ..errors import UserError

HALF = (torch.float16, torch.bfloat16)
FLOATS = (*HALF, torch.float32, torch.float64)
"""Types of weights that are read, all into the model's own. Narrower ones have scales beside them."""

State = Mapping[str, Shaped[Tensor, "..."]]
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Move:
    """A target key, and a function of the source tensors that gives its tensor."""

    to: str
    change: Callable[..., Tensor] = lambda *tensors: torch.cat(tensors)


KeyMap = Mapping[str | tuple[str, ...], str | Move | None]


class WeightsError(UserError):
    """A checkpoint does not fit a model. The message names the first keys at fault.

    faults: all of them, each with what is wrong.
    """

    SHOWN = 8

    def __init__(self, text: str, faults: Sequence[str] = ()):
        more = [f"and {len(faults) - self.SHOWN:,} more"] if len(faults) > self.SHOWN else []
        super().__init__("; ".join([text, *faults[: self.SHOWN], *more]))
        self.faults = tuple(faults)


def convert(state: State, key_map: KeyMap) -> dict[str, Shaped[Tensor, "..."]]:
    """`state` under our keys. A key without a rule, or a missing part of a concatenation, is an error that names it."""
    converted, covered, faults = {}, set(), []
    for sources, target in key_map.items():
        sources = (sources,) if isinstance(sources, str) else sources
        move = Move(target) if isinstance(target, str) else target
        pattern = key_pattern(sources[0])
        for key, match in [(key, match) for key in state if (match := pattern.fullmatch(key))]:
            keys = [source.format(**match.groupdict()) for source in sources]
            if absent := [k for k in keys if k not in state]:
                faults.append(f"missing beside {key}: {', '.join(absent)}")
                continue
            covered.update(keys)
            if move is not None:
                tensors = [state[k] for k in keys]
                if others := [f"{k} ({_dtype(state[k])})" for k in keys if state[k].dtype not in FLOATS]:
                    faults.append(f"not of real numbers: {', '.join(others)}")
                    continue
                if isinstance(target, Move):  # our model is of full precision: a change must not round to less
                    tensors = [t.float() if t.dtype in HALF else t for t in tensors]
                # A plain rename keeps the tensor itself: scalars cannot be concatenated.
                change = (lambda t: t) if len(keys) == 1 and isinstance(target, str) else move.change
                try:
                    converted[move.to.format(**match.groupdict())] = change(*tensors)
                except (RuntimeError, IndexError):  # IndexError: a scalar where a table is expected
                    shapes = (f"{key} {tuple(tensor.shape)}" for key, tensor in zip(keys, tensors, strict=True))
                    faults.append(f"of shapes that do not fit: {', '.join(shapes)}")
    faults += [f"no rule for: {key}" for key in state if key not in covered]
    if faults:
        raise WeightsError("The checkpoint holds keys that the key map does not account for", faults)
    return converted


def unfilled(make: Callable[[], M], fresh: Iterable[str] = ()) -> M:
    """A new model to `load` weights into: random values, which take seconds, are left out if all are loaded."""
    with nullcontext() if tuple(fresh) else without_random_values():
        return make()


def load(model: nn.Module, weights: State, fresh: Iterable[str] = (), *, take: bool = False) -> None:
    """Load `weights` (under our keys) into `model`; no key may be missing, unexpected, or of another shape or kind.

    fresh: prefixes of keys that keep their initial values (a new head); `weights` may hold or lack them.
    Of tied parameters, one key is enough.
    take: nobody else uses these tensors: the model takes them over without a copy, where they are as its own.
    """
    wanted, fresh = model.state_dict(), tuple(fresh)
    weights = {key: tensor for key, tensor in weights.items() if not key.startswith(fresh)}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    given = {id(parameters[key]) for key in weights if key in parameters}
    faults = [f"not in the model: {key}" for key in weights if key not in wanted]
    for key, tensor in wanted.items():
        if key not in weights:
            if not key.startswith(fresh) and id(parameters.get(key)) not in given:
                faults.append(f"not in the checkpoint: {key}")
        elif weights[key].shape != tensor.shape:
            faults.append(f"{key}: {tuple(weights[key].shape)} in the checkpoint, {tuple(tensor.shape)} in the model")
    faults += no_weights(weights, wanted)
    if faults:
        raise WeightsError("The checkpoint does not fit the model", faults)
    taken: dict[int, str] = {}
    for key, tensor in weights.items():
        own = parameters.get(key)
        if take and own is not None and _is_whole(tensor, own) and taken.setdefault(tensor.data_ptr(), key) == key:
            own.data = tensor.detach()
        else:
            wanted[key].copy_(tensor.detach())


def _is_whole(tensor: Tensor, like: Tensor) -> bool:
    """Whether a tensor could stand for another one, and keeps nothing else in memory."""
    same = (tensor.dtype, tensor.device) == (like.dtype, like.device)
    return same and tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes > 0


def no_weights(given: State, wanted: State) -> list[str]:
    """Of the keys that both have: those under which a number is wanted, and something else is given."""
    faults = []
    for key, tensor in given.items():
        if key not in wanted or not wanted[key].is_floating_point():
            continue
        if tensor.dtype not in FLOATS:
            faults.append(f"{key}: {_dtype(tensor)} in the checkpoint")
        # The sum is a third as dear as looking at each number, but may overflow.
        elif tensor.numel() and not tensor.sum().isfinite() and not tensor.isfinite().all():
            faults.append(f"{key}: NaN or infinity in the checkpoint")
    return faults


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def warn_of_new_head(given: str, wanted: str) -> None:
    """Warn of a model whose head predicts something else than that of the checkpoint."""
    text = f"The checkpoint's head is for {given}, not {wanted}: the head is initialised at random."
    warnings.warn(text, stacklevel=4)  # of who called from_hf or from_timm


def check_keys(missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Refuse keys that another library's loader would only log."""
    faults = [f"not in the checkpoint: {key}" for key in missing] + [f"not in the model: {key}" for key in unexpected]
    if faults:
        raise WeightsError("The checkpoint does not fit the model", faults)


def key_pattern(template: str) -> re.Pattern:
    """A template as a regular expression: {i} is a number, any other name one part of a dotted key."""
    parts, seen = [], set()
    for text, name in re.findall(r"([^{]*)(?:\{(\w+)\})?", template):
        parts.append(re.escape(text))
        if name in seen:
            parts.append(f"(?P={name})")
        elif name:
            seen.add(name)
            parts.append(f"(?P<{name}>{r'[0-9]+' if name == 'i' else r'[^.]+'})")
    return re.compile("".join(parts))
