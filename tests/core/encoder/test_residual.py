"""What lies between the branches of a block, in C++ under autocast: derivatives, hooks and threads, as with torch's
operators. tests/core/sparse/test_fuzz.py compares the numbers."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from core.attention import Attention
from core.attention.packing import Packing, Place
from core.encoder import MLP, Encoder, EncoderConfig, Tokens, residual
from core.encoder.residual import add, add_and_norm, normed_sum
from core.sparse import native
from core.sparse.norms import serves

PROJECTION = [nn.Linear(64, 64)]
CONFIG = EncoderConfig(dim=64, depth=2, heads=4, mlp_dim=128)
pytestmark = pytest.mark.skipif(
    not hasattr(native.kernel(), "norm_bf16"), reason="this processor has no bfloat16 arithmetic"
)


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    x, branch = (torch.randn(2, 600, 64, generator=generator) for _ in range(2))
    return x.requires_grad_(), branch.bfloat16().requires_grad_()


@pytest.fixture
def norm():
    layer = nn.LayerNorm(64)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    return layer


@pytest.fixture
def by_operators(monkeypatch):
    """A function that computes something with torch's operators in place of the C++."""

    def compute(function):
        with monkeypatch.context() as patch:
            patch.setattr(residual, "serves", lambda *_: False)
            return function()

    return compute


def run(encoder, x, packing=None):
    encoder.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        out = encoder(Tokens(x, packing=packing)).x
    out.float().square().mean().backward()
    return out.detach(), {name: parameter.grad for name, parameter in encoder.named_parameters()}


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, parallel=True),
        replace(CONFIG, norm_order="post"),
        replace(CONFIG, norm_order="res_post"),
        replace(CONFIG, norm_bias=False, layer_scale=0.5, first_norm=False),
        replace(CONFIG, norm="rmsnorm"),
        replace(CONFIG, shared_groups=1),
    ],
    ids=["pre", "parallel", "post", "res_post", "layer scale, no biases", "rmsnorm", "shared"],
)
@pytest.mark.parametrize("packed", [False, True], ids=["a batch", "a row"])
def test_encoders_compute_what_they_do_with_operators(config, packed, by_operators):
    torch.manual_seed(0)
    encoder = Encoder(config)
    for name, parameter in encoder.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, mean=1.0, std=0.2)
    x = torch.randn(1, 1200, 64) if packed else torch.randn(4, 300, 64)
    packing = Packing.of([Place(500), Place(700)]) if packed else None
    (out, grads), (wanted, its_grads) = run(encoder, x, packing), by_operators(lambda: run(encoder, x, packing))
    assert out.dtype == wanted.dtype
    assert (out - wanted).norm() <= 5e-3 * wanted.norm()
    for name, grad in grads.items():
        if its_grads[name] is None:
            assert grad is None, name
        else:
            assert grad.dtype == its_grads[name].dtype
            assert (grad - its_grads[name]).norm() <= 2e-2 * its_grads[name].norm() + 1e-6, name


def test_what_is_added_to_stays_in_single_precision_and_a_branch_begins_in_half(rows, norm):
    with torch.autocast("cpu", torch.bfloat16):
        assert [t.dtype for t in add_and_norm(*rows, norm, PROJECTION)] == [torch.float32, torch.bfloat16]
        wide, narrow = normed_sum(*rows, norm, PROJECTION)
        assert wide.dtype == torch.float32 and torch.equal(narrow, wide.bfloat16())
        assert normed_sum(*rows, norm)[1].dtype == torch.float32
        assert add(*rows).dtype == torch.float32
    assert add_and_norm(*rows, norm, PROJECTION)[1].dtype == torch.float32  # no autocast


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_see_the_norm(register, rows, norm):
    seen = []
    getattr(norm, register)(lambda *arguments: seen.append(arguments[-1]))
    with torch.autocast("cpu", torch.bfloat16):
        add_and_norm(*rows, norm, PROJECTION)
    assert len(seen) == 1


def test_hooks_of_gradients_and_of_all_modules_see_the_norm(rows, norm):
    seen = []
    norm.register_full_backward_hook(lambda *_: seen.append("gradient"))
    handle = nn.modules.module.register_module_forward_hook(lambda *_: seen.append("output"))
    try:
        with torch.autocast("cpu", torch.bfloat16):
            add_and_norm(*rows, norm, PROJECTION)[1].float().sum().backward()
    finally:
        handle.remove()
    assert seen == ["output", "gradient"]


def test_the_number_of_threads_changes_nothing(rows, norm):
    def slopes(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            x = rows[0].repeat(4, 1, 1), rows[1].repeat(4, 1, 1)
            with torch.autocast("cpu", torch.bfloat16):
                total, normed = add_and_norm(*x, norm, PROJECTION)
            given = (*rows, *norm.parameters())
            return total, normed, *torch.autograd.grad((total.sin().sum(), normed.float().cos().sum()), given)
        finally:
            torch.set_num_threads(before)

    assert all(torch.equal(one, two) for one, two in zip(slopes(1), slopes(3), strict=True))


def second(rows, norm):
    with torch.autocast("cpu", torch.bfloat16):
        total, normed = add_and_norm(*rows, norm, PROJECTION)
    given = (*rows, *norm.parameters())
    slopes = torch.autograd.grad((total.sin() + normed.float().cos()).sum(), given, create_graph=True)
    return torch.autograd.grad(sum(slope.float().square().sum() for slope in slopes), given)


def batch_of_gradients(rows, norm):
    with torch.autocast("cpu", torch.bfloat16):
        normed = add_and_norm(*rows, norm, PROJECTION)[1]
    grads = torch.stack([torch.ones_like(normed), normed.detach()])
    return torch.autograd.grad(normed, (*rows, *norm.parameters()), grads, is_grads_batched=True)


def forward_mode(rows, norm):
    with torch.autocast("cpu", torch.bfloat16):
        return torch.func.jvp(lambda x: add_and_norm(x, rows[1], norm, PROJECTION)[1], (rows[0],), (rows[0].cos(),))


def of_each_sample(rows, norm):
    def loss(x, branch):
        with torch.autocast("cpu", torch.bfloat16):
            return add_and_norm(x, branch, norm, PROJECTION)[1].float().sin().sum()

    return (torch.func.vmap(torch.func.grad(loss))(rows[0][:, None], rows[1][:, None]),)


@pytest.mark.parametrize("derivative", [second, batch_of_gradients, forward_mode, of_each_sample])
def test_other_derivatives(derivative, rows, norm, by_operators):
    found, wanted = derivative(rows, norm), by_operators(lambda: derivative(rows, norm))
    for one, other in zip(found, wanted, strict=True):
        assert (one.float() - other.float()).norm() <= 1e-2 * other.float().norm() + 1e-5


def test_what_is_frozen_or_not_used_has_no_gradient(rows, norm):
    x, branch = rows
    norm.weight.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        total, normed = add_and_norm(x.detach(), branch, norm, PROJECTION)
        normed.float().sum().backward()
        assert x.grad is None and norm.weight.grad is None and norm.bias.grad is not None
        branch.grad = None
        total, _ = add_and_norm(x, branch, norm, PROJECTION)
        total.sum().backward()
    assert torch.equal(branch.grad, torch.ones_like(branch)) and torch.equal(x.grad, torch.ones_like(x))


def test_what_only_weights_learn_from_has_no_gradient(rows, norm):
    with torch.autocast("cpu", torch.bfloat16):
        total, normed = add_and_norm(rows[0].detach(), None, norm, PROJECTION)
    assert not total.requires_grad and normed.requires_grad


def test_norms_that_are_something_else_are_called(rows, norm):
    def replaced(x):
        return x * 0

    wrong, other = nn.LayerNorm(64), nn.LayerNorm(64)
    wrong.weight = nn.Parameter(torch.ones(8))
    other.forward = replaced
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(RuntimeError, match="weight"):
            add_and_norm(*rows, wrong, PROJECTION)
        assert not add_and_norm(*rows, other, PROJECTION)[1].any()
        assert not serves(*rows, nn.LayerNorm((600, 64))) and serves(*rows, norm)
        norm.weight.data.untyped_storage().resize_(0)  # as sharded training frees what it gathered
        assert not serves(*rows, norm)


def with_hook():
    mlp = MLP(64, 128)
    mlp.register_forward_pre_hook(lambda *_: None)
    return mlp


READERS = {
    "no linear layer": nn.Identity(),
    "a layer within": nn.Sequential(nn.Linear(64, 64)),
    "a subclass of a linear layer": type("Mine", (nn.Linear,), {})(64, 64),
    "a subclass of an MLP": type("Mine", (MLP,), {})(64, 128),
    "a hook that sees the input": with_hook(),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_readers_that_autocast_may_not_convert_for_read_single_precision(reader, rows, norm):
    with torch.autocast("cpu", torch.bfloat16):
        assert add_and_norm(*rows, norm, [*PROJECTION, reader])[1].dtype == torch.float32
        assert normed_sum(*rows, norm, [reader])[1].dtype == torch.float32
        assert add_and_norm(*rows, norm, [Attention(64, 4), MLP(64, 128)])[1].dtype == torch.bfloat16


def test_parts_of_a_block_may_be_replaced():
    torch.manual_seed(0)
    encoder = Encoder(CONFIG)
    encoder.blocks[0].mlp = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
    encoder.blocks[1].attention = nn.Linear(64, 64)
    encoder.blocks[1].attention.forward = lambda x, **_: x * 2
    assert run(encoder, torch.randn(4, 300, 64))[0].isfinite().all()


def test_numbers_whose_squares_are_infinite_do_not_become_zero(rows, norm):
    x = rows[0].detach() * 1e20
    with torch.autocast("cpu", torch.bfloat16):
        assert serves(x, None, norm)
        assert add_and_norm(x, None, norm, PROJECTION)[1].isnan().all()


def test_a_trace_holds_operators(rows, norm):
    def compute(x):
        with torch.autocast("cpu", torch.bfloat16):
            return add_and_norm(x, None, norm, PROJECTION)[1]

    norm.requires_grad_(False)
    assert "AddedAndNormed" not in str(torch.jit.trace(compute, rows[0].detach(), check_trace=False).graph)
