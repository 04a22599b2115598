"""The backend that serves a call of `attend`: the fastest one that can, or the one that is forced."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Unpack

from ..scoped import Scoped
from ..sparse import native
from ..sparse.plan import pattern_density
from .call import Call, Options, make_call
from .derivatives import special_derivative
from .flex import why_not as why_not_flex
from .packed import VARLEN_DTYPES

BACKENDS = ("dense", "native", "blockwise", "flex", "varlen", "reference")
SPARSE = ("native", "blockwise", "flex")
FASTEST = {"cpu": ["native"], "cuda": ["flex"]}  # where they can serve
FASTEST_IN_ROWS = {"cpu": ["native"], "cuda": ["varlen", "flex"]}  # of several sequences
# Where a sparse backend becomes faster than dense attention under the pattern's mask: the smallest number of tokens and
# the largest share of pairs kept (`python -m benchmarks.backends crossover`; flex: not measured).
CROSSOVER = {"native": (1, math.inf), "blockwise": (256, 0.6), "flex": (1024, 0.6)}
# From how many multiplications on `native` is faster than torch's kernel without a pattern, which is slow where
# something is added to the logits, masked or dropped (the same benchmark).
FEWEST = {"plain": 2**26, "masked or dropped": 2**23, "biased": 2**20}
FEWEST_IN_BF16 = {"plain": 2**23, "masked or dropped": 2**21, "biased": 2**20}


FORCED: Scoped[str | None] = Scoped("the backend that is forced")


class Choice(NamedTuple):
    """A backend and why it serves."""

    backend: str
    why: str


def explain(
    q: Float[Tensor, "b h n c"],
    k: Float[Tensor, "b h m c"],
    v: Float[Tensor, "b h m e"],
    **options: Unpack[Options],
) -> Choice:
    """The backend that `attend` takes for the same arguments, why, and of `native` when its kernel was compiled.

    An error if the forced one cannot serve them."""
    choice = choose(make_call(q, k, v, **options))
    if choice.backend != "native":
        return choice
    return Choice(choice.backend, f"{choice.why}; the kernel was {native.origin()}")


def choose(call: Call) -> Choice:
    """The backend for a call."""
    if (forced := FORCED.get()) is not None:
        if hurdle := _hurdle(forced, call):
            raise ValueError(f"The {forced} backend cannot serve this call: {hurdle}.")
        return Choice(forced, "it is forced")
    relation = call.relation
    if relation.packing is not None:
        return _choose_in_row(call)
    if relation.pattern is None:
        return _choose_without_pattern(call)
    passed = ""
    for backend in (*FASTEST.get(call.q.device.type, ()), "blockwise", "dense"):
        hurdle = _hurdle(backend, call)
        if not hurdle:
            break
        passed += f"; not {backend}: {hurdle}"
    if backend == "dense":
        return Choice("dense", passed[2:])
    n = max(call.q.shape[2], call.k.shape[2])
    fewest, most = CROSSOVER[backend]
    if torch.compiler.is_compiling():  # the table of blocks, or a text with n in it, would mean a graph for each length
        return Choice(backend if n >= fewest else "dense", "")
    density = pattern_density(str(relation.pattern), n, relation.prefix, relation.grid)
    kept = f"the pattern keeps {min(density, 1):.1%} of all pairs of {n} tokens"
    if n < fewest or density > most:
        return Choice("dense", f"{kept}, so dense attention is faster")
    return Choice(backend, kept + passed)


def _choose_without_pattern(call: Call) -> Choice:
    """The backend for attention of all pairs."""
    why, relation = "there is no pattern", call.relation
    if call.q.device.type != "cpu":
        return Choice("dense", why)
    if torch.compiler.is_exporting():
        return Choice("dense", f"{why}; not native: a program that is exported may run elsewhere")
    if hurdle := _hurdle("native", call) or native.slower_than_torch(call.q.dtype):
        return Choice("dense", f"{why}; not native: {hurdle}")
    (b, h, n, c), (m, e) = call.q.shape, call.v.shape[2:]
    mask = relation.pair_mask
    in_pairs = relation.bias is not None or (mask is not None and mask.shape[1:3] != (1, 1))
    kind = "biased" if in_pairs else "masked or dropped" if mask is not None or call.dropout else "plain"
    fewest = (FEWEST_IN_BF16 if call.q.dtype == torch.bfloat16 else FEWEST)[kind]
    few = b * h * n * m * (c + e) < fewest
    if torch.compiler.is_compiling():  # a text with numbers in it would mean a graph for each of them
        return Choice("dense" if few else "native", "")
    why = f"{why}, and there are {'few' if few else 'many'} pairs"
    return Choice("dense" if few else "native", why)


def _choose_in_row(call: Call) -> Choice:
    """The backend for several sequences in a row."""
    why = "several sequences lie in a row"
    fallback = "dense" if call.relation.pattern is None else "blockwise"
    for backend in (*FASTEST_IN_ROWS.get(call.q.device.type, ()), fallback):
        if backend == "flex" and call.relation.pattern is None:
            continue  # it is not known to be faster than padding
        if not (hurdle := _hurdle(backend, call)):
            return Choice(backend, why)
        why += f"; not {backend}: {hurdle}"
    return Choice("dense", why)


def _hurdle(backend: str, call: Call) -> str:
    """Why a backend cannot serve a call; empty if it can."""
    q, k, v, relation = call.q, call.k, call.v, call.relation
    if backend == "reference":
        return "it has no dropout" if call.dropout else ""
    if backend == "dense":
        return ""
    in_row = relation.packing is not None
    if backend == "varlen":
        return _hurdle_of_varlen(call)
    if relation.pattern is None and not (backend == "native" or (backend == "flex" and in_row)):
        return "there is no pattern"
    if 0 in (*q.shape, *k.shape, *v.shape):
        return "a tensor is empty"
    mask = relation.mask
    if mask is not None and mask.ndim == 4 and mask.shape[1:3] != (1, 1) and backend != "native":
        return "the mask differs by query or head"
    if derivative := special_derivative():
        return f"it has no {derivative}"
    if backend == "blockwise":
        return ""
    if backend == "flex":
        return why_not_flex(call)
    if relation.bias is not None and in_row:
        return "it takes no bias for sequences in a row"
    if q.device.type != "cpu":
        return "it is for CPUs"
    if relation.pattern is not None and relation.key_packing is not None:
        return "a pattern relates packed sequences to themselves only"
    return native.why_not()


def _hurdle_of_varlen(call: Call) -> str:
    if call.relation.packing is None:
        return "it is for several sequences in a row"
    if call.relation.pattern is not None or call.relation.bias is not None:
        return "it takes neither a pattern nor a bias"
    if call.dropout:
        return "it has no dropout"
    if call.q.device.type != "cuda" or call.q.dtype not in VARLEN_DTYPES:
        return "it is for half precision on CUDA"
    if 0 in (*call.q.shape, *call.k.shape, *call.v.shape):
        return "a tensor is empty"
    if call.q.shape[3] != call.v.shape[3] or call.q.shape[3] % 8 or call.q.shape[3] > 256:
        return "heads must be a multiple of 8 wide, at most 256, and values as wide as keys"
    return ""


@contextmanager
def attention_backend(name: str) -> Iterator[None]:
    """Force every `attend` inside the `with` to one backend (as torch's `sdpa_kernel` does), in this thread or task."""
    if name not in BACKENDS:
        raise ValueError(f"Unknown attention backend {name!r}: choose one of {', '.join(BACKENDS)}.")
    with FORCED.set(name):
        yield
