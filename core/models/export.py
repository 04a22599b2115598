"""Trained models as files that run without this library: ONNX, or torch.export's own archive.

Dense attention is exported with its mask contract, so padding changes no result of the file either. Windows of exact
width (ModernBERT's) are exported as masks; other patterns are refused.
"""

import json
import logging
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..encoder.blocks import Block
from ..encoder.encoder import Encoder
from ..errors import UserError
from ..files import first_line, reason, replacing
from ..sparse.patterns import Local
from .targets import TargetConfig

ENDINGS = {".onnx": "ONNX", ".pt2": "torch.export's archive"}
TOLERANCE = 1e-4  # the most that an exported program may differ from its model
LARGEST = 2**31  # bytes of an ONNX file: protobuf holds no more

Inputs = Mapping[str, Tensor]
Axes = Mapping[str, Mapping[int, Dim]]


def check_target(path: Path) -> None:
    """Refuse a file that cannot be written, before a model is loaded."""
    if path.suffix not in ENDINGS or path.resolve().suffix != path.suffix:  # a link may lead to a model's weights
        known = " or ".join(f"{ending} ({what})" for ending, what in ENDINGS.items())
        raise UserError(f"{path}: the suffix names the format: choose {known}.")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no directory {path.parent}.")
    if path.is_dir():
        raise UserError(f"{path} is a directory: name a file.")
    if path.suffix == ".onnx":
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise UserError(f'ONNX needs the package {error.name}: pip install -e ".[export]".') from None


def target_metadata(config: TargetConfig) -> dict[str, Any]:
    """What the logits of a model mean."""
    number = {"target_mean": config.target_mean, "target_std": config.target_std}
    return {"labels": config.labels, "multilabel": config.multilabel, **(number if config.predicts_number else {})}


def export_model(
    model: nn.Module,
    examples: Sequence[Inputs],
    axes: Axes,
    output: str,
    metadata: Mapping[str, Any],
    path: Path,
) -> str:
    """Write a model in eval mode to a file, whole or not at all. Returns a line that describes the file.

    examples: inputs by the names of the model's parameters, in their order. The first are traced. The others have other
    sizes, and the results of the file on them are compared with those of the model.
    axes: the axes of each input that may have any size, and their names.
    metadata: stored in the file, each value as JSON.
    """
    check_target(path)
    check_dense(model)
    write = _write_onnx if path.suffix == ".onnx" else _write_archive
    try:
        with replacing(path) as partial:
            try:
                program = trace(model, examples[0], axes)
                write(program, list(examples[0]), axes, output, metadata, partial)
            except (UserError, OSError):
                raise
            except Exception as error:  # torch raises many kinds of errors here
                raise UserError(
                    f"{path} was not written: this model can't be exported ({first_line(error)})."
                ) from error
            run = (open_onnx if path.suffix == ".onnx" else open_archive)(partial)
            differences = [_difference(model, run, inputs) for inputs in examples[1:]]
            difference = max(differences, key=lambda found: math.inf if math.isnan(found) else found)
            if not difference <= TOLERANCE:  # also if it is NaN
                raise UserError(f"{path} was not written: it would differ from the model by {difference:.1g}.")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {reason(error)}.") from None
    shapes = ", ".join(_shape(name, value, axes.get(name, {})) for name, value in examples[0].items())
    size = path.stat().st_size / 1e6
    return f"{path}: {size:.1f} MB, inputs {shapes}; differs from the model by at most {difference:.0e}"


def check_dense(model: nn.Module) -> None:
    for encoder in (module for module in model.modules() if isinstance(module, Encoder)):
        patterns = encoder.config.patterns
        for pattern in patterns if isinstance(patterns, tuple) else (patterns,):
            if pattern is not None and not (isinstance(pattern, Local) and pattern.exact):
                raise UserError(
                    f"The model attends by a pattern, {pattern}, but only dense attention and windows of exact width "
                    "can be exported: train it without --model.patterns, since its results differ without them."
                )


@torch.no_grad()
def trace(model: nn.Module, inputs: Inputs, axes: Axes) -> ExportedProgram:
    shapes = tuple(dict(axes.get(name, {})) for name in inputs)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    hooks = [block.register_forward_pre_hook(_window_as_mask) for block in blocks]
    try:
        return torch.export.export(model, tuple(inputs.values()), dynamic_shapes=shapes)
    finally:
        for hook in hooks:
            hook.remove()


def _window_as_mask(block: Block, inputs: tuple) -> tuple:
    """The block's inputs with a mask in place of a pattern."""
    x, relation, *rest = inputs
    pattern = relation.pattern
    if pattern is None:
        return inputs
    if relation.prefix or relation.grid:
        raise UserError(f"The window {pattern} is exported for sequences without prefix tokens and grid only.")
    places = torch.arange(x.shape[1], device=x.device)
    near = ((places[:, None] - places).abs() <= pattern.window // 2)[None, None]
    mask = near if relation.mask is None else near & relation.pair_mask
    return x, replace(relation, mask=mask, pattern=None), *rest


def _write_archive(program: ExportedProgram, _names, _axes, _output, metadata: Mapping[str, Any], path: Path) -> None:
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(metadata)})


def _write_onnx(
    program: ExportedProgram, names: list[str], axes: Axes, output: str, metadata: Mapping[str, Any], path: Path
) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if size >= LARGEST:
        raise UserError(f"An ONNX file holds less than 2 GB, and the model has {size / 1e9:.1f}: choose .pt2.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        found = torch.onnx.export(program, dynamo=True, input_names=names, output_names=[output], verbose=False)
    assert found is not None  # as always with dynamo=True
    _name_axes(found.model.graph, axes)
    for key, value in metadata.items():
        found.model.metadata_props[key] = json.dumps(value)
    found.save(path)


def _name_axes(graph: Any, axes: Axes) -> None:
    """Replace the exporter's numbered symbols by the names of the axes."""
    symbols = {
        str(value.shape[axis].value): dim.__name__
        for value in graph.inputs
        for axis, dim in axes.get(value.name, {}).items()
    }
    values = [*graph.inputs, *(value for node in graph.all_nodes() for value in node.outputs)]
    for value in values:
        for axis, dim in enumerate(value.shape or ()):
            if not isinstance(dim, int) and dim.value is not None:
                value.shape[axis] = re.sub(r"\w+", lambda word: symbols.get(word[0], word[0]), dim.value)


def open_onnx(path: Path) -> Callable[..., Tensor]:
    """The file as a function of tensors."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        given = dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True))
        return torch.from_numpy(session.run(None, given)[0])

    return run


def open_archive(path: Path) -> Callable[..., Tensor]:
    """The file as a function of tensors."""
    return torch.export.load(path).module()


@torch.no_grad()
def _difference(model: nn.Module, run: Callable[..., Tensor], inputs: Inputs) -> float:
    """The largest difference, relative to the largest output if that is more than 1."""
    expected = model(*inputs.values())
    return float((run(*inputs.values()) - expected).abs().max() / expected.abs().max().clamp(min=1))


def _shape(name: str, example: Tensor, axes: Mapping[int, Dim]) -> str:
    sizes = (axes[axis].__name__ if axis in axes else str(size) for axis, size in enumerate(example.shape))
    return f"{name} ({', '.join(sizes)})"
