"""Blockwise attention in plain torch, a few query blocks at a time: for any device, with bias, dropout and gradients.

Each chunk of query blocks attends to the key blocks of its plan, which are gathered into a buffer. Work and memory grow
with the number of blocks that are kept. The backward pass gathers them again.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .call import KernelCall
from .plan import Plan, Rows

CHUNK = 7 << 19  # bytes of gathered keys and values at a time: what stays in the second-level caches of two cores
TO_GLOBAL, FROM_GLOBAL = (-1, 0), (-2, 0)  # dropout keys of the body's queries to global keys, and of global queries


class Sides(NamedTuple):
    """A tensor of tokens in two parts, batch and heads folded into one axis "x"."""

    global_: Tensor
    """ "x num_global c": the global tokens."""
    body: Tensor
    """ "x blocks block c": the others, in the blocks of the layout."""


class Pairs(NamedTuple):
    """Queries "x ... queries c" and keys "x ... keys c" of which all pairs are computed, except those not allowed.

    dropout_key: distinguishes what is drawn for these pairs from what is drawn for others.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    allowed: Tensor | None
    bias: Tensor | None
    dropout_key: tuple[int, int]


class BlockwisePass:
    """One pass, forward or backward, over the plan of a call.

    Global tokens and body are kept apart: the queries of the body attend to their key blocks chunk by chunk, and then
    all of them at once to the global keys; the global queries attend to everything.

    clean: keys or values may hold NaN or inf; keep it from queries that may not attend to it.
    """

    def __init__(self, call: KernelCall, clean: bool = False):
        q, k, v, plan = call.q, call.k, call.v, call.plan
        assert isinstance(plan, Plan)  # of one sequence
        self.plan, self.layout, self.block = plan, plan.layout, plan.layout.block
        self.scale, self.dropout, self.seed, self.bias = call.scale, call.dropout, call.seed, call.bias
        self.batch, self.heads, self.device = q.shape[0], q.shape[1], q.device
        self.num_global = plan.num_global
        self.index = plan.index.to(q.device)
        self.key_mask = self.key_mask_sides = self.not_finite = None
        if call.key_mask is not None:
            self.key_mask = call.key_mask.expand(q.shape[0], q.shape[2])[:, None, :, None]
            self.key_mask_sides = self.split(self.key_mask.expand(-1, self.heads, -1, -1))
            k, v = k.where(self.key_mask, 0), v.where(self.key_mask, 0)
        if clean:
            self.not_finite = self.split(~(k.isfinite().all(-1, keepdim=True) & v.isfinite().all(-1, keepdim=True)))
            k, v = k.where(k.isfinite(), 0), v.where(v.isfinite(), 0)
        self.q, self.k, self.v = map(self.split, (q, k, v))
        self.wide = torch.promote_types(q.dtype, torch.float32)

    # --- tokens <-> global tokens and body ---------------------------------------------------------------------------

    def split(self, t: Tensor) -> Sides:
        """From "b h n c"; empty slots hold 0."""
        t, layout = t.flatten(0, 1), self.layout
        global_, body = t[:, : self.num_global], t[:, self.num_global :]
        slots = layout.blocks * self.block
        if not layout.in_order:
            body = body.index_select(1, self.index.clamp(min=0)).mul_((self.index >= 0)[:, None])
        elif slots > layout.length:
            body = torch.nn.functional.pad(body, (0, 0, 0, slots - layout.length))
        return Sides(global_, body.contiguous().unflatten(1, (layout.blocks, self.block)))

    def join(self, global_: Tensor, body: Tensor) -> Tensor:
        """The inverse of `split`."""
        body = body.flatten(1, 2)
        if not self.layout.in_order:
            body = body.index_select(1, torch.argsort(self.index, stable=True)[-self.layout.length :])
        body = body[:, : self.layout.length]
        t = torch.cat([global_, body], dim=1) if self.num_global else body.contiguous()
        return t.unflatten(0, (self.batch, self.heads))

    # --- chunks of query blocks --------------------------------------------------------------------------------------

    def chunks(self) -> Iterator["_Chunk"]:
        """Parts of the plan's groups whose gathered keys and values stay in the cache."""
        k, v = self.k.body, self.v.body
        for number, group in enumerate(self.plan.groups):
            keys = group.columns.shape[1] * self.block
            if keys:
                size = keys * (k.shape[-1] + v.shape[-1]) * k.shape[0] * max(k.element_size(), 4)
                step = max(CHUNK // size, 1)
                for start in range(0, len(group.rows), step):
                    yield _Chunk(self, group, (number, start), min(start + step, len(group.rows)))

    def blank(self, *shape: int) -> Tensor:
        """Memory for the results of the chunks; it is all overwritten, unless some query blocks have no key blocks."""
        make = torch.empty if all(group.columns.shape[1] for group in self.plan.groups) else torch.zeros
        return make(shape, dtype=self.wide, device=self.device)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp."""
        out = self.blank(*self.q.body.shape[:3], self.v.body.shape[-1])  # rounded once, at the end
        sums = self.q.body.new_zeros(*self.q.body.shape[:3], 2, dtype=self.wide)
        for chunk in self.chunks():
            result, part = self.attend(chunk.pairs())
            if self.not_finite is not None:
                bad = chunk.keys_of(self.not_finite.body)[..., 0][:, :, None]
                bad = bad if chunk.allowed is None else bad & chunk.allowed
                result = result.masked_fill(bad.any(-1, keepdim=True), torch.nan)
            chunk.put(out, result)
            chunk.put(sums, part)
        global_out, global_sums = self.q.global_, self.q.global_[..., :1].expand(-1, -1, 2)
        if self.num_global:
            out, sums = self.add_global_keys(out, sums)
            global_out, global_sums = self.attend_from_global()
        largest, total = self.join(global_sums, sums).unbind(dim=-1)
        return self.join(global_out, out.to(global_out.dtype)), largest + total.log()

    def backward(
        self, grad: Tensor, out: Tensor, lse: Tensor, dbias: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v; that of the bias is added to `dbias`, if given."""
        if self.not_finite is not None:
            out = out.where(out.isfinite(), 0)
        # A query without any key: its weights are exp(-inf - 0) = 0.
        lse = lse.masked_fill(lse == -torch.inf, 0)
        given = grad_sides, out_sides, lse_sides = [self.split(t) for t in (grad, out, lse[..., None])]
        dq = self.blank(*self.q.body.shape)
        dk, dv = (torch.zeros_like(t.body, dtype=self.wide) for t in (self.k, self.v))
        for chunk in self.chunks():
            rows = [chunk.rows_of(t.body) for t in given]
            part_q, part_k, part_v, dlogits = self.differentiate(chunk.pairs(), *rows)
            chunk.put(dq, part_q)
            chunk.add_to_keys(dk, part_k)
            chunk.add_to_keys(dv, part_v)
            if dbias is not None:
                self.add_to_bias(dbias, dlogits, *chunk.bias_place())
        of_global = [torch.zeros_like(t.global_) for t in (self.q, self.k, self.v)]
        if self.num_global:
            of_global = self.global_backward(grad_sides, out_sides, lse_sides, (dq, dk, dv), dbias)
        dtype = grad.dtype
        dq, dk, dv = (self.join(a.to(dtype), b.to(dtype)) for a, b in zip(of_global, (dq, dk, dv), strict=True))
        if self.key_mask is not None:
            dk, dv = dk.where(self.key_mask, 0), dv.where(self.key_mask, 0)
        return dq, dk, dv

    # --- some pairs --------------------------------------------------------------------------------------------------

    def attend(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Output of the queries over these keys alone; and their largest logit and the sum of exp(logits - largest).

        Of very large logits the log-sum-exp is rounded to the largest, as if there were no others. It is what the
        backward pass has, here as in other kernels, so that gradients of such ties are too large.
        """
        logits = self.logits(pairs)
        largest = logits.amax(dim=-1, keepdim=True)
        largest = largest.masked_fill(largest == -torch.inf, 0)  # no key at all
        weights = (logits - largest).exp()
        total = weights.sum(dim=-1, keepdim=True)
        out = self.drop(weights, pairs.dropout_key) @ pairs.v.to(self.wide) / total.masked_fill(total == 0, 1)
        return out, torch.cat([largest, total], dim=-1)

    def differentiate(self, pairs: Pairs, grad: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, ...]:
        """The gradients of q, k and v from these pairs, and those of their logits; lse: "x ... queries 1"."""
        weights = (self.logits(pairs) - lse).exp()
        grad, out, q, k, v = (t.to(self.wide) for t in (grad, out, pairs.q, pairs.k, pairs.v))
        dweights = self.drop(grad @ v.mT, pairs.dropout_key)
        dlogits = weights * (dweights - (grad * out).sum(dim=-1, keepdim=True))
        dv = self.drop(weights, pairs.dropout_key).mT @ grad
        return dlogits @ k * self.scale, dlogits.mT @ q * self.scale, dv, dlogits

    def logits(self, pairs: Pairs) -> Tensor:
        """-inf where a pair is not kept."""
        logits = pairs.q.to(self.wide) @ pairs.k.to(self.wide).mT * self.scale
        logits = logits if pairs.bias is None else logits + pairs.bias.to(self.wide)
        return logits if pairs.allowed is None else logits.masked_fill(~pairs.allowed, -torch.inf)

    def drop(self, weights: Tensor, key: tuple[int, int]) -> Tensor:
        """Dropout; the forward and the backward pass draw the same."""
        if not self.dropout:
            return weights
        generator = torch.Generator(weights.device).manual_seed(self.seed * 1_000_003 + (key[0] + 2) * 65_537 + key[1])
        kept = torch.rand(weights.shape, generator=generator, device=weights.device) >= self.dropout
        return weights * kept / (1 - self.dropout) if self.dropout < 1 else weights * 0

    # --- global tokens -----------------------------------------------------------------------------------------------

    def to_global(self) -> Pairs:
        """All queries of the body, and the global keys."""
        allowed = None if self.key_mask_sides is None else self.key_mask_sides.global_.mT
        tokens = torch.arange(self.num_global, device=self.device)
        bias = self.bias_at(self.body_tokens()[:, None], tokens[None])
        return Pairs(self.q.body.flatten(1, 2), self.k.global_, self.v.global_, allowed, bias, TO_GLOBAL)

    def from_global(self) -> Pairs:
        """The global queries, and all keys: those of the body slot by slot."""
        keys, values = (torch.cat([t.global_, t.body.flatten(1, 2)], dim=1) for t in (self.k, self.v))
        allowed = torch.ones(1, self.num_global, keys.shape[1], dtype=torch.bool, device=self.device)
        allowed[:, :, self.num_global :] = self.index >= 0
        allowed = allowed.tril() if self.plan.causal else allowed
        if (mask := self.key_mask_sides) is not None:
            allowed = allowed & torch.cat([mask.global_, mask.body.flatten(1, 2)], dim=1).mT
        tokens = torch.arange(self.num_global, device=self.device)
        bias = self.bias_at(tokens[:, None], torch.cat([tokens, self.body_tokens()])[None])
        return Pairs(self.q.global_, keys, values, allowed, bias, FROM_GLOBAL)

    def add_global_keys(self, out: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        """As `attend`, of the body's queries over the keys of the body and the global keys together."""
        global_out, global_sums = self.attend(self.to_global())
        global_out, global_sums = global_out.view_as(out), global_sums.view_as(sums)
        (largest, total), (global_largest, global_total) = (part.split(1, dim=-1) for part in (sums, global_sums))
        # Where one part has no key, its largest logit is not one, and that of the other counts.
        largest, global_largest = (
            largest.where(total != 0, global_largest),
            global_largest.where(global_total != 0, largest),
        )
        both = torch.maximum(largest, global_largest)
        share, global_share = total * (largest - both).exp(), global_total * (global_largest - both).exp()
        total = share + global_share
        out = (out * share + global_out * global_share) / total.masked_fill(total == 0, 1)
        if self.not_finite is not None:
            bad = self.not_finite.global_[..., 0]
            bad = bad if self.key_mask_sides is None else bad & self.key_mask_sides.global_[..., 0]
            out = out.masked_fill(bad.any(dim=1)[:, None, None, None], torch.nan)
        return out, torch.cat([both, total], dim=-1)

    def attend_from_global(self) -> tuple[Tensor, Tensor]:
        pairs = self.from_global()
        out, sums = self.attend(pairs)
        out = out.to(pairs.q.dtype)
        if (bad := self.not_finite) is not None and pairs.allowed is not None:
            bad = torch.cat([bad.global_, bad.body.flatten(1, 2)], dim=1).mT
            out = out.masked_fill((bad & pairs.allowed).any(-1, keepdim=True), torch.nan)
        return out, sums

    def global_backward(
        self, grad: Sides, out: Sides, lse: Sides, of_body: tuple[Tensor, Tensor, Tensor], dbias: Tensor | None
    ) -> list[Tensor]:
        """Gradients of the global tokens; what their pairs add to those of the body is added to `of_body` in place."""
        n, given = self.num_global, (grad, out, lse)
        dq, dk, dv = (t.flatten(1, 2) for t in of_body)
        to_global = self.differentiate(self.to_global(), *(t.body.flatten(1, 2) for t in given))
        dq += to_global[0]
        from_global = self.differentiate(self.from_global(), *(t.global_ for t in given))
        dk += from_global[1][:, n:]
        dv += from_global[2][:, n:]
        if dbias is not None:
            body = self.body_tokens()
            tokens = torch.cat([torch.arange(n, device=self.device), body])
            self.add_to_bias(dbias, to_global[3], body[:, None], tokens[None, :n])
            self.add_to_bias(dbias, from_global[3], tokens[:n, None], tokens[None])
        return [from_global[0], to_global[1] + from_global[1][:, :n], to_global[2] + from_global[2][:, :n]]

    # --- bias --------------------------------------------------------------------------------------------------------

    def body_tokens(self) -> Tensor:
        """The number of the token in each slot of the body (that of some token, if the slot is empty)."""
        return self.index.clamp(min=0) + self.num_global

    def bias_at(self, queries: Tensor, keys: Tensor) -> Tensor | None:
        if self.bias is None:
            return None
        rows, columns = queries * (self.bias.shape[2] > 1), keys * (self.bias.shape[3] > 1)
        bias = self.bias[:, :, rows, columns]
        return bias.expand(self.batch, self.heads, *bias.shape[2:]).flatten(0, 1)

    def add_to_bias(self, dbias: Tensor, dlogits: Tensor, queries: Tensor, keys: Tensor) -> None:
        dlogits = dlogits.unflatten(0, (self.batch, self.heads))
        sums = [dim for dim in (0, 1) if dbias.shape[dim] == 1]
        dlogits = (dlogits.sum(dim=sums, keepdim=True) if sums else dlogits).to(dbias.dtype)
        flat = queries * (dbias.shape[2] > 1) * dbias.shape[3] + keys * (dbias.shape[3] > 1)
        flat = flat.expand(dlogits.shape[2:]).flatten()
        dbias.view(*dbias.shape[:2], -1).index_add_(2, flat, dlogits.flatten(2))


class _Chunk:
    """Some query blocks of a group, and where they and their keys are; key: the group's number and the first row."""

    def __init__(self, of: BlockwisePass, group: Rows, key: tuple[int, int], end: int):
        self.of, self.group, self.key = of, group, key
        start = key[1]
        self.part = slice(start, end)
        self.count, self.width = end - start, group.columns.shape[1]
        x, blocks = of.q.body.shape[:2]
        self.rows, self.columns = (t[self.part].to(of.device) for t in (group.rows, group.columns))
        first, last = int(group.rows[start]), int(group.rows[end - 1])
        self.adjacent = slice(first, last + 1) if last - first == end - start - 1 else None
        each = torch.arange(x, device=of.device)[:, None] * blocks
        if self.adjacent is None:
            self.flat_rows = (each + self.rows).flatten()
        self.flat_columns = (each + self.columns.flatten()).flatten()
        self.allowed = self._allowed()

    def pairs(self) -> Pairs:
        of = self.of
        bias = None if of.bias is None else of.bias_at(*self.bias_place())
        keys, values = self.keys_of(of.k.body), self.keys_of(of.v.body)
        return Pairs(self.rows_of(of.q.body), keys, values, self.allowed, bias, self.key)

    def rows_of(self, t: Tensor) -> Tensor:
        """From "x blocks block c" to "x rows block c"."""
        if self.adjacent:
            return t[:, self.adjacent]
        return t.flatten(0, 1).index_select(0, self.flat_rows).unflatten(0, (-1, self.count))

    def keys_of(self, t: Tensor) -> Tensor:
        """From "x blocks block c" to "x rows keys c"."""
        keys = t.flatten(2).flatten(0, 1).index_select(0, self.flat_columns)
        return keys.view(t.shape[0], self.count, self.width * t.shape[2], t.shape[3])

    def put(self, t: Tensor, result: Tensor) -> None:
        """Write the rows' results into "x blocks block ..."."""
        if self.adjacent:
            t[:, self.adjacent] = result
        else:
            t.flatten(0, 1).index_copy_(0, self.flat_rows, result.flatten(0, 1).to(t.dtype))

    def add_to_keys(self, t: Tensor, grad: Tensor) -> None:
        """Add the gradients of the gathered keys to "x blocks block c"."""
        grad = grad.unflatten(2, (self.width, -1)).flatten(3).flatten(0, 2)
        t.flatten(2).flatten(0, 1).index_add_(0, self.flat_columns, grad)

    def _allowed(self) -> Tensor | None:
        """Which gathered keys each query may attend to, broadcasting to "x rows queries keys"; None for all."""
        mask = self.group.mask
        if mask is not None:
            mask = mask if len(mask) == 1 else mask[self.part]
            mask = mask[None].to(self.of.device)
        if self.of.key_mask_sides is not None:
            keys = self.keys_of(self.of.key_mask_sides.body)[..., 0][:, :, None]
            mask = keys if mask is None else mask & keys
        return mask

    def bias_place(self) -> tuple[Tensor, Tensor]:
        """The tokens of each gathered pair: queries "rows queries 1" and keys "rows 1 keys"."""
        slots = self.of.body_tokens().view(-1, self.of.block)
        return slots[self.rows][:, :, None], slots[self.columns].flatten(1)[:, None]
