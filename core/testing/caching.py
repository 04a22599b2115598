"""The check of a cache of keys and values: tokens that come in parts give what they give at once."""

import torch

from .measures import Figures, close
from .module_subjects import ModuleSubject


def cached_equals_at_once(subject: ModuleSubject) -> Figures:
    """With a cache, tokens that come in parts give what they give in one call, for one sequence after another, and
    nothing is left of the cache in calls without it."""
    module, figures = subject.make(), {"error": 0.0}
    assert subject.cached is not None  # which the claim follows from
    x = subject.inputs()[0]
    with torch.no_grad():
        expected = {"": subject.run(module, x), " of another sequence": subject.run(module, x.flip(0, 1))}
        for sizes in parts_of(x.shape[1]):
            for which, out in expected.items():
                parts = (x.flip(0, 1) if which else x).split(sizes, dim=1)
                what = f"output{which} in parts of {', '.join(map(str, sizes))} tokens, with a cache"
                found = close(subject.cached(module, parts), out, subject.tolerance, what)
                figures = max(figures, found, key=lambda each: each["error"])
        close(subject.run(module, x), expected[""], subject.tolerance, "output without a cache, after a call with one")
    return figures


def parts_of(length: int) -> list[list[int]]:
    """Two halves; a first part and then single tokens; a single token and then the others."""
    half = length // 2
    ways = [[length - half, half], [length - half, *[1] * half], [1, length - 1]]
    return [[size for size in sizes if size] for sizes in ways]
