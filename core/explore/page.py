"""The page of an attention explorer: one file, which needs nothing else."""

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from torch import Tensor

from ..errors import UserError
from ..files import write_text
from .look import Flow, Look
from .parts import Marks, Part, Picture, Words
from .storage import bits, compress, largest, whole

WEB = Path(__file__).parent / "web"
SCRIPTS = ("data.js", "tokens.js", "picture.js", "words.js", "sound.js", "panel.js", "heads.js", "page.js")
MOST = 20_000_000
"""Bytes of a page."""
OWN, OF_TOKEN = 54_000, 60
"""Bytes of an empty page, and of a token's name."""
FEWEST = 8
"""Numbers of each row and column that are stored, unless a page has too many layers even for that."""


@dataclass(frozen=True)
class Sample:
    """One input, and what one or several models attended to in it, which are shown side by side."""

    name: str
    looks: Sequence[Look]


@dataclass(frozen=True)
class Storage:
    """What of the matrices a page stores.

    count: of the largest numbers of each row and column; those of the means over heads are twice as many. None: all.
    gradients: whether those of each head are stored, or only their mean. layers: of how many layers.
    """

    count: int | None
    gradients: bool
    layers: int

    def bytes(self, look: Look) -> int:
        """At most, before they are compressed and encoded."""
        layers, n = min(self.layers, len(look.layers)), look.tokens
        heads = look.heads * (1 + (self.gradients and bool(look.gradients)))
        means = 4 if look.gradients else 2
        if self.count is None:
            return layers * n * n * 2 * (heads + means)
        return layers * n * self.count * 8 * (heads + 2 * means)


def write_page(path: Path | str, title: str, samples: Sequence[Sample], layers: Sequence[int] | None = None) -> None:
    """Write a page, as `page_text` makes it."""
    write_text(Path(path), page_text(title, samples, layers, str(path)))


def page_text(
    title: str, samples: Sequence[Sample], layers: Sequence[int] | None = None, what: str = "The page"
) -> str:
    """A page of at most 20 MB. If it cannot have all numbers, it has the largest, and says so.

    layers: the only ones to be stored, counted from 1; by default all, or as many as fit, evenly spaced. what: names
    the page in messages.
    """
    _check_layers(samples, layers)
    for storage in _ways(samples, layers):
        text = _page(title, samples, layers, storage).encode("utf-8", "backslashreplace")
        if len(text) < MOST:
            return text.decode()
    raise UserError(f"{what} would be larger than {MOST / 1e6:.0f} MB: give fewer samples, or shorter ones.")


def _check_layers(samples: Sequence[Sample], layers: Sequence[int] | None) -> None:
    most = min(len(look.layers) for sample in samples for look in sample.looks)
    if layers is not None and (not layers or not all(1 <= layer <= most for layer in layers)):
        raise UserError(f"layers must be numbers from 1 to {most}, not {' '.join(map(str, layers))}.")


def _ways(samples: Sequence[Sample], layers: Sequence[int] | None) -> Iterator[Storage]:
    """Ways to store the matrices, the best first, those that need too much room left out."""
    looks = [look for sample in samples for look in sample.looks]
    depth = len(layers) if layers else max(len(look.layers) for look in looks)
    files = {file: len(file) for look in looks for part in look.parts for file in _files(part)}
    own = OWN + OF_TOKEN * sum(look.tokens for look in looks)
    room = (MOST - own) * 3 / 4 - sum(files.values())  # encoded, 3 bytes become 4

    def fits(storage: Storage) -> bool:
        # Half-precision weights are compressed by 10 % or more; of the largest, rows and columns share many.
        return sum(map(storage.bytes, looks)) * (0.9 if storage.count is None else 0.65) < room

    for gradients in (True, False):
        if fits(storage := Storage(None, gradients, depth)):
            yield storage
    longest = max(look.tokens for look in looks)
    for kept in range(depth, 0, -1):
        count = longest
        while count > FEWEST and not fits(Storage(count, False, kept)):
            count = max(FEWEST, count * 3 // 4)
        while count >= FEWEST and fits(Storage(count, False, kept)):
            yield Storage(count, False, kept)
            count = count * 3 // 4
    yield Storage(FEWEST // 2, False, 1)


def _page(title: str, samples: Sequence[Sample], layers: Sequence[int] | None, storage: Storage) -> str:
    chunks = Chunks()
    described = [
        {"name": sample.name, "looks": [_look(look, layers, storage, chunks) for look in sample.looks]}
        for sample in samples
    ]
    content = {"samples": described, "files": chunks.files}
    template = Environment(loader=FileSystemLoader(WEB), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return template.get_template("page.html").render(
        title=title,
        what=_what(samples),
        style=Markup((WEB / "style.css").read_text()),
        scripts=[Markup((WEB / name).read_text()) for name in SCRIPTS],
        content=Markup(json.dumps(content).replace("<", "\\u003c")),
        chunks=[Markup(chunk) for chunk in chunks.encoded],
    )


class Chunks:
    """Compressed bytes and files, which a page holds once each, and refers to by number."""

    def __init__(self):
        self.encoded: list[str] = []
        self.files: list[str] = []
        self.numbers: dict[bytes, int] = {}

    def add(self, *parts: bytes) -> int:
        packed = compress(parts)
        if packed not in self.numbers:
            self.numbers[packed] = len(self.encoded)
            self.encoded.append(base64.b64encode(packed).decode())
        return self.numbers[packed]

    def file(self, content: bytes, kind: str) -> int:
        if content not in self.numbers:
            self.numbers[content] = len(self.files)
            self.files.append(f"data:{kind};base64,{base64.b64encode(content).decode()}")
        return self.numbers[content]


@torch.no_grad()
def _look(look: Look, layers: Sequence[int] | None, storage: Storage, chunks: Chunks) -> dict[str, Any]:
    stored, flow = _stored_layers(len(look.layers), layers, storage), Flow(look.tokens)
    described, shares = [], []

    def pack(matrix: Tensor, times: int = 1) -> bytes:
        packed, share = (whole(matrix), 1.0) if storage.count is None else largest(matrix, times * storage.count)
        shares.append(share)
        return packed

    for layer, call in enumerate(look.layers):
        of_weights, of_gradients, mean, mean_weighted = [], [], None, None
        for head, (weights, weighted) in enumerate(look.heads_of(layer)):
            mean = _running_mean(mean, weights, head)
            mean_weighted = None if weighted is None else _running_mean(mean_weighted, weighted, head)
            if layer in stored:
                of_weights.append(pack(weights))
                if weighted is not None and storage.gradients:
                    of_gradients.append(pack(weighted))
        assert mean is not None
        flow.add(mean, mean_weighted)
        if layer not in stored:
            continue
        entry = {"number": layer + 1, "heads": len(of_weights), "backend": call.backend, "why": call.why}
        entry["weights"] = chunks.add(*of_weights, pack(mean, 2))
        entry["rollout"] = chunks.add(pack(flow.rollout, 2))
        if mean_weighted is not None:
            entry["gradients"] = chunks.add(*of_gradients, pack(mean_weighted, 2))
            entry["relevance"] = chunks.add(pack(flow.relevance, 2))
        if (forbidden := look.forbidden(layer)) is not None:
            entry |= {"pattern": str(call.relation.pattern), "forbidden": chunks.add(bits(forbidden))}
        described.append(entry)
    return {
        "name": look.name,
        "tokens": look.tokens,
        "depth": len(look.layers),
        "parts": [_part(part, chunks) for part in look.parts],
        "pooling": [float(f"{value:.6g}") for value in look.pooling.tolist()],
        "predictions": list(look.predictions),
        "target": look.target,
        "layers": described,
        "whole": storage.count is None,
        "count": storage.count,
        "share": sum(shares) / len(shares),
        "gradient_heads": storage.gradients,
    }


def _running_mean(mean: Tensor | None, matrix: Tensor, count: int) -> Tensor:
    """The mean of one more matrix than `count`, without holding all of them."""
    return matrix if mean is None else mean + (matrix - mean) / (count + 1)


def _stored_layers(depth: int, layers: Sequence[int] | None, storage: Storage) -> set[int]:
    if layers is not None:
        return {layer - 1 for layer in sorted(layers, reverse=True)[: storage.layers]}
    kept = min(storage.layers, depth)
    return {depth - 1 - round(number * depth / kept) for number in range(kept)}


def _files(part: Part) -> list[bytes]:
    return [] if isinstance(part, Marks | Words) else [part.image, *([part.sound] if part.sound else [])]


def _part(part: Part, chunks: Chunks) -> dict[str, Any]:
    if isinstance(part, Marks):
        return {"kind": "marks", "names": list(part.names)}
    if isinstance(part, Words):
        return {"kind": "words", "pieces": [list(piece) for piece in part.pieces]}
    fields = {name: getattr(part, name) for name in ("aspect", "grid", "origin", "step", "size", "names", "seconds")}
    sound = None if part.sound is None else chunks.file(part.sound, "audio/wav")
    return {"kind": "picture", **fields, "image": chunks.file(part.image, "image/png"), "sound": sound}


def _what(samples: Sequence[Sample]) -> str:
    """What can be pointed at."""
    kinds = [part for sample in samples for look in sample.looks for part in look.parts]
    names = {
        "a patch of the image": any(isinstance(part, Picture) and part.seconds is None for part in kinds),
        "a stretch of sound": any(isinstance(part, Picture) and part.seconds is not None for part in kinds),
        "a word": any(isinstance(part, Words) for part in kinds),
    }
    return " or ".join(name for name, there in names.items() if there) or "a token"
