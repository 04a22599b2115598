"""Which calls of `attend` a model made, and what each attended to."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from jaxtyping import Bool, Float
from torch import Tensor

from ..scoped import Scoped
from ..sparse import Pattern
from ..sparse.plan import pattern_mask
from .backends import _forced
from .reference import attention_weights

_record: Scoped[list | None] = Scoped("the calls that are recorded")


@dataclass(frozen=True)
class AttentionCall:
    """One call of `attend`: the backend that served it, why, and what its weights are found from."""

    backend: str
    why: str
    q: Float[Tensor, "b h n c"] = field(repr=False)
    k: Float[Tensor, "b h m c"] = field(repr=False)
    mask: Bool[Tensor, "#b #h #n #m"] | None = field(repr=False)
    bias: Float[Tensor, "#b #h #n #m"] | None = field(repr=False)
    scale: float | None
    pattern: Pattern | None
    prefix: int
    grid: tuple[int, int] | None
    shape: tuple[int, int]

    @property
    def allowed(self) -> Bool[Tensor, "#b #h #n #m"] | None:
        """Which pairs mask and pattern allow; None for all."""
        if self.pattern is None:
            return self.mask
        near = pattern_mask(self.q, self.pattern, self.prefix, self.grid)[None, None]
        return near if self.mask is None else self.mask & near

    @property
    def weights(self) -> Float[Tensor, "b h n m"]:
        """Its attention weights: all pairs of them, found anew each time."""
        weights = attention_weights(self.q, self.k, self.allowed, self.bias, self.scale)
        return weights[:, :, : self.shape[0], : self.shape[1]]


@contextmanager
def record_attention() -> Iterator[list[AttentionCall]]:
    """Collect an `AttentionCall` for each `attend` inside the `with`, in order: attention maps of any model.

    Calls of other threads and tasks are not among them.
    """
    with _record.set([]) as calls:
        yield calls


class Recomputation:
    """For what a backward pass computes once more: inside, the backend is forced that was forced when this was made,
    and nothing is recorded."""

    def __init__(self):
        self.forced = _forced.get()
        self.entered: list[ExitStack] = []

    def __enter__(self) -> None:
        inside = ExitStack()
        inside.enter_context(_forced.set(self.forced))
        inside.enter_context(_record.set(None))
        self.entered.append(inside)

    def __exit__(self, *error) -> None:
        self.entered.pop().close()
