"""FlexAttention without its kernels, on CPUs with gradients and in double precision: what they are to compute, from the
same tables, mask functions and logit functions."""

import math
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention as torchs

from core.attention import flex
from core.attention.call import make_call


def listed(counts, columns):
    """The pairs of blocks in a table, as a matrix."""
    blocks, most = columns.shape[2:]
    there = torch.arange(most) < counts[0, 0, :, None]
    pairs = torch.zeros(blocks, blocks + 1, dtype=torch.bool)
    return pairs.scatter(1, columns[0, 0].long().where(there, blocks), True)[:, :blocks]


class Complete(torchs.BlockMask):
    """A BlockMask whose mask function knows the blocks, too: torch's plain operators ask the function alone."""

    def __init__(self, size, *lists, BLOCK_SIZE, mask_mod):
        some, whole = listed(*lists[:2]), listed(*lists[2:4])
        block = BLOCK_SIZE[0]

        def allowed(b, h, i, j):
            return (some[i // block, j // block] & mask_mod(b, h, i, j)) | whole[i // block, j // block]

        super().__init__(size, *lists, BLOCK_SIZE=BLOCK_SIZE, mask_mod=allowed)


def as_defined(q, k, v, score_mod, block_mask, scale, kernel_options=None, return_aux=None):
    """What torch's documentation says that `flex_attention` computes."""
    b, h, i, j = torch.meshgrid(*map(torch.arange, (*q.shape[:3], k.shape[2])), indexing="ij")
    logits = q @ k.mT * scale
    logits = logits if score_mod is None else score_mod(logits, b, h, i, j)
    logits = logits.masked_fill(~block_mask.mask_mod(b, h, i, j), -math.inf)
    forbidden = logits == -math.inf
    weights = logits.masked_fill(forbidden, torch.finfo(logits.dtype).min).softmax(dim=-1).masked_fill(forbidden, 0)
    out, lse = weights @ v, logits.detach().logsumexp(dim=-1)
    return out if return_aux is None else (out, torchs.AuxOutput(lse=lse))


@contextmanager
def by_definition():
    """Inside it `attend_flex` is neither compiled nor of torch."""
    with (
        patch.object(torchs, "flex_attention", as_defined),
        patch.object(torchs, "BlockMask", Complete),
        patch.object(flex, "_compiled", lambda sizes_vary: flex._attend),
    ):
        yield


@contextmanager
def by_plain_operators():
    """Inside it `attend_flex` is traced, and torch's plain operators compute it. The counter is of the graphs."""
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(flex._attend, backend=counter, dynamic=True, fullgraph=True)
    with (
        patch.object(torchs, "_validate_device", lambda *tensors: None),  # "no backward pass on CPUs"
        patch.object(torchs, "BlockMask", Complete),
        patch.object(flex, "_compiled", lambda sizes_vary: compiled),
    ):
        yield counter


def flexed(q, k, v, **options):
    """`attend` by FlexAttention, without asking whether its kernels can serve."""
    return flex.attend_flex(make_call(q, k, v, **options))
