"""`look`: what a model attended to in one sample, layer by layer and head by head."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..attention import AttentionCall, output_gradients, pooling_weights, record_attention
from ..attention.relevance import weight_gradients
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

    def weights(self, layer: int, head: int) -> Float[Tensor, "n n"]:
        """The attention weights, in single precision at least."""
        call = self.layers[layer].of_head(head)
        wide = torch.promote_types(call.q.dtype, torch.float32)
        return replace(call, q=call.q.to(wide), k=call.k.to(wide)).weights[0, 0]

    def weighted(self, layer: int, head: int, weights: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
        """The weights, as `weights` gives them, by their gradients where that is positive (gradient_weighted)."""
        call, gradient = self.layers[layer].of_head(head), self.gradients[layer][:, head : head + 1]
        return (weight_gradients(call, gradient)[0, 0] * weights).clamp(min=0)

    def heads_of(self, layer: int) -> Iterator[tuple[Float[Tensor, "n n"], Float[Tensor, "n n"] | None]]:
        """Of each head of a layer the weights, and those by their gradients, if there are any."""
        for head in range(self.layers[layer].q.shape[1]):
            weights = self.weights(layer, head)
            yield weights, self.weighted(layer, head, weights) if self.gradients else None

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

    def __init__(self, tokens: int):
        self.rollout, self.relevance = torch.eye(tokens), torch.zeros(tokens, tokens)

    def add(self, weights: Float[Tensor, "n n"], weighted: Float[Tensor, "n n"] | None) -> None:
        """The next layer: the means over its heads."""
        self.rollout = 0.5 * self.rollout + 0.5 * weights.float() @ self.rollout
        if weighted is not None:
            weighted = weighted.float()
            self.relevance = self.relevance + weighted + weighted @ self.relevance


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
