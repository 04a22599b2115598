"""How modules of the field are called: found by the names of their parameters and by trying.

A mask of ours is "b n", True for real tokens; what the module makes of it is written as a `call(module, x, mask)`.
"""

import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from ..errors import UserError
from .attention_signatures import FIRST
from .measures import named, normal, quiet, seeded
from .written import Written, parameters

TOKENS = 8
ADDITIVE = "torch.zeros(mask.shape, dtype=x.dtype).masked_fill(~mask, torch.finfo(x.dtype).min)[:, None, None]"
# What each parameter is given; of several, the first that runs and lets padding change nothing.
MASKS = {
    "key_padding_mask": ("~mask",),
    "src_key_padding_mask": ("~mask",),
    "padding_mask": ("~mask",),
    "encoder_padding_mask": ("~mask",),
    "attention_mask": (
        "mask.long()",
        "mask",
        ADDITIVE,
        "mask[:, None, None]",
        "mask[:, None, None].expand(-1, 1, mask.shape[1], -1)",
    ),
    "attn_mask": ("mask[:, None, None]", ADDITIVE, "mask"),
    "mask": ("mask",),
}
LENGTHS = ("lengths", "input_lengths", "x_lens", "seq_lens", "lens")
RESULTS = ("", "[0]", ".last_hidden_state", ".logits", "['last_hidden_state']", "['logits']")
CALL = """def call(module, x, mask=None):
    {before}
    return module({given}){end}"""
CU_SEQLENS = """def call(module, x, mask=None):
    mask = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    lengths = mask.sum(1)
    starts = nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    out = module(x[mask], cu_seqlens=starts{longest}){result}
    return out.new_zeros(*x.shape[:2], *out.shape[1:]).index_put(mask.nonzero(as_tuple=True), out)"""

PACKED = """def packed(module, xs):
    starts = torch.tensor([0, *(len(x) for x in xs)]).cumsum(0).int()
    out = module(torch.cat(xs), cu_seqlens=starts{longest}){result}
    return out.split([len(x) for x in xs])"""


@dataclass(frozen=True)
class Signature:
    """How a module is called, and with what: tokens of features or token ids.

    width: of the features; the number of words if `ids`.
    masks: whether it takes a mask.
    """

    call: Written
    width: int
    ids: bool
    masks: bool
    packed: Written | None = None
    dtype: torch.dtype = torch.float32


class Unfit(Exception):
    """Why a call is not that of a module."""


def recognise_module(module: nn.Module, name: str, dim: int | None = None) -> Signature:
    """Find by trying how a module is called. UserError, which says what to write, if no way works."""
    module, names, reason = module.eval(), list(parameters(_forward(module))), ""
    _check_weights(module, name)
    for masked in (True, False):  # what takes a mask is not called without
        working: list[tuple[bool, Signature]] = []
        for signature in _candidates(module, masked, dim):
            try:
                isolated = _isolates(module, signature)
            except Unfit as unfit:
                reason = reason or str(unfit)
                continue
            if isolated:
                _warn_of_masks(name, names, masked)
                return signature
            working.append((isolated, signature))
        if working:
            _warn_of_masks(name, names, masked)
            return working[0][1]
    given = ", ".join(names)
    reason = reason or "the width of its inputs can't be found: name it by dim"
    raise UserError(
        f"{name} is called as forward({given}), which is no signature that the kit knows ({reason}): say how to call "
        "it, as in EncoderSubject(make, name='mine', dim=64, call=lambda module, x, mask=None: module(x, ...)), where "
        'x is "b n d" and mask "b n" is True for real tokens, and check that.'
    )


def _candidates(module: nn.Module, masked: bool, dim: int | None) -> Iterator[Signature]:
    names = list(parameters(_forward(module)))
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    for width, ids in _widths(module, names, dim):
        for text in _texts(module, names, masked):
            for result in RESULTS:
                packed = None
                if "cu_seqlens" in text:
                    longest = ", max_seqlen=max(len(x) for x in xs)" if "max_seqlen" in text else ""
                    packed = Written(PACKED.format(longest=longest, result=result))
                yield Signature(Written(text.replace("{result}", result)), width, ids, masked, packed, dtype)


def _texts(module: nn.Module, names: list[str], masked: bool) -> Iterator[str]:
    """Texts of `call`, of which some may run."""
    itself = isinstance(module, nn.MultiheadAttention) or tuple(names[:3]) in FIRST
    first = _batch_first(module)
    x = "x" if first else "x.transpose(0, 1)"
    inputs, end = (
        ", ".join(_given(module, names, x, 3 if itself else 1)),
        "{result}" if first else "{result}.transpose(0, 1)",
    )
    known = [name for name in names if name in MASKS]
    if isinstance(module, nn.MultiheadAttention):
        known = ["key_padding_mask"]
    if not masked:
        yield f"def call(module, x, mask=None):\n    return module({inputs}){end}"
        return
    for name in known:
        for value in MASKS[name]:
            yield CALL.format(
                before=f"mask = None if mask is None else {value}", given=f"{inputs}, {name}=mask", end=end
            )
    for name in (name for name in LENGTHS if name in names):
        lengths = "lengths = torch.full(x.shape[:1], x.shape[1]) if mask is None else mask.sum(1)"
        yield CALL.format(before=lengths, given=f"{inputs}, {name}=lengths", end=end)
    if "cu_seqlens" in names:
        longest = ", max_seqlen=int(lengths.max())" if "max_seqlen" in names else ""
        yield CU_SEQLENS.replace("{longest}", longest)


def _forward(module: nn.Module) -> Any:
    """The function that says how a module is called; of one that passes all on, as if compiled, that of its inside."""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    inner = getattr(module, "_orig_mod", getattr(module, "module", None))
    passes_on = all(parameter.kind in variable for parameter in parameters(module.forward).values())
    return _forward(inner) if passes_on and isinstance(inner, nn.Module) else module.forward


def _given(module: nn.Module, names: list[str], x: str, count: int) -> list[str]:
    """The arguments, by name if they must be."""
    kinds = [parameter.kind for parameter in parameters(_forward(module)).values()]
    named = inspect.Parameter.KEYWORD_ONLY in kinds[:count]
    return [f"{name}={x}" for name in names[:count]] if named else [x] * count


def _warn_of_masks(name: str, names: list[str], masked: bool) -> None:
    """Say so if padding will not be checked though there is a parameter for it."""
    found = [each for each in names if any(part in each for part in ("mask", "pad", "length", "valid"))]
    if found and not masked:
        message = f"{name}: how {found[0]} is given was not found, so that padding is not checked; say it by call=..."
        warnings.warn(message, stacklevel=2)


def _check_weights(module: nn.Module, name: str) -> None:
    """Refuse weights that have no numbers yet."""
    for path, parameter in module.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise UserError(f"{name}: {path} is made at the first call: make one call in a function, and check that.")
        if parameter.is_meta:
            raise UserError(f"{name}: {path} is on the device meta, without numbers: make the module on a real one.")


def _batch_first(module: nn.Module) -> bool:
    """Of torch's own, whose layers say so; all others are taken to be."""
    for each in module.modules():
        if isinstance(each, nn.MultiheadAttention):
            return each.batch_first or not type(module).__module__.startswith("torch.nn")
    return True


def _widths(module: nn.Module, names: list[str], dim: int | None) -> list[tuple[int, bool]]:
    """Widths that the module's tokens may have, likely ones first; of token ids the number of words, and True."""
    if dim is not None:
        return [(dim, False)]
    embeddings = [each for each in module.modules() if isinstance(each, nn.Embedding)]
    ids = [(max(each.num_embeddings for each in embeddings), True)] if embeddings else []
    likely = [getattr(module, name, None) for name in ("embed_dim", "d_model", "dim", "hidden_size")]
    for each in module.modules():
        likely.append(each.embed_dim if isinstance(each, nn.MultiheadAttention) else None)
        likely.append(each.normalized_shape[-1] if isinstance(each, nn.LayerNorm) else None)
        likely.append(each.in_features if isinstance(each, nn.Linear) else None)
    likely += [parameter.shape[-1] for parameter in module.parameters() if parameter.ndim]
    features = [(width, False) for width in dict.fromkeys(w for w in likely if isinstance(w, int))][:8]
    first = names[0] if names else ""
    return [*ids, *features] if "ids" in first or "tokens" in first or ids else [*features, *ids]


def ways_of(module: nn.Module, signature: Signature) -> dict[str, Written] | None:
    """Other calls that must give the same: without attention weights, and transformers' own kernel."""
    if isinstance(module, nn.MultiheadAttention):
        text, option = signature.call.text, "need_weights=False"
        return {option: Written(text.replace("key_padding_mask=mask", f"key_padding_mask=mask, {option}"))}
    if hasattr(module, "set_attn_implementation"):
        eager = "attn_implementation='eager'"
        return {eager: signature.call.with_first_line("module.set_attn_implementation('eager')")}
    return None


def example(signature: Signature, length: int, seed: int = 0) -> Tensor:
    """Two samples: token ids "2 n" from 1 on, or features "2 n d"."""
    if not signature.ids:
        return normal(2, length, signature.width, seed=seed, dtype=signature.dtype)
    return 1 + (normal(2, length, seed=seed).abs() * 1000).long() % max(signature.width - 1, 1)


def _isolates(module: nn.Module, signature: Signature) -> bool:
    """Whether padding has no influence on what the call gives. Unfit, if it does not run."""
    x = example(signature, TOKENS)
    mask = torch.arange(TOKENS) < torch.tensor([[TOKENS - 3], [TOKENS]])
    other = x.where(mask if signature.ids else mask[..., None], x.flip(1))
    try:
        with quiet(), torch.no_grad(), seeded(0):
            plain = signature.call(module, x)
            _check_fits(plain, x, signature)
            if not signature.masks:
                return True
            out, changed = signature.call(module, x, mask), signature.call(module, other, mask)
        _check_fits(out, x, signature)
        if out.shape[:2] == x.shape[:2] and out.ndim > 2:
            out, changed, plain = out[mask], changed[mask], plain[mask]
        return bool((out - changed).abs().max() < 1e-4) and bool((out - plain).abs().max() > 1e-6)
    except Unfit:
        raise
    except (Exception, SystemExit) as error:  # foreign code may raise anything
        raise Unfit(f"it raises {named(error)}") from None


def _check_fits(out: Any, x: Tensor, signature: Signature) -> None:
    if not isinstance(out, Tensor):
        raise Unfit(f"it gives something of type {type(out).__name__}")
    kind = "" if out.layout == torch.strided else f", {out.layout}"
    shapes = f"{' x '.join(map(str, out.shape)) or 'a number'}, {out.dtype}{kind} for {' x '.join(map(str, x.shape))}"
    if not (out.is_floating_point() and out.ndim >= 2 and len(out) == len(x)) or kind:
        raise Unfit(f"it gives {shapes}")
    if not (signature.ids or out.ndim < 3 or out.shape[1] == x.shape[1]):
        raise Unfit(f"it gives {shapes}")
