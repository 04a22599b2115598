"""What is given to be checked becomes a subject: attentions, modules, functions that make modules, loops."""

import copy
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .attention_signatures import FIRST, OURS, recognise_attention
from .claims import ENCODER, MODEL
from .loop_subjects import LoopSubject, is_loop
from .measures import named, normal, quiet, restored, seeded
from .module_signatures import Signature, example, recognise_module, ways_of
from .module_subjects import EncoderSubject, ModelSubject
from .subjects import AttentionSubject, Subject
from .written import Written, parameters, required

LENGTHS = (8, 5)  # tokens of the samples of a model


def subject_of(target: Any, name: str = "", **options: Any) -> Subject:
    """The subject that a target is, or makes.

    target: a Subject; a function of q, k, v; an nn.Module; a class of modules or a function that makes one of nothing;
        a training loop, train(job).
    name: as which it is reported.
    options: those of all subjects (`Subject`), and `dim` of an encoder.
    """
    _check_device(options.get("device", "cpu"))
    name = name or getattr(target, "__name__", type(target).__name__)
    if isinstance(target, Subject):  # what it does not say
        fields = {"claims": None, "precision": None, "timed": False, "device": "cpu"}
        changed = {key: options[key] for key, default in fields.items() if options.get(key, default) != default}
        return replace(target, **changed) if changed else target
    if not callable(target):
        raise UserError(
            f"{name} is neither a Subject nor a function of q, k, v, a module, or a function that makes one."
        )
    if isinstance(target, nn.Module):
        try:
            copy.deepcopy(target)
        except Exception as error:  # foreign code may raise anything
            raise UserError(f"{name} can't be copied ({named(error)}): check a function that makes one.") from None
        return _of_module(lambda: copy.deepcopy(target), target, name, options)
    needed = required(target)
    if isinstance(target, type) and issubclass(target, nn.Module) and needed:
        first = ", ".join(f"{parameter}=..." for parameter in needed)
        raise UserError(
            f"{name} can't be made of nothing: write def make(): return {target.__name__}({first}), and check make."
        )
    if is_loop(target):
        options.pop("dim", None)
        train: Any = target
        return LoopSubject(train, name=name, **options)
    if not needed and recognise_attention(target) is None:
        try:
            with seeded(0), quiet():
                module: Any = target()
        except (Exception, SystemExit) as error:  # foreign code may raise anything
            raise UserError(f"{name}() raises {named(error)}.") from None
        if isinstance(module, Subject):
            return subject_of(module, name, **options)
        if not isinstance(module, nn.Module):
            raise UserError(f"{name}() makes something of type {type(module).__name__}, not a module.")
        factory: Any = target
        return _of_module(factory, module, name, options)
    return _of_attention(target, name, options, needed)


def load(target: str) -> Any:
    """The object that module:name refers to; the working directory is looked into, too."""
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        raise UserError(f"{target!r} is not a name: write module:name, as in my_module:my_attention.")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # importing runs foreign code
        reason = error if isinstance(error, ImportError) else named(error)
        raise UserError(f"The module {module_name} can't be imported: {reason}.") from None
    for part in name.split("."):
        if not hasattr(found, part):
            raise UserError(f"The module {module_name} has no {name}.")
        found = getattr(found, part)
    return found


def _of_attention(target: Callable[..., Any], name: str, options: dict[str, Any], needed: list[str]) -> Subject:
    options.pop("dim", None)
    kinds = [parameter.kind for parameter in parameters(target).values()][:3]
    if inspect.Parameter.KEYWORD_ONLY in kinds:
        given = ", ".join(f"{parameter}={parameter}" for parameter in needed[:3])
        own = getattr(target, "__name__", name)
        raise UserError(f"{name} takes no positional arguments: check def attention(q, k, v): return {own}({given}).")
    if recognise_attention(target) is None and (tuple(needed[:3]) not in FIRST or not set(needed[3:]) <= OURS):
        raise UserError(
            f"{name}({', '.join(parameters(target))}) is no signature that the kit knows: write "
            f"def attention(q, k, v, *, mask=None): return {name}(...), where mask is True for keys that may be "
            f'attended, "b m", and check that.'
        )
    return AttentionSubject(target, name=name, **options)


def _of_module(factory: Callable[[], nn.Module], module: nn.Module, name: str, options: dict[str, Any]) -> Subject:
    dim = options.pop("dim", None)
    if type(module).__module__.startswith("core.encoder"):
        config: Any = getattr(module, "config", None)
        dim = dim or getattr(config, "dim", None)
        return EncoderSubject(factory, name=name, **({"dim": dim} if dim else {}), **options)
    with restored():
        signature = recognise_module(module, name, dim)
    drops = any(getattr(each, "p", 0) or getattr(each, "dropout", 0) for each in module.modules() if _drops(each))
    x = example(signature, LENGTHS[0])
    with restored(), torch.no_grad(), seeded(0):
        tokens = not signature.ids and signature.call(module, x).shape == x.shape
    left_out = {"empty"} | (set() if signature.masks else {"mask"})  # nobody promises to take empty batches
    left_out |= {"export"} if signature.packed else set()  # whose shapes depend on the lengths
    if options.get("claims") is None:
        options["claims"] = (ENCODER if tokens else MODEL) - left_out | ({"dropout"} if drops else set())
    options["ways"] = ways_of(module, signature)
    if tokens:
        how = {"call": signature.call, "packed": signature.packed, "dim": signature.width}
        return EncoderSubject(factory, name=name, **how, **options)
    return _model(factory, signature, name, options)


def _drops(module: nn.Module) -> bool:
    return isinstance(module, nn.Dropout | nn.MultiheadAttention)


def _model(factory: Callable[[], nn.Module], signature: Signature, name: str, options: dict[str, Any]) -> Subject:
    """A model of token ids or of features; what must have no influence follows from its mask."""
    x = example(signature, max(LENGTHS))
    if not signature.masks:
        return ModelSubject(factory, (x,), name=name, call=signature.call, **options)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    other = x.where(mask if signature.ids else mask[..., None], example(signature, max(LENGTHS), seed=1))
    more = torch.cat([x, x[:, :3]], dim=1), nn.functional.pad(mask, (0, 3))
    emptied = x, mask & torch.tensor([[False], [True]])
    batches = {"padded": more, "altered": (other, mask), "emptied": emptied}
    call = of_real_tokens(signature.call)
    if options["ways"]:
        options["ways"] = {name: of_real_tokens(way) for name, way in options["ways"].items()}
    return ModelSubject(factory, (x, mask), name=name, call=call, loss=partial(_distance, call), **batches, **options)


def of_real_tokens(call: Written) -> Written:
    """The call, whose outputs are 0 where a token is masked, if there is an output for each."""
    start, _, result = call.text.rpartition("return ")
    return Written(
        f"{start}out = {result}\n"
        "    return out.where(real[..., None], 0) if out.ndim > 2 and out.shape[:2] == real.shape else out"
    ).with_first_line("real = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask")


def _distance(call: Written, module: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """The mean squared distance to random signs, of the real tokens if there is an output for each."""
    out = call(module, x, mask)
    if out.ndim > 2 and out.shape[:2] == mask.shape:
        out = (out @ normal(out.shape[-1], seed=4, dtype=out.dtype) / out.shape[-1] ** 0.5)[mask]
    return (out - normal(*out.shape, seed=3, dtype=out.dtype).sign()).square().mean()


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        reason = str(error).partition("\n")[0]
        raise UserError(f"There is no device {device!r} here: {reason}.") from None
