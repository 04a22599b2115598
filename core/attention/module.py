"""Multi-head attention as a module: projections, norms and rotary positions around `attend`."""

from collections.abc import Callable

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import UserError
from .attend import attend_call
from .call import Call
from .disentangled import TERMS, RelativePositions, position_biases
from .relation import Relation, with_biases
from .rotary import rotate

Norm = Callable[[int], nn.Module]
RotaryTable = tuple[Float[Tensor, "*h n c"], Float[Tensor, "*h n c"]]


class Attention(nn.Module):
    """Multi-head attention: self-attention, or cross-attention to a context of width `context_dim`.

    kv_heads: heads of the keys and values, each for heads / kv_heads successive heads of the queries (Ainslie et al.
        2023, section 2.2); `heads` by default.
    head_dim: width of one head; dim / heads by default.
    qk_norm: makes the norm applied to each head's queries and keys (Dehghani et al. 2023, section 2), or None.
    qk_norm_whole: the norm is applied to the queries of all heads at once, and to the keys.
    inner_norm: makes the norm before the output projection (Wang et al. 2022, "Foundation Transformers", section 3.2),
        or None.
    """

    input_projection = "qkv"  # what alone reads the input of self-attention (see core/encoder/residual.py)

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        context_dim: int | None = None,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        out_bias: bool = True,
        qk_norm: Norm | None = None,
        qk_norm_whole: bool = False,
        inner_norm: Norm | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        if head_dim is None and dim % heads:
            raise UserError(f"Attention: dim {dim} is not divisible by {heads} heads; set head_dim to choose freely.")
        kv_heads = kv_heads or heads
        if heads % kv_heads:
            raise UserError(f"Attention: {heads} heads cannot be shared out to {kv_heads} kv_heads evenly.")
        head_dim = head_dim or dim // heads
        self.heads, self.dropout = heads, dropout
        inner = heads * head_dim
        self.sizes = (inner, kv_heads * head_dim, kv_heads * head_dim)
        """Widths of the queries, the keys and the values of all heads together."""
        if context_dim is None:
            self.qkv = nn.Linear(dim, sum(self.sizes), bias=bias)
        else:
            self.q = nn.Linear(dim, self.sizes[0], bias=bias)
            self.kv = nn.Linear(context_dim, sum(self.sizes[1:]), bias=bias)
        if qk_norm_whole and qk_norm is None:
            raise UserError("Attention: qk_norm_whole needs qk_norm.")
        self.qk_norm_whole = qk_norm_whole
        normed = self.sizes[:2] if qk_norm_whole else (head_dim, head_dim)
        self.q_norm, self.k_norm = (qk_norm(width) if qk_norm else nn.Identity() for width in normed)
        self.inner_norm = inner_norm(inner) if inner_norm else nn.Identity()
        self.out = nn.Linear(inner, dim, bias=out_bias)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        context: Float[Tensor, "b m e"] | None = None,
        mask: Bool[Tensor, "b m"] | Bool[Tensor, "#b #h #n #m"] | None = None,
        *,
        relation: Relation | None = None,
        rotary: RotaryTable | None = None,
        positions: RelativePositions | None = None,
    ) -> Float[Tensor, "b n d"]:
        """mask: which keys may be attended to, as for `attend`; short for a `Relation` of nothing else.

        relation: who may attend to whom. rotary: the table made by `rotary_table`; queries and keys are rotated by it
        (self-attention only). positions: their vectors, projected as the tokens are, meet queries and keys
        (self-attention without kv_heads, and without norms of queries and keys).
        """
        if relation is None:
            relation = Relation(mask)
        elif mask is not None:
            raise ValueError("Attention: give the mask as part of the relation.")
        has_context = not hasattr(self, "qkv")
        if has_context == (context is None):
            given = "needs a" if has_context else "was made without context_dim, and takes no"
            raise UserError(f"Attention: this module {given} context.")
        if rotary is not None and has_context:
            raise UserError("Attention: rotary positions are for self-attention, without a context.")
        if context is None:
            projected = self.qkv(x).split(self.sizes, dim=-1)
        else:
            projected = self.q(x), *self.kv(context).split(self.sizes[1:], dim=-1)
        head_dim = self.sizes[0] // self.heads
        q, k, v = (rearrange(t, "b n (h c) -> b h n c", c=head_dim) for t in projected)
        q, k = self._normed(q, self.q_norm), self._normed(k, self.k_norm)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        if (group := self.sizes[0] // self.sizes[1]) > 1:
            k, v = (t.repeat_interleave(group, dim=1) for t in (k, v))
        scale = None
        if positions is not None:
            scale = (TERMS * head_dim) ** -0.5
            of_positions = self.qkv(positions.vectors).split(self.sizes, dim=-1)[:2]
            to_queries, to_keys = (rearrange(t, "o (h c) -> h o c", c=head_dim) for t in of_positions)
            relation = with_biases(relation, position_biases(q, k, to_keys, to_queries, positions.numbers, scale))
        out = attend_call(Call(q, k, v, relation, self.dropout if self.training else 0.0, scale))
        return self.out(self.inner_norm(rearrange(out, "b h n c -> b n (h c)")))

    def _normed(self, x: Float[Tensor, "b h n c"], norm: nn.Module) -> Float[Tensor, "b h n c"]:
        if not self.qk_norm_whole:
            return norm(x)
        return rearrange(norm(rearrange(x, "b h n c -> b n (h c)")), "b n (h c) -> b h n c", h=x.shape[1])
