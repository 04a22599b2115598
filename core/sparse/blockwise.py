"""Sparse attention in plain torch, a few query blocks at a time: any device, bias that learns, dropout.

Each chunk of query blocks attends to the key blocks of its plan, gathered into a buffer, so work and memory grow with
the blocks kept and nothing else. The backward pass gathers again.
"""

import torch
from torch import Tensor

from .plan import Rows

CHUNK = 7 << 19  # bytes of gathered keys and values at a time: what stays in the second-level caches of two cores


class Walk:
    """One pass over a plan.

    Batch and heads are folded into one axis, "x". The global tokens ("head") and the rest ("body", in the layout's
    blocks, "x blocks block c") are kept apart: a body query attends to its key blocks chunk by chunk, then to the
    global keys, all queries at once; a global query attends to everything.

    clean: keys and values hold NaN or inf; keep it from those who may not attend to it.
    """

    def __init__(self, q, k, v, mask, bias, plan, dropout, scale, seed, clean=False):
        self.plan, self.layout, self.block = plan, plan.layout, plan.layout.block
        self.scale, self.dropout, self.seed, self.bias = scale, dropout, seed, bias
        self.batch, self.heads, self.device = q.shape[0], q.shape[1], q.device
        self.index = plan.index.to(q.device)
        self.real = None if mask is None else mask.expand(q.shape[0], q.shape[2])
        if self.real is not None:
            k, v = k.where(self.real[:, None, :, None], 0), v.where(self.real[:, None, :, None], 0)
        self.bad_head = self.bad_body = None
        if clean:
            bad = ~(k.isfinite().all(-1, keepdim=True) & v.isfinite().all(-1, keepdim=True))
            self.bad_head, self.bad_body = self.split(bad)
            k, v = k.where(k.isfinite(), 0), v.where(v.isfinite(), 0)
        (self.q_head, self.q), (self.k_head, self.k), (self.v_head, self.v) = map(self.split, (q, k, v))
        self.real_head = self.real_body = None
        if self.real is not None:
            self.real_head, self.real_body = self.split(self.real[:, None, :, None].expand(-1, self.heads, -1, -1))
        self.wide = torch.promote_types(q.dtype, torch.float32)

    # --- tokens <-> head and body ------------------------------------------------------------------------------------

    def split(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """ "b h n c" -> "x first c" and "x blocks block c"; empty slots hold 0."""
        t, first, layout = t.flatten(0, 1), self.plan.first, self.layout
        head, body = t[:, :first], t[:, first:]
        slots = layout.blocks * self.block
        if not layout.in_order:
            body = body.index_select(1, self.index.clamp(min=0)).mul_((self.index >= 0)[:, None])
        elif slots > layout.length:
            body = torch.nn.functional.pad(body, (0, 0, 0, slots - layout.length))
        return head, body.contiguous().unflatten(1, (layout.blocks, self.block))

    def join(self, head: Tensor, body: Tensor) -> Tensor:
        """The inverse of `split`."""
        body = body.flatten(1, 2)
        if not self.layout.in_order:
            body = body.index_select(1, torch.argsort(self.index, stable=True)[-self.layout.length :])
        body = body[:, : self.layout.length]
        t = torch.cat([head, body], dim=1) if self.plan.first else body.contiguous()
        return t.unflatten(0, (self.batch, self.heads))

    # --- chunks of query blocks --------------------------------------------------------------------------------------

    def chunks(self):
        """Pieces of the plan's groups whose gathered keys and values stay in the cache."""
        for number, group in enumerate(self.plan.groups):
            keys = group.columns.shape[1] * self.block
            if keys:
                size = keys * (self.k.shape[-1] + self.v.shape[-1]) * self.k.shape[0] * max(self.k.element_size(), 4)
                step = max(CHUNK // size, 1)
                for start in range(0, len(group.rows), step):
                    yield _Chunk(self, group, start, min(start + step, len(group.rows)), number)

    def blank(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Room for what the chunks write: all of it, unless some query blocks have no key blocks."""
        make = torch.empty if all(group.columns.shape[1] for group in self.plan.groups) else torch.zeros
        return make(shape, dtype=dtype, device=self.device)

    def forward(self) -> tuple[Tensor, Tensor]:
        out = self.blank(*self.q.shape[:3], self.v.shape[-1], dtype=self.wide)  # rounded once, at the end
        lse = self.q.new_full(self.q.shape[:3], -torch.inf, dtype=self.wide)
        for chunk in self.chunks():
            found, sums = self.attend(chunk.rows_of(self.q), chunk.keys_of(self.k), chunk.keys_of(self.v), chunk)
            if self.bad_body is not None:
                bad = chunk.keys_of(self.bad_body)[..., 0][:, :, None]
                bad = bad if chunk.allowed is None else bad & chunk.allowed
                found = found.masked_fill(bad.any(-1, keepdim=True), torch.nan)
            chunk.put(out, found)
            chunk.put(lse, sums)
        head, head_lse = self.q_head, self.q_head[..., 0]
        if self.plan.first:
            out, lse = self.add_head_keys(out, lse)
            head, head_lse = self.attend_from_head()
        return self.join(head, out.to(head.dtype)), self.join(head_lse[..., None], lse[..., None])[..., 0].contiguous()

    def backward(self, grad, out, lse, learns) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first = self.plan.first
        if self.bad_body is not None:
            out = out.where(out.isfinite(), 0)
        (grad_head, grad), (out_head, out) = self.split(grad), self.split(out)
        # A query without any key: its weights are exp(-inf - 0) = 0.
        lse_head, lse = (t[..., 0] for t in self.split(lse.masked_fill(lse == -torch.inf, 0)[..., None]))
        dq = self.blank(*self.q.shape, dtype=self.wide)
        dk, dv = (torch.zeros_like(t, dtype=self.wide) for t in (self.k, self.v))
        dbias = self.bias.new_zeros(self.bias.shape) if learns else self.q.new_empty(0)
        for chunk in self.chunks():
            there = [chunk.rows_of(t) for t in (grad, out, lse, self.q)]
            keys = chunk.keys_of(self.k), chunk.keys_of(self.v)
            found = self.differentiate(*there, *keys, chunk.allowed, chunk.bias(), chunk.key)
            chunk.put(dq, found[0])
            chunk.add_to_keys(dk, found[1])
            chunk.add_to_keys(dv, found[2])
            if learns:
                self.add_to_bias(dbias, found[3], *chunk.bias_place())
        heads = [self.q_head.new_zeros(t.shape) for t in (self.q_head, self.k_head, self.v_head)]
        if first:
            heads = self.head_backward((grad_head, grad), (out_head, out), (lse_head, lse), (dq, dk, dv), dbias, learns)
        grads = [self.join(a.to(self.q.dtype), b.to(self.q.dtype)) for a, b in zip(heads, (dq, dk, dv), strict=True)]
        if self.real is not None:
            grads[1:] = [t.where(self.real[:, None, :, None], 0) for t in grads[1:]]
        return *grads, dbias

    # --- one chunk ---------------------------------------------------------------------------------------------------

    def attend(self, q, k, v, chunk) -> tuple[Tensor, Tensor]:
        """ "x rows queries c" to "x rows keys c": output and log-sum-exp."""
        allowed = chunk.allowed
        weights, lse = self.weights(q, k, allowed, chunk.bias())
        return self.drop(weights, chunk.key) @ v.to(self.wide), lse

    def differentiate(self, grad, out, lse, q, k, v, allowed, bias, key) -> tuple[Tensor, ...]:
        weights, _ = self.weights(q, k, allowed, bias, lse)
        grad, out, q, k, v = (t.to(self.wide) for t in (grad, out, q, k, v))
        dweights = self.drop(grad @ v.mT, key)
        dlogits = weights * (dweights - (grad * out).sum(dim=-1, keepdim=True))
        dv = self.drop(weights, key).mT @ grad
        return dlogits @ k * self.scale, dlogits.mT @ q * self.scale, dv, dlogits

    def weights(self, q, k, allowed, bias, lse=None) -> tuple[Tensor, Tensor]:
        """exp(logits - lse), by default of these keys alone; and lse."""
        logits = q.to(self.wide) @ k.to(self.wide).mT * self.scale
        logits = logits if bias is None else logits + bias.to(self.wide)
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -torch.inf)
        lse = logits.logsumexp(dim=-1) if lse is None else lse
        return (logits - lse.masked_fill(lse == -torch.inf, 0)[..., None]).exp(), lse

    def drop(self, weights: Tensor, key: tuple[int, int]) -> Tensor:
        """Dropout, drawn alike in a chunk's forward and backward pass."""
        if not self.dropout:
            return weights
        generator = torch.Generator(weights.device).manual_seed(self.seed * 1_000_003 + (key[0] + 2) * 65_537 + key[1])
        kept = torch.rand(weights.shape, generator=generator, device=weights.device) >= self.dropout
        return weights * kept / (1 - self.dropout) if self.dropout < 1 else weights * 0

    # --- global tokens -----------------------------------------------------------------------------------------------

    def add_head_keys(self, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        """What body queries find in the global keys, merged with what they found in the body."""
        q = self.q.flatten(1, 2)
        weights, head_lse = self.weights(q, self.k_head, self.real_keys(), self.head_bias(columns=True))
        both = torch.logaddexp(lse, head_lse.view_as(lse))
        share = (lse - both).nan_to_num(0).exp()[..., None]  # -inf - -inf: no key at all
        head_share = (head_lse.view_as(lse) - both).nan_to_num(0).exp()[..., None]
        found = self.drop(weights, (-1, 0)) @ self.v_head.to(self.wide)
        out = out * share + found.view_as(out) * head_share
        if self.bad_head is not None:
            bad = self.bad_head[..., 0]
            bad = bad if self.real_head is None else bad & self.real_head[..., 0]
            out = out.masked_fill(bad.any(dim=1)[:, None, None, None], torch.nan)
        return out, both

    def attend_from_head(self) -> tuple[Tensor, Tensor]:
        keys, values, allowed = self.everything()
        weights, lse = self.weights(self.q_head, keys, allowed, self.head_bias(columns=False))
        out = (self.drop(weights, (-2, 0)) @ values.to(self.wide)).to(self.q_head.dtype)
        if self.bad_head is not None:
            bad = torch.cat([self.bad_head, self.bad_body.flatten(1, 2)], dim=1).mT
            out = out.masked_fill((bad & allowed).any(-1, keepdim=True), torch.nan)
        return out, lse

    def head_backward(self, grad, out, lse, body, dbias, learns) -> list[Tensor]:
        """Gradients of the global tokens; those of the body (`body`: dq, dk, dv) are added to."""
        first = self.plan.first
        dq, dk, dv = (t.flatten(1, 2) for t in body)
        there = (grad[1].flatten(1, 2), out[1].flatten(1, 2), lse[1].flatten(1, 2), self.q.flatten(1, 2))
        bias = self.head_bias(columns=True)
        to_head = self.differentiate(*there, self.k_head, self.v_head, self.real_keys(), bias, (-1, 0))
        dq += to_head[0]
        keys, values, allowed = self.everything()
        bias = self.head_bias(columns=False)
        from_head = self.differentiate(grad[0], out[0], lse[0], self.q_head, keys, values, allowed, bias, (-2, 0))
        dk += from_head[1][:, first:]
        dv += from_head[2][:, first:]
        if learns:
            tokens = self.body_tokens()
            every = torch.cat([torch.arange(first, device=self.device), tokens])
            self.add_to_bias(dbias, to_head[3], tokens[:, None], every[None, :first])
            self.add_to_bias(dbias, from_head[3], every[:first, None], every[None])
        return [from_head[0], to_head[1] + from_head[1][:, :first], to_head[2] + from_head[2][:, :first]]

    def everything(self) -> tuple[Tensor, Tensor, Tensor]:
        """All keys and values, "x slots c", and which of them the global queries may attend to."""
        first = self.plan.first
        keys, values = (
            torch.cat([head, body.flatten(1, 2)], dim=1)
            for head, body in ((self.k_head, self.k), (self.v_head, self.v))
        )
        allowed = torch.ones(1, first, keys.shape[1], dtype=torch.bool, device=self.device)
        allowed[:, :, first:] = self.index >= 0
        allowed = allowed.tril() if self.plan.causal else allowed
        if self.real is not None:
            allowed = allowed & torch.cat([self.real_head, self.real_body.flatten(1, 2)], dim=1).mT
        return keys, values, allowed

    def real_keys(self) -> Tensor | None:
        """Which global keys are real, "x 1 first"."""
        return None if self.real_head is None else self.real_head.mT

    # --- bias --------------------------------------------------------------------------------------------------------

    def body_tokens(self) -> Tensor:
        """The token of the sequence in each slot of the body (some token, where it is empty)."""
        return self.index.clamp(min=0) + self.plan.first

    def head_bias(self, columns: bool) -> Tensor | None:
        """Bias of the body's queries to the global keys, or of the global queries to all."""
        first, tokens = torch.arange(self.plan.first, device=self.device), self.body_tokens()
        if columns:
            return self.bias_at(tokens[:, None], first[None])
        return self.bias_at(first[:, None], torch.cat([first, tokens])[None])

    def bias_at(self, queries: Tensor, keys: Tensor) -> Tensor | None:
        if self.bias is None:
            return None
        rows, columns = queries * (self.bias.shape[2] > 1), keys * (self.bias.shape[3] > 1)
        found = self.bias[:, :, rows, columns]
        return found.expand(self.batch, self.heads, *found.shape[2:]).flatten(0, 1)

    def add_to_bias(self, dbias: Tensor, found: Tensor, queries: Tensor, keys: Tensor) -> None:
        found = found.unflatten(0, (self.batch, self.heads))
        sums = [dim for dim in (0, 1) if dbias.shape[dim] == 1]
        found = (found.sum(dim=sums, keepdim=True) if sums else found).to(dbias.dtype)
        flat = queries * (dbias.shape[2] > 1) * dbias.shape[3] + keys * (dbias.shape[3] > 1)
        flat = flat.expand(found.shape[2:]).flatten()
        dbias.view(*dbias.shape[:2], -1).index_add_(2, flat, found.flatten(2))


class _Chunk:
    """Some query blocks of a group, and where they and their keys lie."""

    def __init__(self, walk: Walk, group: Rows, start: int, end: int, number: int):
        self.walk, self.group, self.start, self.end, self.key = walk, group, start, end, (number, start)
        self.count, self.width = end - start, group.columns.shape[1]
        x, blocks = walk.q.shape[:2]
        self.rows, self.columns = (t[start:end].to(walk.device) for t in (group.rows, group.columns))
        first, last = int(group.rows[start]), int(group.rows[end - 1])
        self.stretch = slice(first, last + 1) if last - first == end - start - 1 else None
        each = torch.arange(x, device=walk.device)[:, None] * blocks
        if self.stretch is None:
            self.flat_rows = (each + self.rows).flatten()
        self.flat_columns = (each + self.columns.flatten()).flatten()
        self.allowed = self._allowed()

    def rows_of(self, t: Tensor) -> Tensor:
        """ "x blocks block ..." -> "x rows block ..."."""
        if self.stretch:
            return t[:, self.stretch]
        return t.flatten(0, 1).index_select(0, self.flat_rows).unflatten(0, (-1, self.count))

    def keys_of(self, t: Tensor) -> Tensor:
        """ "x blocks block c" -> "x rows keys c"."""
        found = t.flatten(2).flatten(0, 1).index_select(0, self.flat_columns)
        return found.view(t.shape[0], self.count, self.width * t.shape[2], t.shape[3])

    def put(self, t: Tensor, found: Tensor) -> None:
        """Write the rows' results into "x blocks block ..."."""
        if self.stretch:
            t[:, self.stretch] = found
        else:
            t.flatten(0, 1).index_copy_(0, self.flat_rows, found.flatten(0, 1).to(t.dtype))

    def add_to_keys(self, t: Tensor, found: Tensor) -> None:
        """Add the gathered keys' gradients to "x blocks block c"."""
        found = found.unflatten(2, (self.width, -1)).flatten(3).flatten(0, 2)
        t.flatten(2).flatten(0, 1).index_add_(0, self.flat_columns, found)

    def _allowed(self) -> Tensor | None:
        """Which gathered keys each query may attend to, broadcasting to "x rows queries keys"; None for all."""
        mask = self.group.mask
        if mask is not None:
            mask = mask if len(mask) == 1 else mask[self.start : self.end]
            mask = mask[None].to(self.walk.device)
        if self.walk.real_body is not None:
            real = self.keys_of(self.walk.real_body)[..., 0][:, :, None]
            mask = real if mask is None else mask & real
        return mask

    def bias_place(self) -> tuple[Tensor, Tensor]:
        """Queries and keys of each gathered pair, as tokens of the sequence: "rows queries 1" and "rows 1 keys"."""
        slots = self.walk.body_tokens().view(-1, self.walk.block)
        return slots[self.rows][:, :, None], slots[self.columns].flatten(1)[:, None]

    def bias(self) -> Tensor | None:
        return None if self.walk.bias is None else self.walk.bias_at(*self.bias_place())
