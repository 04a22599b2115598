"""Random additions and layer norms under autocast: what the C++ makes of them is what torch's operators make."""

import torch
from torch import Tensor, nn

from core.encoder.residual import add, add_and_norm
from core.sparse.norms import FEW, norm_gradients, serves


def random_rows(rng) -> Tensor:
    """ "b n d" of any size and place in memory, some rows far from 0, constant or not finite."""
    d = rng.choice((16 * rng.randint(1, 60), 16 * rng.randint(1, 60), rng.randint(4, 300)))
    n = max(rng.randint(0, 300), -(-FEW // d)) if rng.random() < 0.8 else rng.randint(0, 100)  # or too few for the C++
    x = torch.randn(rng.randint(1, 2), n, d) * rng.choice((1e-3, 1.0, 100.0)) + rng.choice((0.0, 1.0, 1000.0))
    if n:
        row = x[0, rng.randrange(n)]
        rng.choice((row.zero_, lambda: row.fill_(3.0), lambda: row[:1].fill_(float(rng.choice(("nan", "inf"))))))()
    return x if rng.random() < 0.9 else x.transpose(0, 1).contiguous().transpose(0, 1)


def run_norms(rng) -> tuple[str, str]:
    """How it was computed."""
    torch.manual_seed(rng.getrandbits(31))
    x, only_add = random_rows(rng), rng.random() < 0.2
    branch = torch.randn(x.shape).bfloat16() if only_add or rng.random() < 0.6 else None
    norm = nn.LayerNorm(x.shape[-1], eps=rng.choice((1e-6, 1e-3)), bias=rng.random() < 0.7)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    grads = torch.randn(x.shape) if only_add or rng.random() < 0.7 else None, torch.randn(x.shape)
    given = [t.detach().requires_grad_() for t in (x, branch, *norm.parameters()) if t is not None]
    with torch.autocast("cpu", torch.bfloat16):
        ours = serves(x, branch, None if only_add else norm)
        wide = rng.random() < 0.3
        of_branch = None if branch is None else given[1]
        if only_add:
            outs = (add(given[0], of_branch),)
        else:
            outs = add_and_norm(given[0], of_branch, norm, for_branch=not wide)
    named = f"{tuple(x.shape)} {x.stride()} {'with' if ours else 'without'} C++"
    pairs = [(out, grad.to(out.dtype)) for out, grad in zip(outs, grads, strict=False) if grad is not None]
    learned = given[: 1 + (branch is not None)] + ([] if only_add else list(norm.parameters()))
    slopes = torch.autograd.grad([out for out, _ in pairs], learned, [grad for _, grad in pairs])

    total = x.double() if branch is None else (x + branch).double()
    assert torch.equal(outs[0].double().nan_to_num(), total.nan_to_num()), f"{named}: another sum"
    dx = torch.zeros_like(total) if grads[0] is None else grads[0].double()
    of_weights: tuple[Tensor, ...] = ()
    if not only_add:
        wanted = nn.functional.layer_norm(
            total, total.shape[-1:], norm.weight.double(), None if norm.bias is None else norm.bias.double(), norm.eps
        )
        near(outs[1], wanted, total, f"{named}: another norm")
        of_norm, *of_weights = norm_gradients(pairs[-1][1].double(), total, norm.weight.double(), norm.eps)
        dx = dx + of_norm
    near(slopes[0], dx, total, f"{named}: another gradient of x")
    if branch is not None:
        near(slopes[1], dx, total, f"{named}: another gradient of the branch")
    if total.numel() and total.isfinite().all():
        allowed = rounding(total).max() * 10 * total.shape[0] * total.shape[1]
        for slope, exact in zip(slopes[1 + (branch is not None) :], of_weights, strict=False):
            assert ((slope - exact).abs() <= allowed).all(), f"{named}: another gradient of a weight"
    return "add_and_norm", "C++" if ours else "operators"


def rounding(x: Tensor) -> Tensor:
    """How far off a norm in single precision may be: farther where the mean is large beside the deviation."""
    deviation = (x - x.mean(dim=-1, keepdim=True)).square().mean(dim=-1, keepdim=True).sqrt()
    return 1e-5 + 1e-6 * x.abs().amax(dim=-1, keepdim=True) / deviation.clamp(min=1e-3)


def near(found: Tensor, exact: Tensor, x: Tensor, what: str) -> None:
    """Equal but for rounding, and not finite in the same rows."""
    finite = x.isfinite().all(dim=-1)
    assert torch.equal(found.isfinite().all(dim=-1), finite | exact.isfinite().all(dim=-1)), what
    size = 1 + exact.abs().amax(dim=-1, keepdim=True)
    allowed = (2**-8 * exact.abs() if found.dtype == torch.bfloat16 else 0) + rounding(x) * size
    assert ((found - exact).abs() <= allowed)[finite].all(), what
