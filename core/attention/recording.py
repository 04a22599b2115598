"""`record_attention`: the calls of `attend` that a model made, and what each attended to."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..scoped import Scoped
from .backends import FORCED
from .call import Call
from .reference import attention_weights
from .relation import Relation

RECORD: Scoped["Recording | None"] = Scoped("the calls that are recorded")
TEACHING: Scoped[bool] = Scoped("whether a teacher runs")


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call of `attend`: the backend that served it, why, and everything that its weights depend on.

    v, out: its values, and its output as a part of the graph, if `record_attention` was asked for them.
    """

    backend: str
    why: str
    q: Float[Tensor, "b h n c"] = field(repr=False)
    k: Float[Tensor, "b h m c"] = field(repr=False)
    relation: Relation = field(repr=False)
    scale: float | None = None
    v: Float[Tensor, "b h m e"] | None = field(default=None, repr=False)
    out: Float[Tensor, "b h n e"] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, call: Call, backend: str, why: str) -> "AttentionCall":
        bias = call.relation.bias
        if bias is not None:
            bias = bias.detach() if isinstance(bias, Tensor) else [each.detach() for each in bias]
        relation = replace(call.relation, bias=bias)
        return cls(backend, why, call.q.detach(), call.k.detach(), relation, call.scale)

    @property
    def allowed(self) -> Bool[Tensor, "#b #h #n #m"] | None:
        """The pairs that mask and pattern allow together; None for all."""
        return self.relation.allowed(self.q, self.k)

    @property
    def weights(self) -> Float[Tensor, "b h n m"]:
        """The attention weights of all pairs, computed again each time; of a row of several sequences rather take
        those of its `parts`."""
        bias = self.relation.bias_in_row(self.q, self.k)
        return attention_weights(self.q, self.k, self.allowed, bias, self.scale)

    def of_head(self, number: int) -> "AttentionCall":
        """The call of one head."""

        def own(t: Tensor | None) -> Tensor | None:
            return t if t is None or t.shape[1] == 1 else t[:, number : number + 1]

        relation = self.relation
        if relation.packing is None:
            relation = replace(relation, mask=own(relation.pair_mask), bias=own(relation.pair_bias))
        elif relation.bias is not None:
            relation = replace(relation, bias=[own(bias) for bias in relation.bias])
        q, k, v, out = (own(t) for t in (self.q, self.k, self.v, self.out))
        assert q is not None and k is not None
        return replace(self, q=q, k=k, v=v, out=out, relation=relation)

    @property
    def parts(self) -> list["AttentionCall"]:
        """A call for each sequence of a row, or for each sample of a batch."""
        if self.relation.packing is not None:
            return [
                replace(self, q=self.q[:, :, queries], k=self.k[:, :, keys], v=None, out=None, relation=relation)
                for queries, keys, relation in self.relation.parts()
            ]
        return [
            replace(self, q=q[None], k=k[None], v=None, out=None, relation=self.relation.of_sample(number))
            for number, (q, k) in enumerate(zip(self.q, self.k, strict=True))
        ]


@dataclass(frozen=True)
class Recording:
    """What is recorded, and whether each call's values and output are, too."""

    calls: list[AttentionCall]
    values: bool

    def add(self, call: Call, backend: str, why: str, out: Tensor) -> None:
        made = AttentionCall.of(call, backend, why)
        if self.values:
            if torch.is_grad_enabled() and not out.requires_grad:
                out.requires_grad_()  # the model is frozen: the graph begins here
            made = replace(made, v=call.v.detach(), out=out)
        self.calls.append(made)


@contextmanager
def record_attention(*, values: bool = False) -> Iterator[list[AttentionCall]]:
    """Collect an `AttentionCall` for each `attend` inside the `with`, in order: attention maps of any model.

    Calls of other threads and tasks are not among them.

    values: keep the values and the output of each call, too, for gradients by its weights (relevance.py).
    """
    calls: list[AttentionCall] = []
    with RECORD.set(Recording(calls, values)):
        yield calls


@contextmanager
def as_teacher() -> Iterator[None]:
    """Inside, a teacher runs: its attention is not recorded as that of the model in training, and its operations are
    counted as those without a backward pass."""
    with RECORD.set(None), TEACHING.set(True):
        yield


class Recomputation:
    """A context for what a backward pass computes again. Inside it the backend is forced that was forced when the
    context was made, and nothing is recorded."""

    def __init__(self):
        self.forced = FORCED.get()
        self.entered: list[ExitStack] = []

    def __enter__(self) -> None:
        inside = ExitStack()
        inside.enter_context(FORCED.set(self.forced))
        inside.enter_context(RECORD.set(None))
        self.entered.append(inside)

    def __exit__(self, *error) -> None:
        self.entered.pop().close()
