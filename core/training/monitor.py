"""The health of training, block by block; and where a NaN or inf began when a step fails."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from statistics import median

import torch
from torch import Tensor, nn

from ..attention.recording import AttentionCall, record_attention
from ..encoder.layers import layer_groups
from ..objectives.features import feature_figures, record_features
from ..objectives.objective import Batch
from .processes import gathered, local_part

LARGEST_UPDATE = 0.3  # of a block's weights in one step; healthy training stays near a thousandth
LARGEST_LOGIT = 100.0  # beyond 50 attention begins to collapse (Dehghani et al. 2023, section 3)
LEAST_ENTROPY = 0.5  # nats of a layer's mean; sound checkpoints have single logits over 100 and entropies over 1
LEAST_SPREAD = 0.25  # of features, relative to the widest so far; runs that recovered by themselves kept 0.28
LARGEST_COSINE = 0.98  # between samples; beyond both the representation has collapsed
HISTORY, FEWEST, SPIKE = 64, 20, 8.0  # steps looked back on; needed for that; robust deviations above their median
TRIFLE = 0.05  # of the first loss: below it a jump is what one hard sample makes of a model that fits the rest
QUERIES = 32  # of one sample, spread evenly: enough to see a layer's attention
LONGEST = 4096  # tokens: beyond, a pattern's relation is not drawn up just to look
FINITE_AGAIN = "computed again it is finite"


class Monitor:
    """Measures the gradient, update and attention of each block and the features of the samples, and raises alarms."""

    def __init__(self, model: nn.Module, record_calls: bool = True):
        layers = (
            (layer.name, [p for p in layer.parameters.values() if p.requires_grad]) for layer in layer_groups(model)
        )
        self.groups = {name: parameters for name, parameters in layers if parameters}
        self.record_calls = record_calls
        self.losses: deque[float] = deque(maxlen=HISTORY)
        self.first: float | None = None
        self.widest = 0.0  # the largest spread of the features so far
        self.calls: list[AttentionCall] = []
        self.vectors: list[Tensor] = []
        self.said: set[str] = set()

    def state(self) -> dict:
        """What a resumed run needs to raise the same alarms."""
        return {
            "losses": list(self.losses),
            "first": self.first,
            "widest": self.widest,
            "said": sorted(self.said),
        }

    def load(self, state: dict) -> None:
        self.losses, self.said = deque(state["losses"], maxlen=HISTORY), set(state["said"])
        self.first, self.widest = state.get("first"), state.get("widest", 0.0)

    @contextmanager
    def watch(self):
        """Inside, the attention and the features of a forward pass are recorded."""
        if not self.record_calls:
            yield
            return
        with record_attention() as self.calls, record_features() as self.vectors:
            yield

    @torch.no_grad()
    def gradients(self, scale: float = 1.0) -> dict[str, float]:
        """Each block's gradient norm, times `scale`."""
        norms = {}
        for name, parameters in self.groups.items():
            grads = [p.grad for p in parameters if p.grad is not None]
            norms[f"grad_norm/{name}"] = _norm(grads) * scale if grads else 0.0
        return norms

    @torch.no_grad()
    def weights(self) -> dict[str, list[Tensor]]:
        """A copy, to be given to `updates` after the step."""
        return {name: [p.detach().clone() for p in parameters] for name, parameters in self.groups.items()}

    @torch.no_grad()
    def updates(self, before: dict[str, list[Tensor]]) -> dict[str, float]:
        """The norm of the change of each block's weights, relative to the norm of the weights."""
        figures = {}
        for name, old in before.items():
            changes = [new - last for new, last in zip(self.groups[name], old, strict=True)]
            figures[f"update/{name}"] = _norm(changes) / max(_norm(old), 1e-12)
        return figures

    @torch.no_grad()
    def attention(self) -> dict[str, float]:
        """Each layer's largest attention logit, and the mean entropy of its weights in nats."""
        figures = {}
        for layer, row in enumerate(self.calls):
            call = _first_sequence(row)
            if call.relation.pattern is None or call.q.shape[2] <= LONGEST:
                logits = _some_logits(call)
                weights = logits.softmax(dim=-1)
                seen = logits.isfinite().any(dim=-1)
                if seen.any():
                    entropy = -(weights * weights.clamp(min=1e-30).log()).sum(dim=-1)
                    figures[f"logit/{layer}"] = logits[seen].max().item()
                    figures[f"entropy/{layer}"] = entropy[seen].mean().item()
        self.calls = []
        return figures

    def features(self) -> dict[str, float]:
        """How much the samples differ in the features that the objective noted, if it noted any."""
        vectors, self.vectors = self.vectors, []
        figures = feature_figures(vectors[0]) if vectors else {}
        return {f"features/{name}": value for name, value in figures.items()}

    def alarms(self, figures: dict[str, float]) -> list[str]:
        """The alarms that the figures of a step raise; each alarm is raised once."""
        alarms = {}
        for name, value in figures.items():
            kind, _, place = name.partition("/")
            if kind == "update" and value > LARGEST_UPDATE:
                alarms[name] = f"the weights of {place} moved by {value:.0%} in one step: the learning rate is too high"
            if kind == "logit" and value > LARGEST_LOGIT and figures[f"entropy/{place}"] < LEAST_ENTROPY:
                alarms[name] = (
                    f"attention logits of layer {place} reach {value:.0f} and each query attends to one token: "
                    "its attention collapses"
                )
            if kind == "grad_norm" and place and value == 0:
                alarms[name] = f"the gradient of {place} is zero throughout: it learns nothing"
        if "features/spread" in figures:
            spread, cosine = figures["features/spread"], figures["features/cosine"]
            if spread < LEAST_SPREAD * self.widest and cosine > LARGEST_COSINE:
                alarms["features"] = (
                    f"the representation collapses: all samples get nearly the same features (spread {spread:.2g} "
                    f"after {self.widest:.2g}, mean cosine {cosine:.3f})"
                )
            self.widest = max(self.widest, spread)
        fresh = [text for name, text in alarms.items() if name not in self.said]
        self.said |= alarms.keys()
        return fresh

    def spike(self, loss: float) -> str | None:
        """An alarm if the loss is far above those of the steps before; the loss is added to them, if it is finite."""
        if not math.isfinite(loss):
            return None
        before = list(self.losses)
        self.losses.append(loss)
        self.first = loss if self.first is None else self.first
        if len(before) < FEWEST:
            return None
        middle = median(before)
        spread = 1.4826 * median(abs(value - middle) for value in before)
        if loss <= middle + SPIKE * spread + 0.1 * abs(middle) or abs(loss) <= TRIFLE * abs(self.first):
            return None
        self.losses.clear()  # it may stay up there: that is one jump
        return f"the loss jumped to {loss:.4g} from about {middle:.4g}"


def _norm(tensors: Sequence[Tensor]) -> float:
    """The norm of all numbers of the tensors together."""
    return gathered(nn.utils.get_total_norm(tensors)).item()


def _first_sequence(call: AttentionCall) -> AttentionCall:
    """Of a packed row the attention of the first sequence alone, which is no other than the first sample's."""
    if call.relation.packing is None:
        return call
    return next((part for part in call.parts if part.q.shape[2] and part.k.shape[2]), call)


def _some_logits(call: AttentionCall) -> Tensor:
    """Logits of a few queries of the first sample, "heads queries keys"; -inf where they may not attend."""
    n = call.q.shape[2]
    some = torch.linspace(0, n - 1, min(n, QUERIES)).long().to(call.q.device)
    scale = call.q.shape[-1] ** -0.5 if call.scale is None else call.scale
    logits = call.q[0][:, some].float() @ call.k[0].float().mT * scale
    allowed = call.allowed
    if allowed is not None:
        allowed = allowed[0][:, some] if allowed.shape[2] > 1 else allowed[0]
        logits = logits.masked_fill(~allowed, -torch.inf)
    return logits


def blame(model: nn.Module, loss_of: Callable[[], Tensor] | None, batch: Batch, samples: Sequence[int]) -> str:
    """Why a step's loss or gradient is not finite, in a few words. Called before the weights change.

    loss_of: the step's loss once more; None if that can't be had. samples: the numbers of the batch's training samples.
    """
    if bad := _bad_samples(batch, len(samples)):
        return f"training sample {', '.join(str(samples[i]) for i in bad)} holds NaN or inf"
    for name, parameter in model.named_parameters():
        if not local_part(parameter).isfinite().all():
            return f"the weight {name} holds NaN or inf"
    if loss_of is None:
        return FINITE_AGAIN
    not_finite: list[str] = []

    def look(name: str, module: nn.Module, inputs: tuple, output: object) -> None:
        if not not_finite and not all(t.isfinite().all() for t in _floats(output)):
            not_finite.append(name)

    hooks = [
        module.register_forward_hook(lambda m, i, o, name=name: look(name, m, i, o))
        for name, module in model.named_modules()
        if not any(True for _ in module.children())
    ]
    try:
        model.zero_grad(set_to_none=True)
        loss = loss_of()
        if not_finite:
            return f"{not_finite[0]} is the first layer to give NaN or inf"
        if not loss.isfinite():
            return "the loss alone is not finite: every layer's output is"
        loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    if wrong := [name for name, grad in grads.items() if not grad.isfinite().all()]:
        return f"the gradient of {wrong[-1]} is not finite"
    norms = {name: grad.norm() for name, grad in grads.items()}
    if norms and not torch.stack(list(norms.values())).norm().isfinite():
        return f"it is too large for numbers of this kind, that of {max(norms, key=norms.__getitem__)} first of all"
    return FINITE_AGAIN


def _bad_samples(batch: Batch, count: int) -> list[int]:
    """Which of the batch's samples hold NaN or inf. A tensor has the samples along its first axis, or those of a
    packed row along its second; a list of as many tensors has one for each."""
    for value in (*batch.inputs, batch.targets):
        if isinstance(value, list) and len(value) == count and all(isinstance(t, Tensor) for t in value):
            finite = [bool(tensor.isfinite().all()) for tensor in value]
            if not all(finite):
                return [number for number, fine in enumerate(finite) if not fine]
            continue
        for tensor in _floats((value,)):
            bad = ~tensor.isfinite()
            packing = batch.packing
            if packing is not None and bad.ndim > 1 and bad.shape[:2] == (1, packing.total):
                tokens = bad.reshape(packing.total, -1).any(dim=1).cpu()
                found = packing.tokens().sequence[tokens].unique()
                if len(packing) == count and len(found):
                    return found.tolist()
            elif bad.ndim and len(bad) == count and bad.any():
                return bad.reshape(count, -1).any(dim=1).nonzero().flatten().tolist()
    return []


def _floats(value: object) -> list[Tensor]:
    """The floating-point tensors in nested tuples and lists."""
    return [tensor for tensor in tensors_in(value) if tensor.is_floating_point()]


def tensors_in(value: object) -> list[Tensor]:
    """The tensors in nested tuples and lists."""
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in tensors_in(part)] if isinstance(value, list | tuple) else []
