"""`look`: what a model attended to in one sample, layer by layer and head by head."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..attention import AttentionCall, output_gradients, pooling_weights, record_attention
from ..errors import UserError
from .parts import Marks, Part

LONGEST = 4096
"""Tokens of a sample."""


@dataclass(frozen=True, eq=False)
class Look:
    """A model's attention in one sample. Matrices "n n" are computed when they are asked for; rows are queries."""

    name: str
    """Of the model."""
    parts: Sequence[Part]
    """Where the tokens are, in their order."""
    layers: Sequence[AttentionCall] = field(repr=False)
    pooling: Float[Tensor, "n"] = field(repr=False)
    """How much of each token is in the pooled vector, which the head predicts from."""
    predictions: Sequence[str] = ()
    """The most probable classes."""
    target: str = ""
    """The class whose logit the gradients are of."""
    gradients: Sequence[Float[Tensor, "1 h n e"]] = field(default=(), repr=False)
    """Of that logit, by the output of each layer's attention; empty if the model predicts no classes."""

    @property
    def tokens(self) -> int:
        return len(self.pooling)

    @property
    def heads(self) -> int:
        return max(call.q.shape[1] for call in self.layers)

    def weights(self, layer: int, head: int, out: Float[Tensor, "n n"] | None = None) -> Float[Tensor, "n n"]:
        """The attention weights, in single precision at least; written into `out`, where given."""
        call = self.layers[layer].of_head(head)
        q, k = _wide(call.q), _wide(call.k)
        logits = torch.mm(q * (q.shape[1] ** -0.5 if call.scale is None else call.scale), k.mT, out=out)
        if (bias := call.relation.bias_in_row(call.q, call.k)) is not None:
            logits += bias[0, 0]
        if (allowed := call.allowed) is None:
            return torch.softmax(logits, dim=-1, out=logits)
        forbidden = ~allowed[0, 0]
        logits.masked_fill_(forbidden, -torch.inf)
        return torch.softmax(logits, dim=-1, out=logits).masked_fill_(forbidden, 0)

    def weighted(
        self, layer: int, head: int, weights: Float[Tensor, "n n"], out: Float[Tensor, "n n"] | None = None
    ) -> Float[Tensor, "n n"]:
        """The weights, as `weights` gives them, by their gradients where that is positive (gradient_weighted)."""
        call, gradient = self.layers[layer].of_head(head), self.gradients[layer][:, head : head + 1]
        assert call.v is not None
        return torch.mm(_wide(gradient), _wide(call.v).mT, out=out).mul_(weights).clamp_(min=0)

    def heads_of(self, layer: int) -> Iterator[tuple[Float[Tensor, "n n"], Float[Tensor, "n n"] | None]]:
        """Of each head of a layer the weights, and those by their gradients, if there are any; the next head is written
        in their place, since memory that is new takes longer than what is computed."""
        weights, weighted = None, None
        for head in range(self.layers[layer].q.shape[1]):
            weights = self.weights(layer, head, weights)
            weighted = self.weighted(layer, head, weights, weighted) if self.gradients else None
            yield weights, weighted

    def forbidden(self, layer: int) -> Bool[Tensor, "n n"] | None:
        """The pairs that the pattern leaves out, which are not computed; None if there is no pattern."""
        call = self.layers[layer]
        if call.relation.pattern is None or (allowed := call.of_head(0).allowed) is None:
            return None
        return ~allowed[0, 0].expand(self.tokens, self.tokens)


class Flow:
    """What has reached each token (row) from each input token (column), layer by layer.

    rollout: as `attention_rollout`. relevance: as `relevance`, without the identity that it begins with.
    """

    def __init__(self):
        self.rollout: Tensor = torch.empty(0)
        self.relevance: Tensor = torch.empty(0)
        self.spare: Tensor | None = None
        self.begun = False

    def add(self, weights: Float[Tensor, "n n"], weighted: Float[Tensor, "n n"] | None) -> None:
        """The next layer: the means over its heads."""
        weights = weights.float()
        if not self.begun:  # what follows, of an identity and of nothing
            self.rollout = 0.5 * weights
            self.rollout.diagonal().add_(0.5)
        else:
            self.rollout = self._product(self.rollout, weights, 0.5)
        if weighted is not None:
            weighted = weighted.float()
            self.relevance = (
                self._product(self.relevance, weighted, 1.0).add_(weighted) if self.begun else weighted.clone()
            )
        self.begun = True

    def _product(self, flow: Float[Tensor, "n n"], weights: Float[Tensor, "n n"], share: float) -> Float[Tensor, "n n"]:
        """share * (flow + weights @ flow); what was flow is the memory of the next product."""
        product = torch.addmm(flow, weights, flow, beta=share, alpha=share, out=self.spare)
        self.spare = flow
        return product


def _wide(t: Float[Tensor, "1 1 n c"]) -> Float[Tensor, "n c"]:
    return t[0, 0].to(torch.promote_types(t.dtype, torch.float32))


def look(
    name: str,
    forward: Callable[[], Float[Tensor, "1 classes"] | None],
    parts: Sequence[Part],
    *,
    depth: int,
    pool: str,
    predictions: Callable[[Float[Tensor, "classes"]], tuple[int, Sequence[str], str]] | None = None,
) -> Look:
    """Run a model on one sample, and look at its attention.

    forward: runs the model; its logits, or anything if the model predicts no classes. depth: layers of its encoder,
    whose attention comes first. pool: how the model pools its tokens. predictions: of logits, the class that
    gradients are taken of, the most probable classes in words, and that class in words; None if there are no classes.
    """
    with torch.set_grad_enabled(predictions is not None), record_attention(values=True) as calls:
        logits = forward()
    layers = [_alone(call) for call in calls[:depth]]
    length = layers[0].q.shape[2]
    if length > LONGEST:
        raise UserError(
            f"{name}: the sample has {length:,} tokens, and a page shows at most {LONGEST:,}: give a shorter one."
        )
    count = sum(part.count for part in parts)
    if length > count:  # tokens of an adapter, before the others
        parts = [Marks([f"prompt {number + 1}" for number in range(length - count)]), *parts]
    prefix = layers[0].relation.prefix
    pooling = pooling_weights(pool, prefix, count, [call.weights for call in calls[depth:]])[0]
    made = Look(name, parts, layers, torch.cat([pooling.new_zeros(length - count), pooling.detach()]))
    if predictions is None:
        return replace(made, layers=[replace(call, out=None) for call in layers])
    assert logits is not None
    target, words, label = predictions(logits.detach()[0])
    gradients = output_gradients(logits[0, target].float(), layers)
    layers = [replace(call, out=None) for call in layers]  # the graph is needed no longer
    return replace(made, layers=layers, predictions=words, target=label, gradients=gradients)


def _alone(call: AttentionCall) -> AttentionCall:
    """A call of the only sequence of a batch, or of a row."""
    if call.relation.packing is None:
        return call
    (_, _, relation), *others = call.relation.parts()
    if others:
        raise UserError("look: run the model on one sample.")
    return replace(call, relation=relation)
