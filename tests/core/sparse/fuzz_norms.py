"""Random additions and layer norms under autocast: what the C++ makes of them is what torch's operators make."""

import torch
from torch import Tensor, nn

from core.encoder.residual import add, add_and_norm, normed_sum
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
    """By which function, and how it was computed."""
    torch.manual_seed(rng.getrandbits(31))
    way = rng.choice(("add", "add_and_norm", "add_and_norm", "normed_sum"))
    x, branched = random_rows(rng), way != "add_and_norm" or rng.random() < 0.5
    branch = torch.randn(x.shape).bfloat16() if branched else None
    norm = nn.LayerNorm(x.shape[-1], eps=rng.choice((1e-6, 1e-3)), bias=rng.random() < 0.7)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    given = x.detach().requires_grad_(), None if branch is None else branch.requires_grad_()
    readers = rng.choice(([], [nn.Identity()], [nn.Linear(1, 1)], [nn.Linear(1, 1)]))
    with torch.autocast("cpu", torch.bfloat16):
        ours = serves(*given, None if way == "add" else norm)
        if way == "add":
            outs = {"sum": add(*given)}
        elif way == "add_and_norm":
            outs = dict(zip(("sum", "norm"), add_and_norm(*given, norm, readers), strict=True))
        else:
            outs = dict(zip(("norm", "same norm"), normed_sum(*given, norm, readers), strict=True))
    named = f"{way} {tuple(x.shape)} {x.stride()} {'with' if ours else 'without'} C++"
    used = rng.sample(list(outs), rng.randint(1, len(outs)))
    grads = {name: torch.randn(x.shape).to(outs[name].dtype) for name in used}
    total = x.double() if branch is None else (x + branch).double().detach()
    for name, out in outs.items():
        if name == "sum":
            assert torch.equal(out.double().nan_to_num(), total.nan_to_num()), f"{named}: another sum"
        else:
            bias = None if norm.bias is None else norm.bias.double()
            wanted = nn.functional.layer_norm(total, total.shape[-1:], norm.weight.double(), bias, norm.eps)
            near(out, wanted, total, f"{named}: another norm")
    of_sum, of_norm = (sum(grads[name].double() for name in used if (name == "sum") == each) for each in (True, False))
    dx, *of_weights = norm_gradients(total * 0 + of_norm, total, norm.weight.double(), norm.eps)
    learned = [t for t in (*given, *(norm.parameters() if isinstance(of_norm, Tensor) else ())) if t is not None]
    slopes = torch.autograd.grad([outs[name] for name in used], learned, [grads[name] for name in used])
    dx = dx + of_sum if isinstance(of_norm, Tensor) else of_sum
    for slope in slopes[: 1 + branched]:
        near(slope, dx, total, f"{named}: another gradient")
    if total.numel() and total.isfinite().all():
        allowed = rounding(total).max() * 10 * total.shape[0] * total.shape[1]
        for slope, exact in zip(slopes[1 + branched :], of_weights, strict=False):
            assert ((slope - exact).abs() <= allowed).all(), f"{named}: another gradient of a weight"
    return way, "C++" if ours else "operators"


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
