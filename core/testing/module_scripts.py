"""What a script does to show that a module fails a check.

There are `module`, `inputs`, `run(module, *inputs)`, and what of these a body names: make(seed), normal, grads(out), x
and mask (of an encoder), padded, left, emptied and altered (of a model), samples and packed(module, samples).
"""

GRADS = (
    "grads = lambda out: torch.autograd.grad((out * normal(*out.shape, seed=99)).sum(), [*module.parameters()], "
    "materialize_grads=True)"
)

BODIES = {
    "shapes-and-dtypes": """
given = [i.clone() for i in inputs]
out = run(module, *given)
print(out.shape, out.dtype)
assert out.ndim and len(out) == len(inputs[0]) and out.dtype == DTYPE and out.isfinite().all()SHAPE
assert all(torch.equal(a, b) for a, b in zip(given, inputs)), "the inputs have changed"
""",
    "gradient-reaches-every-parameter": """
inputs[0].requires_grad_(inputs[0].is_floating_point())
out = run(module, *inputs)
(out * normal(*out.shape, seed=99)).sum().backward()
for name, p in (*module.named_parameters(), ("inputs", inputs[0])):
    assert not p.requires_grad or (p.grad is not None and p.grad.any() and p.grad.isfinite().all()), name
""",
    "gradcheck": """
loss = lambda: (run(module, *inputs) * normal(*run(module, *inputs).shape, seed=99)).sum()
learned = [*module.parameters(), *(i.requires_grad_() for i in inputs if i.is_floating_point())]
before, found = loss().item(), torch.autograd.grad(loss(), learned, materialize_grads=True)
for p, g in zip(learned, found): p.data += 1e-6 * g
slopes = sum((g**2).sum().item() for g in found), (loss().item() - before) / 1e-6
print("slope along the gradient, by the gradient and by a difference:", slopes)
assert abs(slopes[0] - slopes[1]) <= 1e-3 * abs(slopes[1])
""",
    "batch-changes-nothing": """
out = run(module, *inputs)
for i in range(len(out)):
    alone = run(module, *(t[i : i + 1] for t in inputs))
    torch.testing.assert_close(alone, out[i : i + 1], rtol=0, atol=TOLERANCE)
torch.testing.assert_close(run(module, *(t.flip(0) for t in inputs)), out.flip(0), rtol=0, atol=TOLERANCE)
""",
    "half-precision-error": """
exact = run(module, *inputs).detach()
module, inputs = module.float(), [t.float() if t.is_floating_point() else t for t in inputs]
with torch.no_grad(), torch.autocast("cpu", HALF): out = run(module, *inputs)
error = float((out.double() - exact).abs().max() / exact.abs().max().clamp(min=1))
print("off by", error, "where rounding each operation's result is off by", IDEAL)
assert error <= 2 * IDEAL
""",
    "fp32-agrees-with-fp64": """
found = run(copy.deepcopy(module).float(), *(t.float() if t.is_floating_point() else t for t in inputs))
print("found", found, "expected", run(module, *inputs))
torch.testing.assert_close(found.double(), run(module, *inputs), rtol=0, atol=1e-4)
""",
    "autocast-takes-half-inputs": """
module, half = module.float(), [t.to(HALF) if t.is_floating_point() else t for t in inputs]
with torch.autocast("cpu", HALF):
    expected, found = run(module, *(t.float() if t.is_floating_point() else t for t in half)), run(module, *half)
    with torch.no_grad(): without = run(module, *half)
bound = 0.05 * expected.abs().max().item()
for out in (found, without): torch.testing.assert_close(out.double(), expected.double(), rtol=0, atol=bound)
""",
    "no-grad-changes-nothing": """
with torch.no_grad(): out = run(module, *inputs)
found, expected = out, run(module, *inputs)
""",
    "other-ways-agree": """
expected, found = run(module, *inputs), OTHER
print("found", found, "expected", expected)
torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
torch.testing.assert_close(grads(found), grads(expected), rtol=0, atol=1e-6)
""",
    "inference-ways-agree": """
with torch.no_grad(): found, expected = OTHER, run(module, *inputs)
torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
""",
    "cached-equals-at-once": """
cached, tokens = CACHED, inputs[0]
for sizes in PARTS:
    for y in (tokens, tokens.flip(0, 1)):
        expected = run(module, y)
        torch.testing.assert_close(cached(module, y.split(sizes, dim=1)), expected, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(run(module, y), expected, rtol=0, atol=TOLERANCE)
""",
    "large-inputs-are-stable": """
module = module.float()
out = run(module, *(1e4 * t.float() if t.is_floating_point() else t for t in inputs))
print(out)
assert out.isfinite().all() and all(g.isfinite().all() for g in grads(out))
""",
    "empty-batch": """
out = run(module, *(t[:0] for t in inputs))
print(out.shape)
assert out.shape == (0, *run(module, *inputs).shape[1:])
""",
    "strides-change-nothing": """
expected = run(module, *inputs)
for others in ([torch.stack([t, t], dim=-1)[..., 0] for t in inputs], [t.mT.contiguous().mT for t in inputs]):
    torch.testing.assert_close(run(module, *others), expected, rtol=0, atol=TOLERANCE)
""",
    "deterministic": """
outs = []
for training in (False, False, True, True):
    torch.manual_seed(0)
    outs.append(run(module.train(training), *inputs))
print("differ by", float((outs[0] - outs[1]).abs().max()), float((outs[2] - outs[3]).abs().max()))
assert torch.equal(outs[0], outs[1]) and torch.equal(outs[2], outs[3])
""",
    "dropout-is-off-in-evaluation": """
torch.manual_seed(0)
expected = run(module, *inputs)
torch.manual_seed(1)
found = run(module, *inputs)
print("differ by", float((found - expected).abs().max()))
assert torch.equal(found, expected)
""",
    "dropout-is-on-in-training": """
with torch.no_grad():
    expected = run(module, *inputs)
    torch.manual_seed(0)
    drawn = torch.stack([run(module.train(), *inputs) for _ in range(40)])
assert (drawn[0] != drawn[1]).any(), "nothing is dropped in training"
assert (drawn.mean(0) - expected).square().mean() < 0.5 * (drawn - expected).square().mean()
""",
    "state-dict-round-trip": """
other = make(seed=1)
other.load_state_dict(module.state_dict())
found, expected = run(other, *inputs), run(module, *inputs)
print("found", found, "expected", expected)
assert torch.equal(found, expected)
""",
    "checkpointing-changes-nothing": """
runs = []
for module, way in ((module.train(), run), TWIN):
    out = torch.manual_seed(0) and way(module, *inputs)
    runs.append([out, *grads(out)])
torch.testing.assert_close(*runs, rtol=0, atol=1e-6)
""",
    "compiles": """
found, expected = torch.compile(run, backend="aot_eager")(module, *inputs), run(module, *inputs)
""",
    "exports": """
class Program(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.module = module
    def forward(self, *inputs):
        return run(self.module, *inputs)
others = [t.flip(0) for t in inputs]
found = torch.export.export(Program(), tuple(inputs), strict=False).module()(*others)
expected = run(module, *others)
""",
    "pattern-that-keeps-all-is-none": """
from core import sparsify
from core.sparse import Local
expected = run(module, *inputs)
found = run(sparsify(module, Local(1 << 20)), *inputs)
""",
    "cost-grows-as-claimed": """
from torch.utils.flop_counter import FlopCounterMode
counts = []
for n in (128, 512):
    with FlopCounterMode(display=False) as counter:
        run(module, normal(1, n, WIDTH, seed=0)).sum().backward()
    counts.append(counter.get_total_flops())
exponent = math.log(counts[1] / counts[0]) / math.log(4)
print(f"operations grow as n^{exponent:.2f}, and n^CLAIMED is claimed")
assert exponent <= CLAIMED + 0.2
""",
    "overfits-one-batch": """
inputs = [t.float() if t.is_floating_point() else t for t in inputs]
module = module.float().train()
target = normal(*run(module, *inputs).shape, seed=3).float().sign()
optimizer, losses = torch.optim.Adam(module.parameters(), lr=RATE), []
for _ in range(150):
    loss = (run(module, *inputs) - target).square().mean()
    _ = optimizer.zero_grad(), loss.backward(), optimizer.step()
    losses.append(loss.item())
print("loss", losses[0], "and after 150 steps", losses[-1])
assert min(losses) <= 0.1 * losses[0]
""",
    "shared-parameters-are-shared": """
other = make(seed=1)
other.load_state_dict(module.state_dict())
for each in (module, other, copy.deepcopy(module)):
    count = sum({p.untyped_storage().data_ptr(): p.numel() for p in each.parameters()}.values())
    print("weights", count, "expected", WEIGHTS)
    assert count == WEIGHTS
""",
    "adapters-start-as-identity": """
expected = run(module, *inputs).detach()
adapted = ADAPT(module).eval()
found = run(adapted, *inputs)
torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
found.sum().backward()
assert any(p.grad is not None and p.grad.any() for p in adapted.parameters()), "the adapter has no gradient"
""",
    "merged-equals-unmerged": """
adapted = ADAPT(module).eval()
for p in (p for p in adapted.parameters() if p.requires_grad): p.data += 0.1 * torch.randn_like(p)
expected = run(adapted, *inputs)
found = run(MERGE(adapted), *inputs)
""",
    "adapters-learn-beside-quantised-weights": """
dtype, old = next((p.dtype, {*module.parameters()}) for p in QUANTISE(module).parameters() if p.is_floating_point())
adapted = ADAPT(module).eval()
run(adapted, *(t.to(dtype) if t.is_floating_point() else t for t in inputs)).sum().backward()
for name, p in adapted.named_parameters():
    if p not in old and p.requires_grad and p.any():
        assert (p * 1.001 != p).double().mean() > 0.5, f"{name} is in {p.dtype}"
assert any(p.grad is not None and p.grad.any() for p in adapted.parameters()), "the adapter has no gradient"
""",
    "merged-into-quantised-weights-is-kept": """
exact = lambda each: run(copy.deepcopy(each).to(DTYPE).eval(), *inputs)
before, adapted = exact(module := QUANTISE(module)), ADAPT(module)
for p in (p for p in adapted.parameters() if p.requires_grad): p.data += SIZE * torch.randn_like(p)
expected = exact(adapted)
off = (exact(MERGE(adapted)) - expected).norm() / (expected - before).norm()
assert off < 0.5, f"merged, outputs are off by {off:.2g} times what the adapter changes"
""",
    "agrees-with-reference": """
found, expected = run(module, *inputs), REFERENCE(module, *inputs)
expected = expected.where(inputs[1][..., None], 0) if len(inputs) > 1 else expected
""",
    "padding-comes-out-as-zero": """
out = CALLED(module, x, mask)
print(out[~mask])
assert (out[~mask] == 0).all()
""",
    "fully-masked-sample-is-harmless": """
expected = run(module, x[1:], mask[1:])
mask[0] = False
out = CALLED(module, x, mask)
print(out)
assert out.isfinite().all() and all(g.isfinite().all() for g in grads(out))
torch.testing.assert_close(out[1:], expected, rtol=0, atol=TOLERANCE)
""",
    "masked-never-leaks": """
expected = run(module, x, mask)
wanted = [expected, *grads(expected)]
for poison in (torch.nan, torch.inf):
    found = run(module, x.masked_fill(~mask[..., None], poison), mask)
    torch.testing.assert_close([found, *grads(found)], wanted, rtol=0, atol=1e-6)
""",
    "padding-changes-nothing": """
n = x.shape[1]
longer = torch.cat([x, 100 * normal(len(x), 4, WIDTH, seed=1)], dim=1)
mask = (torch.arange(n + 4) < n).expand(len(x), -1)
found, expected = run(module, longer, mask)[:, :n], run(module, x)
""",
    "left-padding-changes-nothing": """
longer = torch.cat([100 * normal(len(x), 4, WIDTH, seed=1), x], dim=1)
mask = (torch.arange(x.shape[1] + 4) >= 4).expand(len(x), -1)
found, expected = run(module, longer, mask)[:, 4:], run(module, x)
torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
""",
    "padding-changes-nothing-in-training": """
module, n = module.train(), x.shape[1]
longer = torch.cat([x, 100 * normal(len(x), 4, WIDTH, seed=1)], dim=1)
mask = (torch.arange(n + 4) < n).expand(len(x), -1)
found, expected = run(module, longer, mask)[:, :n], run(module, x)
torch.testing.assert_close([found, *grads(found)], [expected, *grads(expected)], rtol=0, atol=1e-6)
""",
    "mask-holds-in-half-precision": """
module, x = module.float(), x.float()
with torch.no_grad(), torch.autocast("cpu", HALF):
    expected = run(module, x, mask).double()
    found = run(module, x.where(mask[..., None], FACTOR * x), mask).double()
    print("found", found, "expected", expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * max(1, expected.abs().max().item()))
    mask[0] = False
    assert CALLED(module, x, mask).isfinite().all(), "a sample of padding only gives NaN or inf"
""",
    "order-changes-nothing": """
found, expected = run(module, x.flip(1)), run(module, x).flip(1)
""",
    "future-changes-nothing": """
out = run(module, x)
for place in range(1, x.shape[1]):
    later = torch.cat([x[:, :place], x[:, place:] + 3 * normal(*x.shape, seed=1)[:, place:]], dim=1)
    torch.testing.assert_close(run(module, later)[:, :place], out[:, :place], rtol=0, atol=TOLERANCE)
""",
    "length-one": """
x = x[:, :1]
out = run(module, x)
assert out.shape == x.shape and out.isfinite().all()
ONE
""",
    "length-zero": """
x = x[:, :0]
out = run(module, x)
assert out.shape == x.shape
""",
    "packed-equals-alone": """
for found, sample in zip(packed(module, samples), samples):
    expected = run(module, sample[None])[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
""",
    "packed-gradients-equal-alone": """
expected = grads(torch.cat([run(module, sample[None])[0].flatten() for sample in samples]))
found = grads(torch.cat([out.flatten() for out in packed(module, samples)]))
torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
""",
    "packed-order-changes-nothing": """
expected = packed(module, samples)
for found, out in zip(packed(module, samples[::-1])[::-1], expected):
    torch.testing.assert_close(found, out, rtol=0, atol=TOLERANCE)
""",
    "packed-never-leaks": """
expected = packed(module, samples)
for i, poison in [(i, poison) for i, sample in enumerate(samples) for poison in POISONS]:
    found = packed(module, [*samples[:i], poison, *samples[i + 1 :]])
    for j in set(range(len(samples))) - {i}:
        torch.testing.assert_close(found[j], expected[j], rtol=0, atol=TOLERANCE)
""",
    "packed-half-precision-error": """
exact = torch.cat([out.flatten() for out in packed(module, samples)]).detach()
module, samples = module.float(), [t.float() if t.is_floating_point() else t for t in samples]
with torch.no_grad(), torch.autocast("cpu", HALF): out = torch.cat([out.flatten() for out in packed(module, samples)])
error = float((out.double() - exact).abs().max() / exact.abs().max().clamp(min=1))
print("off by", error, "where rounding each operation's result is off by", IDEAL)
assert error <= 2 * IDEAL
""",
}
for _rule in ("padding-changes-nothing", "future-changes-nothing"):
    BODIES[f"many-tokens-{_rule}"] = BODIES[_rule]
