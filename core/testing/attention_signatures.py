"""How attention functions of the field are called: theirs become a function of q, k, v, mask, bias, dropout and scale.

A mask of ours is True where a pair may be attended: "b m" or "b h n m".
"""

import inspect
from collections.abc import Callable, Set
from typing import Any

import torch.nn.functional as F

from .written import Written, parameters, required

FIRST = {("q", "k", "v"), ("query", "key", "value"), ("queries", "keys", "values")}
OURS = {"mask", "bias", "dropout", "scale", "pattern", "is_causal"}
BUILT_IN = {  # whose signatures Python does not know
    F.scaled_dot_product_attention: ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
}
OPTIONS = {  # what is given for each parameter, and the claims that it makes
    "mask": ("mask", {"mask", "pairs"}),
    "bias": ("bias", {"bias"}),
    "attn_mask": ("pairs", {"mask", "pairs", "bias"}),
    "attention_mask": ("pairs", {"mask", "pairs", "bias"}),
    "key_padding_mask": ("None if mask is None else ~mask", {"mask"}),
    "lengths": ("torch.full(q.shape[:1], k.shape[2]) if mask is None else mask.sum(1)", {"mask"}),
    "dropout": ("dropout", {"dropout"}),
    "dropout_p": ("dropout", {"dropout"}),
    "scale": ("scale", {"scale"}),
    "scaling": ("q.shape[-1] ** -0.5 if scale is None else scale", {"scale"}),
    "softmax_scale": ("scale", {"scale"}),
    "is_causal": ("is_causal", {"is_causal"}),
    **dict.fromkeys(("cu_seqlens_q", "cu_seq_q"), ("(torch.arange(b + 1) * n).int()", {"mask"})),
    **dict.fromkeys(("cu_seqlens_k", "cu_seq_k"), ("nn.functional.pad(mask.sum(1).cumsum(0), (1, 0)).int()", {"mask"})),
    **dict.fromkeys(("max_seqlen_q", "max_q"), ("n", set())),
    **dict.fromkeys(("max_seqlen_k", "max_k"), ("max(mask.sum(1).tolist(), default=0)", set())),
}
PAIRS = ("pairs = mask[:, None, None] if mask is not None and mask.ndim == 2 else mask",)
EITHER = ("if bias is not None:", "    pairs = bias if pairs is None else bias.masked_fill(~pairs, -torch.inf)")
SUM = (
    "if pairs is not None:",
    "    pairs = torch.zeros(pairs.shape, dtype=q.dtype).masked_fill(~pairs, -torch.inf)",
    "pairs = bias if pairs is None else pairs if bias is None else bias + pairs",
)
ROWS = (
    "(b, h, n, c), m = q.shape, k.shape[2]",
    "mask = torch.ones(b, m, dtype=torch.bool) if mask is None else mask",
    "q, k, v = q.transpose(1, 2).flatten(0, 1), k.transpose(1, 2)[mask], v.transpose(1, 2)[mask]",
)
MODULE = ("module = nn.Module().train(dropout > 0)", "module.num_key_value_groups = 1")


class Recognised(Written):
    """A foreign attention that is called as ours. takes: options that it can be given; names: its parameters."""

    def __init__(self, attention: Callable[..., Any], text: str, takes: Set[str], names: Set[str]):
        super().__init__(text, attention=attention)
        self.attention, self.takes, self.names = attention, frozenset(takes), frozenset(names)

    @property
    def only_at_end(self) -> bool:
        """Whether its masks can only be padding at the end."""
        return "lengths" in self.names

    @property
    def in_rows(self) -> bool:
        """Whether samples lie one behind the other, so that shapes depend on masks: no graph, no empty samples."""
        return self.text.count("transpose(1, 2)[mask]") > 0


def recognise_attention(attention: Callable[..., Any]) -> Recognised | None:
    """The attention called as ours; None if it is called so already, or its signature isn't known."""
    given = parameters(attention)
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = [name for name, parameter in given.items() if parameter.kind not in variable]
    names = names or list(BUILT_IN.get(attention, ()))
    of_module = names[:1] == ["module"]  # transformers' functions of attention
    first, others = tuple(names[of_module:][:3]), names[of_module:][3:]
    known = [name for name in others if name in OPTIONS]
    unknown = set(required(attention)) - {"module", *first, *known}
    if first not in FIRST or unknown or not known or (set(others) <= OURS and not of_module):
        return None
    in_rows = any(name.startswith("cu_seq") for name in known)
    lines = [*MODULE * of_module, *ROWS * in_rows]
    if takes_pairs := {"attn_mask", "attention_mask"}.intersection(known):
        lines += [*PAIRS, *(EITHER if "attn_mask" in takes_pairs else SUM)]
    arguments = ["module"] * of_module + ["q", "k", "v"] + [f"{name}={OPTIONS[name][0]}" for name in known]
    lines.append(f"out = attention({', '.join(arguments)})")
    result = "out[0].transpose(1, 2)" if of_module else "out.unflatten(0, (b, n)).transpose(1, 2)" if in_rows else "out"
    takes = set().union(*(OPTIONS[name][1] for name in known))
    signature = ", ".join(
        [
            "q, k, v, mask=None",
            *(
                f"{name}={0.0 if name == 'dropout' else None}"
                for name in ("bias", "dropout", "scale", "is_causal")
                if name in takes or (name == "dropout" and of_module)
            ),
        ]
    )
    signature = signature.replace("is_causal=None", "is_causal=False")
    text = "\n    ".join([f"def call({signature}):", *lines, f"return {result}"])
    return Recognised(attention, text, takes, set(known))
