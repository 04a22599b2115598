"""The page of an attention explorer: one file, which needs nothing else."""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
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
from .storage import Numbers, bits, compress

WEB = Path(__file__).parent / "web"
SCRIPTS = ("data.js", "tokens.js", "picture.js", "words.js", "sound.js", "panel.js", "heads.js", "page.js")
MOST = 20_000_000
"""Bytes of a page."""
OWN, OF_TOKEN = 54_000, 60
"""Bytes of an empty page, and of a token's name."""
FEWEST = 8
"""Numbers of each row and column that are stored, unless a page has too many layers even for that."""


Read = dict[int, dict[str, tuple[list[Numbers], Numbers]]]
"""Of each layer (from 0) and kind the matrices of the heads, and that of the mean."""


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
    ways = list(_ways(samples, layers))
    read = {id(look): _read(look, layers, ways) for sample in samples for look in sample.looks}
    for storage in ways:
        text = _page(title, samples, layers, storage, read).encode("utf-8", "backslashreplace")
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
    most = max(look.tokens for look in looks)  # fewer layers do not get more numbers
    for kept in range(depth, 0, -1):
        count = most
        while count > FEWEST and not fits(Storage(count, False, kept)):
            count = max(FEWEST, count * 3 // 4)
        most = count if fits(Storage(count, False, kept)) else most
        while count >= FEWEST and fits(Storage(count, False, kept)):
            yield Storage(count, False, kept)
            count = count * 3 // 4
    yield Storage(FEWEST // 2, False, 1)


@torch.no_grad()
def _read(look: Look, layers: Sequence[int] | None, ways: Sequence[Storage]) -> Read:
    """Each matrix is computed once, and kept as the first way stores it, which has more than any that follows."""
    stored = set().union(*(_stored_layers(len(look.layers), layers, storage) for storage in ways))
    first, flow, found = ways[0], Flow(), {}

    def numbers(matrix: Tensor, times: int = 1) -> Numbers:
        return Numbers.all_of(matrix) if first.count is None else Numbers.largest_of(matrix, times * first.count)

    for layer, call in enumerate(look.layers):
        of_weights, of_gradients, mean, mean_weighted = [], [], None, None
        for weights, weighted in look.heads_of(layer):
            mean = _added(mean, weights, call.q.shape[1])
            mean_weighted = None if weighted is None else _added(mean_weighted, weighted, call.q.shape[1])
            if layer in stored:
                of_weights.append(numbers(weights))
                if weighted is not None and first.gradients:
                    of_gradients.append(numbers(weighted))
        assert mean is not None
        flow.add(mean, mean_weighted)
        if layer not in stored:
            continue
        found[layer] = {"weights": (of_weights, numbers(mean, 2)), "rollout": ([], numbers(flow.rollout, 2))}
        if mean_weighted is not None:
            found[layer]["gradients"] = of_gradients, numbers(mean_weighted, 2)
            found[layer]["relevance"] = [], numbers(flow.relevance, 2)
    return found


def _added(mean: Tensor | None, matrix: Tensor, count: int) -> Tensor:
    """The mean of `count` matrices, after one more of them."""
    return matrix / count if mean is None else mean.add_(matrix, alpha=1 / count)


def _page(
    title: str,
    samples: Sequence[Sample],
    layers: Sequence[int] | None,
    storage: Storage,
    read: Mapping[int, Read],
) -> str:
    chunks = Chunks()
    described = [
        {"name": sample.name, "looks": [_look(look, layers, storage, read[id(look)], chunks) for look in sample.looks]}
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


def _look(look: Look, layers: Sequence[int] | None, storage: Storage, read: Read, chunks: Chunks) -> dict[str, Any]:
    described, shares = [], []

    def add(heads: Sequence[Numbers], mean: Numbers) -> int:
        kept = [*heads, mean]
        if storage.count is not None:
            kept = [*(head.largest(storage.count) for head in heads), mean.largest(2 * storage.count)]
        shares.extend(numbers.share for numbers in kept)
        return chunks.add(*(numbers.packed() for numbers in kept))

    for layer in sorted(_stored_layers(len(look.layers), layers, storage)):
        call = look.layers[layer]
        entry = {"number": layer + 1, "heads": call.q.shape[1], "backend": call.backend, "why": call.why}
        for kind, (heads, mean) in read[layer].items():
            entry[kind] = add(heads if kind != "gradients" or storage.gradients else [], mean)
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
