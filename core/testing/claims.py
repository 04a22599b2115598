"""What a subject can claim to do."""

from collections.abc import Collection
from difflib import get_close_matches

ATTENTION = frozenset({"double", "half", "cross", "equivariant", "empty", "compile", "export", "cost"})
"""What an attention claims by default, beside the options that its parameters are named after."""
BY_PARAMETER = {name: {name} for name in ("bias", "dropout", "scale", "pattern", "is_causal")} | {
    "mask": {"mask", "pairs"}
}
ENCODER = frozenset({"double", "half", "mask", "large", "empty", "checkpointing", "compile", "export", "cost"})
"""What an encoder claims by default."""
MODEL = frozenset({"double", "half", "empty", "checkpointing", "compile", "export"})
"""What a model claims by default."""
LOOP = frozenset({"resume", "schedule", "evaluation", "isolated", "targets", "whole", "shuffle", "clip"})
"""What a training loop claims by default."""

CLAIMS = {
    "attention": ATTENTION.union(*BY_PARAMETER.values(), {"causal"}),
    "encoder": ENCODER | {"zeros", "equivariant", "causal", "left", "dropout", "sparsify"},
    "model": MODEL | {"large", "dropout", "sparsify"},
    "loop": LOOP | {"ema", "scaler", "processes"},
}


def unknown(what: str, name: str, known: Collection[str]) -> str:
    """A message that there is no such claim or check."""
    near = get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(known))}."
    return f"There is no {what} {name!r}; {hint}"
