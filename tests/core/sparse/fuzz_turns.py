"""Random calls of rotary positions: what the C++ turns is what torch's operators turn."""

import torch
from torch import Tensor

from core.attention.rotary import rotate, turns
from core.sparse.turns import FEW, serves, turned_by_operators

DTYPES = (torch.float32, torch.bfloat16)


def random_features(rng) -> Tensor:
    """ "b h n c" with strides as models make them, or others."""
    b, h, n, c = rng.randint(1, 3), rng.randint(1, 6), rng.randint(0, 300), 2 * rng.randint(1, 70)
    n = max(n, -(-FEW // (b * h * c))) if rng.random() < 0.8 else n  # or too few for the C++
    room = torch.randn(b, n, 3 * h * c + rng.randint(0, 3)).to(rng.choice(DTYPES))
    x = room[..., h * c : 2 * h * c].unflatten(2, (h, c)).transpose(1, 2)
    return {"model": x, "whole": x.contiguous(), "apart": x.transpose(2, 3).contiguous().transpose(2, 3)}[
        rng.choice(("model", "model", "whole", "apart"))
    ]


def random_table(rng, x: Tensor) -> tuple[Tensor, Tensor]:
    _, h, n, c = x.shape
    heads = rng.choice(((), (1,), (h,)))
    return turns(3 * torch.randn(*heads, n, c // 2))


def run_turns(rng) -> tuple[str, str]:
    """How the features were turned."""
    torch.manual_seed(rng.getrandbits(31))
    x = random_features(rng)
    table, grad = random_table(rng, x), torch.randn(x.shape).to(x.dtype)

    def turned(by):
        given = x.detach().requires_grad_()
        out = by(given)
        return out.detach(), torch.autograd.grad(out, given, grad)[0]

    (out, slope), (wanted, its_slope) = (
        turned(lambda x: rotate(x, table)),
        turned(lambda x: turned_by_operators(x, *table)),
    )
    assert torch.equal(out, wanted), f"{tuple(x.shape)} {x.stride()} {x.dtype}: other numbers"
    if x.dtype == torch.float32 or not serves(x, *table):
        assert torch.equal(slope, its_slope), f"{tuple(x.shape)} {x.stride()}: other gradients"
    else:  # rounded once, the operators' twice
        exact = turned_by_operators(grad.double(), *(each.double() for each in table), back=True)
        assert ((slope - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all(), f"{tuple(x.shape)} {x.stride()}: gradients"
    return "rotate", "C++" if serves(x, *table) else "operators"
