"""The tensors that scripts define, as text."""

import torch
from torch import Tensor

from .subjects import AttentionSubject

MOST_NUMBERS = 64  # in a tensor that is written out


def literal(tensor: Tensor) -> str:
    """A small tensor written out."""
    if tensor.dtype == torch.bool:
        return f"torch.tensor({tensor.int().tolist()}).bool()"
    if not tensor.is_floating_point():
        return f"torch.tensor({tensor.tolist()})"
    if tensor.numel() <= MOST_NUMBERS:
        return f"torch.tensor({tensor.tolist()}, dtype=DTYPE)"
    return f"normal({', '.join(map(str, tensor.shape))}, seed=0)"


def mask_text(subject: AttentionSubject, m: int) -> str:
    """The mask of the subject; a long one is not written out."""
    mask = subject.mask(m)
    if m <= MOST_NUMBERS:
        return literal(mask)
    every = f"torch.arange({m}) >= 0" if bool(mask[:, 2].all()) else f"torch.arange({m}) % 4 != 2"
    return f"({every}).repeat({len(mask)}, 1)\nmask[0, {m - 4}:] = False"


def pairs_text(subject: AttentionSubject, n: int, m: int) -> str:
    if subject.allowed is not None:
        return literal(subject.pairs(n, m)[0, 0])
    return f"torch.ones({n}, {m}).bool()" + ".tril()" * ("causal" in subject.claimed)


def empty_rows(subject: AttentionSubject, n: int) -> str:
    """Options that leave queries without keys: the first sample's, by masks; the second query's, by a bias."""
    options = ['{"mask": mask}']
    if "pairs" in subject.claimed:
        options.append('{"mask": mask[:, None, None].repeat(1, 1, q.shape[2], 1)}')
        if n > 1:
            options.append('{"mask": (torch.arange(q.shape[2]) != 1)[None, None, :, None]}')
    if "bias" in subject.claimed and n > 1:
        bias = "torch.zeros(1, q.shape[1], q.shape[2], k.shape[2], dtype=q.dtype)"
        options.append(f'{{"bias": {bias}.index_fill(2, torch.tensor(1), -torch.inf)}}')
    return f"({', '.join(options)},)"


def masks_text(subject: AttentionSubject, n: int) -> str:
    """Masks, and how many queries they leave without keys."""
    if "pairs" not in subject.claimed or n == 1:
        return "[(mask, 0)]"
    return "[(mask, 0), (mask[:, None, None].repeat(1, 1, q.shape[2], 1).index_fill(2, torch.tensor(1), False), 1)]"
