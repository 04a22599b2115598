"""Encoders that do one thing wrong with a row of several sequences, which the kit must find."""

import torch

from core import Encoder, EncoderConfig, Tokens
from core.attention.packing import Packing
from core.encoder.pack import pack, unpack


class Row(Encoder):
    """An encoder with rotary positions, over Tokens; a subclass breaks what it does with a packed row."""

    def __init__(self):
        super().__init__(EncoderConfig(dim=16, depth=2, heads=2, mlp_dim=32, rotary="1d"))

    def in_row(self, tokens):
        return super().forward(tokens)

    def forward(self, tokens, bias=None):
        return super().forward(tokens) if tokens.packing is None else self.in_row(tokens)


def in_a_row(module, xs):
    return [tokens.x[0] for tokens in unpack(module(pack([Tokens(x[None]) for x in xs])))]


def with_packing(tokens, places):
    return Tokens(tokens.x, packing=Packing(places))


class OffsetByOne(Row):
    """The first sequence has one token of the second."""

    def in_row(self, tokens):
        places = tokens.packing.places.clone()
        places[0, 0] += 1
        places[1, 0] -= 1
        return tokens.with_x(super().in_row(with_packing(tokens, places)).x)


class SeesTheNext(Row):
    """The last token of a sequence sees the first one of the next."""

    def in_row(self, tokens):
        first = tokens.packing.starts[1:]
        more = tokens.x[:, first] * 1e-3
        return super().in_row(tokens.with_x(tokens.x.index_add(1, first - 1, more)))


class PositionsRunOn(Row):
    """Positions are those of the whole row. Alone they are what they should be."""

    def _rotary_coordinates(self, tokens):
        if tokens.packing is None:
            return super()._rotary_coordinates(tokens)
        count = tokens.x.shape[1]
        return super()._rotary_coordinates(with_packing(tokens, torch.tensor([[count, 0, 0, 0]])))


class OneFirstTokenForAll(Row):
    """All sequences begin with the class token of the first."""

    def in_row(self, tokens):
        out = super().in_row(tokens)
        first = tokens.packing.starts
        return out.with_x(out.x.index_copy(1, first, out.x[:, :1].expand(-1, len(first), -1)))


class MeanOverTheRow(Row):
    def in_row(self, tokens):
        out = super().in_row(tokens)
        return out.with_x(out.x - 0.01 * out.x.mean(dim=1, keepdim=True))


class DetachedSecond(Row):
    """The second sequence has no gradient."""

    def in_row(self, tokens):
        out = super().in_row(tokens)
        return out.with_x(out.x.where(tokens.places.sequence[:, None] != 1, out.x.detach()))


class KnowsItsPlaceInTheRow(Row):
    def in_row(self, tokens):
        out = super().in_row(tokens)
        return out.with_x(out.x + 0.01 * tokens.places.sequence[:, None])


class CoarseRowInHalf(Row):
    """In a row it rounds to 4 bits, where autocast is on."""

    def in_row(self, tokens):
        out = super().in_row(tokens)
        if not torch.is_autocast_enabled("cpu"):
            return out
        return out.with_x((out.x * 8).round() / 8)
