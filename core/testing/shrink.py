"""The smallest input at which a check still fails in the same way: fewest tokens, heads, samples, features."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .module_subjects import EncoderSubject, ModelSubject
from .reference import attend_plainly
from .runner import Check, Result
from .subjects import AttentionSubject, Subject

MOST_TRIES = 80
# Of attention: those with as many queries as keys.
SQUARE = {"padding-changes-nothing", "future-changes-nothing", "is-causal-agrees-with-reference", "length-one"}
SIZES = {AttentionSubject: ("length", "heads", "batch", "head_dim"), EncoderSubject: ("length", "batch")}
NUMBER = re.compile(r"[-+]?\d[\d.]*(e[-+]?\d+)?%?|\b(inf|nan)\b")


def shrink(check: Check, subject: Subject, result: Result) -> Subject:
    """The smallest subject found for which the check fails with the same message, numbers aside."""
    tries, found = MOST_TRIES, True
    bounded = not _fails_of_itself(check, subject)
    while found:
        found = False
        for smaller in _smaller(check, subject):
            if (tries := tries - 1) < 0:
                return subject
            if _same(check(smaller), result) and not (bounded and _fails_of_itself(check, smaller)):
                subject, found = smaller, True
                break
    return subject


def in_words(check: Check, subject: Subject) -> str:
    """The sizes of the inputs."""
    if isinstance(subject, AttentionSubject):
        n, m = (tensor.shape[2] for tensor in subject.inputs()[:2])
        n = m if check.id in SQUARE else n
        parts = [(subject.batch, "sample"), (subject.heads, "head")]
        parts += [(n, "token")] if n == m else [(n, "query"), (m, "key")]
        parts.append((subject.head_dim, "feature"))
    elif isinstance(subject, EncoderSubject):
        parts = [(subject.batch, "sample"), (subject.length, "token")]
    elif isinstance(subject, ModelSubject):
        tensors = [i for i in subject.batch if isinstance(i, Tensor)]
        parts = [(len(tensors[0]), "sample")] if tensors else []
        parts += [(tensors[0].shape[1], "token")] if tensors and _cuts_tokens(tensors) else []
    else:
        parts = []
    plurals = {"query": "queries"}
    return ", ".join(f"{n} {word if n == 1 else plurals.get(word, word + 's')}" for n, word in parts)


def _same(found: Result, wanted: Result) -> bool:
    if found.status != "failed":
        return False
    kinds = []
    for message in (found.message, wanted.message):
        if message.startswith("raises "):
            message = message.partition(":")[0]  # of the same type
        kinds.append(NUMBER.sub("#", message))
    return kinds[0] == kinds[1]


def _smaller(check: Check, subject: Subject) -> Iterator[Subject]:
    """Subjects that are smaller in one size, the smallest first."""
    if isinstance(subject, ModelSubject):
        yield from _smaller_batches(subject, tokens="left" not in check.needs)  # which are at other places there
        return
    for name in SIZES.get(type(subject), ()):
        size = getattr(subject, name)
        for value in sorted({1, 2, 3, 4, 6, 8, size // 2, size - 1}):
            if 0 < value < size:
                yield replace(subject, **{name: value})


def _fails_of_itself(check: Check, subject: Subject) -> bool:
    """Whether the check fails at these sizes whatever is checked: attention is replaced by the reference."""
    if not isinstance(subject, AttentionSubject) or {"pattern", "dropout", "compile", "export"} & set(check.needs):
        return False

    def reference(q, k, v, mask=None, bias=None, scale=None, is_causal=False, **options):
        pairs = subject.pairs(q.shape[2], k.shape[2], mask)
        pairs = pairs.tril() if is_causal else pairs
        return attend_plainly(q, k, v, pairs, bias, scale)

    return check(replace(subject, attention=reference, claims=subject.claimed)).status == "failed"


def _cuts_tokens(tensors: list[Tensor]) -> bool:
    lengths = {t.shape[1] for t in tensors if t.ndim > 1}
    return len(lengths) == 1 and all(1 < t.ndim <= 3 for t in tensors)  # of one axis: lengths, which would be wrong


def _smaller_batches(subject: ModelSubject, tokens: bool) -> Iterator[Subject]:
    """Batches with fewer samples, or with tokens left out."""
    tensors = [i for i in subject.batch if isinstance(i, Tensor)]
    if not tensors:
        return
    rows = len(tensors[0])
    for row in range(rows):
        if rows > 1:
            yield _changed(subject, lambda t, row=row: t[row : row + 1])
    for row in range(rows):
        if rows > 2:
            yield _changed(subject, lambda t, row=row: _without(t, 0, row, row + 1))
    if not (tokens and _cuts_tokens(tensors)):
        return
    n = tensors[0].shape[1]
    for size in sorted({n // 2, max(n // 4, 1), 1} - {0}, reverse=True):
        for start in range(0, n - size + 1, size):
            if size < n:
                yield _changed(
                    subject,
                    lambda t, a=start, b=start + size: _without(t, 1, a, b) if t.ndim > 1 and t.shape[1] >= n else t,
                )


def _without(tensor: Tensor, axis: int, start: int, end: int) -> Tensor:
    """The tensor without a part."""
    return torch.cat([tensor.narrow(axis, 0, start), tensor.narrow(axis, end, tensor.shape[axis] - end)], dim=axis)


def _changed(subject: ModelSubject, change: Any) -> ModelSubject:
    def of(batch: Any) -> Any:
        return None if batch is None else tuple(change(i) if isinstance(i, Tensor) else i for i in batch)

    options = ("batch", "padded", "left", "emptied", "altered")
    return replace(subject, **{name: of(getattr(subject, name)) for name in options})
