"""`Encoder`: the stack of blocks, run over `Tokens`.

Choices, all in `EncoderConfig`: pre- or post-norm; LayerNorm or RMSNorm; plain or gated MLP; norms inside attention and
MLP; layer scale; drop path; query-key norm; fewer heads of keys and values; rotary positions on a line or grid; learned
biases by relative position or distance; disentangled attention; gradient checkpointing. Some fields may be a tuple,
tiled over the depth: `rotary_theta=(1e5, 1e4, 1e4)` is 1e5, 1e4, 1e4, 1e5, 1e4, 1e4, ...
"""

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attention.recording import Recomputation
from ..attention.relation import Relation
from ..attention.rotary import coordinate_angles, rotary_coordinates, rotary_coordinates_of_row, turns
from ..errors import UserError
from ..memory import check_room
from .blocks import Block, make_norm
from .config import GATED, EncoderConfig, check_sharing, head_dim, per_layer
from .init import init_weights
from .relative import DistanceBias, PositionVectors, RelativeBias, with_pattern
from .tokens import Tokens


class Encoder(nn.Module):
    """A stack of blocks: Tokens in, Tokens out. Padding comes out as 0."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        if config.rotary_unit and config.rotary == "1d":
            # A sequence's length is that of the longest in its batch: padding would move every token.
            raise UserError("EncoderConfig: rotary_unit=True needs rotary='2d'.")
        if config.rotary_learned and (config.rotary != "2d" or config.kv_heads not in (None, config.heads)):
            raise UserError("EncoderConfig: rotary_learned=True needs rotary='2d' and no kv_heads.")
        if config.rotary_reference and (config.rotary != "2d" or config.rotary_unit):
            raise UserError("EncoderConfig: rotary_reference needs rotary='2d' and rotary_unit=False.")
        if config.parallel and config.norm_order != "pre":
            raise UserError("EncoderConfig: parallel=True needs norm_order='pre'.")
        self.input_norm = make_norm(config, config.dim) if config.input_norm else nn.Identity()
        grid = config.relative_bias if config.relative_bias_shared else None
        self.relative_bias = None if grid is None else RelativeBias(config.heads, grid)
        distance = config.distance_bias
        self.distance_bias = None if distance is None else DistanceBias(config.heads, *distance)
        if config.distance_gate and distance is None:
            raise UserError("EncoderConfig: distance_gate=True needs distance_bias.")
        if config.disentangled and (config.rotary or config.qk_norm or distance or config.kv_heads):
            raise UserError("EncoderConfig: disentangled needs no rotary, qk_norm, distance_bias and kv_heads.")
        self.position_vectors = (
            PositionVectors(make_norm(config, config.dim), config.dim, *config.disentangled)
            if config.disentangled
            else None
        )
        groups = config.shared_groups or config.depth
        check_sharing(config, groups)
        self.span = config.depth // groups
        size = 4 * sum(_weights(config, group * self.span) for group in range(groups))
        check_room(size, "An encoder of this shape", "choose a smaller dim, depth or mlp_dim")
        self.blocks = nn.ModuleList(Block(config, group * self.span) for group in range(groups))
        has_final_norm = config.final_norm and config.norm_order != "post"
        self.final_norm = make_norm(config, config.dim) if has_final_norm else nn.Identity()
        init_weights(self)

    def forward(
        self,
        tokens: Tokens,
        bias: Float[Tensor, "#b #h #n #n"] | Sequence[Float[Tensor, "1 _ _ _"]] | None = None,
        *,
        layers: Sequence[int] | None = None,
        norm: bool = True,
    ) -> Tokens | list[Tokens]:
        """bias: added to the attention logits of every block (pairs, distances); of packed sequences one each.

        layers: gives what `intermediate` gives of them, which calls the module, because adapters change the inputs and
        outputs of calls. norm: apply the final norm.
        """
        depth = self.config.depth
        if layers is None:
            return self._run(tokens, bias, {depth - 1}, norm)[0]
        if not layers or not all(isinstance(layer, int) and -depth <= layer < depth for layer in layers):
            raise UserError(f"Encoder: layers must be numbers from {-depth} to {depth - 1}, not {layers!r}.")
        wanted = [layer % depth for layer in layers]
        found = dict(zip(sorted(set(wanted)), self._run(tokens, bias, set(wanted), norm), strict=True))
        return [found[layer] for layer in wanted]

    def intermediate(
        self,
        tokens: Tokens,
        layers: Sequence[int],
        bias: Float[Tensor, "#b #h #n #n"] | Sequence[Float[Tensor, "1 _ _ _"]] | None = None,
        *,
        norm: bool = False,
    ) -> list[Tokens]:
        """The tokens after each of these layers, and nothing is computed beyond the last of them.

        layers: counted from 0; negative numbers count from the end. norm: apply the final norm to each.
        """
        return self(tokens, bias, layers=layers, norm=norm)

    def _run(self, tokens: Tokens, bias: Any, layers: Collection[int], norm: bool) -> list[Tokens]:
        """The tokens after each of these layers, in the order of the layers."""
        if not isinstance(tokens, Tokens):
            raise UserError(f"Encoder: it takes Tokens, as in encoder(Tokens(x)), not a {type(tokens).__name__}.")
        real = None if tokens.mask is None else tokens.mask[..., None]
        x = tokens.x if real is None else tokens.x.where(real, 0)  # NaN in padding stops here
        x, found = self.input_norm(x), []
        rotary = self.rotary_tables(tokens)
        relation = Relation(
            tokens.mask, bias, None, tokens.prefix, tokens.grid, tokens.packing, selection=tokens.selection
        )
        if self.relative_bias is not None:
            relation = self.relative_bias(relation, x.shape[1])
        distances = None
        if self.position_vectors is not None:
            distances = self.position_vectors(relation, x.shape[1])
        elif self.distance_bias is not None:
            if self.config.distance_gate:
                distances = self.distance_bias.of_each(relation, x.shape[1])
            else:
                relation = self.distance_bias(relation, x.shape[1])
        patterns = [per_layer(self.config.patterns, layer) for layer in range(max(layers) + 1)]
        relations = {pattern: with_pattern(relation, pattern) for pattern in dict.fromkeys(patterns)}
        for layer, pattern in enumerate(patterns):
            block = self.blocks[layer // self.span]
            args = (x, relations[pattern], rotary[layer], layer % self.span, distances)
            recompute = self.config.checkpointing and torch.is_grad_enabled()
            x = _checkpointed(block, *args) if recompute else block(*args)
            if layer in layers:
                found.append(x)
        found = [self.final_norm(x) for x in found] if norm else found
        return [tokens.with_x(x if real is None else x.where(real, 0)) for x in found]

    def rotary_tables(self, tokens: Tokens) -> list[Any]:
        """One table per layer; layers of equal theta share it. Blocks with frequencies of their own make theirs from
        the tokens' coordinates."""
        config = self.config
        if config.rotary is None:
            return [None] * config.depth
        coordinates = self._rotary_coordinates(tokens)
        if config.rotary_learned:
            return [coordinates] * config.depth
        thetas = [per_layer(config.rotary_theta, layer) for layer in range(config.depth)]
        tables = {theta: turns(coordinate_angles(head_dim(config), coordinates, theta)) for theta in set(thetas)}
        return [tables[theta] for theta in thetas]

    def _rotary_coordinates(self, tokens: Tokens) -> Sequence[Float[Tensor, "n"]]:
        config, on_grid = self.config, self.config.rotary == "2d"
        how = {"offset": config.rotary_offset, "unit": config.rotary_unit, "reference": config.rotary_reference}
        if tokens.packing is not None:
            whole = tokens.packing if tokens.selection is None else tokens.selection.whole
            if on_grid:
                whole.require_grids("Encoder: rotary='2d'")
            return rotary_coordinates_of_row(whole, tokens.places, on_grid=on_grid, **how)
        size = tokens.grid if on_grid else tokens.x.shape[1] - tokens.prefix
        if size is None:
            raise UserError("Encoder: rotary='2d' needs tokens with a grid; use rotary='1d' for sequences.")
        return rotary_coordinates(size, prefix=tokens.prefix, device=tokens.x.device, **how)


def _weights(config: EncoderConfig, layer: int) -> int:
    """The number of weights in the projections of a block."""
    inner = (config.heads + (per_layer(config.kv_heads, layer) or config.heads)) * head_dim(config)
    gated = per_layer(config.activation, layer) in GATED
    mlp = (3 if gated else 2) * (per_layer(config.mlp_dim, layer) or 4 * config.dim)
    return config.dim * (2 * inner + mlp)


def _checkpointed(block: nn.Module, *args) -> Tensor:
    """A block's output. Nothing is kept for the backward pass, which computes it again in the same way."""
    if torch.compiler.is_compiling():  # the graph has the same operators twice
        return checkpoint(block, *args, use_reentrant=False)
    contexts = nullcontext(), Recomputation()
    return checkpoint(block, *args, use_reentrant=False, context_fn=lambda: contexts)
