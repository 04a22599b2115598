"""What a script does to show that an attention fails a check.

There are `attention`, `q`, `k` and `v`, and what of these a body names: n, m, mask, bias, pairs, reference, normal.
{options} are the mask and the bias that are claimed.
"""

WITH_GRADIENTS = """
torch.testing.assert_close(*outs, rtol=0, atol=TOLERANCE)
grads = [torch.autograd.grad((t * normal(*q.shape, seed=99)).sum(), (q, k, v), materialize_grads=True) for t in outs]
found, expected = grads
"""

BODIES = {
    "shapes-and-dtypes": """
for dtype in {torch.float32, DTYPE}:
    inputs = [t.to(dtype) for t in (q, k, v)]
    out = attention(*(t.clone() for t in inputs))
    print(out.shape, out.dtype, "expected", q.shape, dtype)
    assert out.shape == q.shape and out.dtype == dtype and out.isfinite().all()
    given = [t.clone() for t in inputs]
    attention(*given)
    assert all(torch.equal(a, b) for a, b in zip(given, inputs)), "the inputs have changed"
""",
    "agrees-with-reference": """
found, expected = attention(q, k, v), reference(q, k, v, pairs)
""",
    "many-tokens-agree-with-reference": """
found, expected = attention(q, k, v), reference(q, k, v, pairs)
torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
for t in (q, k, v):
    t.requires_grad_()
found, expected = attention(q, k, v, {options}), reference(q, k, v, {pairs})
torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
grads = [torch.autograd.grad((t * normal(*q.shape, seed=99)).sum(), (q, k, v)) for t in (found, expected)]
torch.testing.assert_close(*grads, rtol=0, atol=TOLERANCE)
""",
    "mask-agrees-with-reference": """
found, expected = attention(q, k, v, mask=mask), reference(q, k, v, pairs & mask[:, None, None])
""",
    "pair-mask-agrees-with-reference": """
for shape in itertools.product(*((size, 1) for size in (*q.shape[:2], n, m))):
    mask = normal(*shape, seed=1) > -0.5
    kept = (pairs & mask).any(-1, keepdim=True)
    found, expected = attention(q, k, v, mask=mask), reference(q, k, v, pairs & mask)
    torch.testing.assert_close(found.where(kept, 0), expected.where(kept, 0), rtol=0, atol=TOLERANCE)
""",
    "bias-agrees-with-reference": """
q.requires_grad_()
for shape in itertools.product(*((size, 1) for size in (*q.shape[:2], n, m))):
    bias = (2 * normal(*shape, seed=5)).index_fill(3, torch.tensor([m // 2] * (shape[3] > 1)).long(), -torch.inf)
    full = bias.requires_grad_() + torch.zeros(n, m, dtype=DTYPE).masked_fill(~pairs, -torch.inf)
    found, expected = attention(q, k, v, bias=bias), reference(q, k, v, full)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
    grads = [torch.autograd.grad(t.sum(), bias, materialize_grads=True)[0] for t in (found * q, expected * q)]
    torch.testing.assert_close(*grads, rtol=0, atol=TOLERANCE)
""",
    "scale-agrees-with-reference": """
for t in (q, k, v):
    t.requires_grad_()
outs = [attention(q, k, v, scale=0.7), reference(q, k, v, pairs, scale=0.7)]
"""
    + WITH_GRADIENTS,
    "is-causal-agrees-with-reference": """
for t in (q, k, v):
    t.requires_grad_()
outs = [attention(q, k, v, is_causal=True), reference(q, k, v, pairs.tril())]
"""
    + WITH_GRADIENTS,
    "pattern-that-keeps-all-is-none": """
from core.sparse import Local
found, expected = attention(q, k, v, pattern=Local(1 << 20), {options}), attention(q, k, v, {options})
""",
    "gradients-agree-with-reference": """
for t in (q, k, v):
    t.requires_grad_()
weights = normal(*q.shape, seed=99)
expected = torch.autograd.grad((reference(q, k, v, {pairs}) * weights).sum(), (q, k, v))
out = attention(q, k, v, {options})
found = torch.autograd.grad((out * weights).sum(), (q, k, v), materialize_grads=True)
""",
    "gradcheck": """
for t in (q, k, v):
    t.requires_grad_()
torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v), (q, k, v), fast_mode=True, atol=1e-7, rtol=1e-5)
""",
    "masked-rows-are-zero": """
q.requires_grad_()
for options in OPTIONS:
    out = attention(q, k, v, **options)
    print(out)
    rows = 1 if "bias" in options or options["mask"].shape[-1] < k.shape[2] else slice(None)
    assert (out[:1, :, rows] == 0).all(), "a query without keys does not give 0"
    [grad] = torch.autograd.grad((out * normal(*out.shape, seed=99)).sum(), [q])
    assert grad.isfinite().all(), "the gradients are not finite"
""",
    "masked-never-leaks": """
masks = MASKS
for poison, (options, query) in itertools.product((torch.nan, torch.inf, -torch.inf), masks):
    q2 = q.clone().index_fill(2, torch.tensor([1] * query, dtype=torch.long), poison)
    k2, v2 = (t.masked_fill(~mask[:, None, :, None], poison) for t in (k, v))
    found, expected = attention(q2, k2, v2, mask=options), attention(q, k, v, mask=options)
    print("found", found, "expected", expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
""",
    "mask-holds-at-large-logits": """
for dtype in (torch.float32, HALVES):
    q2 = torch.full_like(q, (8e3 / q.shape[-1] ** 0.5) ** 0.5)  # so that the logits are 8e3 behind the mask, and -8e3
    k2 = (q2[:, :, :1] * torch.where(mask, -1, 1)[:, None, :, None]).expand(k.shape)
    expected = reference(*(t.to(dtype).double() for t in (q2, k2, v)), pairs & mask[:, None, None])
    found = attention(q2.to(dtype), k2.to(dtype), v.to(dtype), mask=mask)
    print(dtype, "found", found, "expected", expected)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.03 * max(1, expected.abs().max().item()))
""",
    "padding-changes-nothing": """
longer = [torch.cat([t, 100 * normal(*t.shape[:2], 4, t.shape[3], seed=50 + i)], 2) for i, t in enumerate((q, k, v))]
mask = (torch.arange(n + 4) < n).expand(len(q), -1)
found, expected = attention(*longer, mask=mask)[:, :, :n], attention(q, k, v)
""",
    "batch-changes-nothing": """
together = attention(q, k, v)
for i in range(len(q)):
    found = attention(q[i : i + 1], k[i : i + 1], v[i : i + 1])
    torch.testing.assert_close(found, together[i : i + 1], rtol=0, atol=TOLERANCE)
for h in range(q.shape[1]):
    others = [normal(*t.shape, seed=20 + i) for i, t in enumerate((q, k, v))]
    for other, own in zip(others, (q, k, v)):
        other[:, h] = own[:, h]
    torch.testing.assert_close(attention(*others)[:, h], together[:, h], rtol=0, atol=TOLERANCE)
""",
    "order-changes-nothing": """
keys, queries = torch.arange(m).flip(0), torch.arange(n).flip(0)
found, expected = attention(q[:, :, queries], k[:, :, keys], v[:, :, keys]), attention(q, k, v)[:, :, queries]
""",
    "future-changes-nothing": """
out = attention(q, k, v)
for place in range(1, n):
    later = [torch.cat([t[:, :, :place], t[:, :, place:] + 3], dim=2) for t in (q, k, v)]
    found, expected = attention(*later)[:, :, :place], out[:, :, :place]
    print("place", place, "found", found, "expected", expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
""",
    "half-precision-error": """
for dtype in (torch.bfloat16, torch.float16):
    errors = [0.0, 0.0]
    for seed in (0, 10, 20):
        half = [normal(*t.shape, seed=seed + i).to(dtype) for i, t in enumerate((q, k, v))]
        exact = reference(*(t.double() for t in half), {pairs})
        plain = (half[0] @ half[1].mT * 0.25).masked_fill(~({pairs}), -torch.inf).softmax(-1) @ half[2]
        for i, out in enumerate((attention(*half, {options}), plain)):
            errors[i] = max(errors[i], float((out.double() - exact).abs().max()))
    print(dtype, "off by", errors[0], "and torch's own by", errors[1])
    assert errors[0] <= 2 * errors[1]
""",
    "large-logits-are-stable": """
q, k, v = (1e4 * t.float() for t in (q, k, v))
found, expected = attention(q, k, v) / 1e4, reference(q, k, v, pairs) / 1e4
print("found", found, "expected", expected)
torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
""",
    "length-one": """
q, k, v = q[:, :, :1], k[:, :, :1], v[:, :, :1]
found, expected = attention(q, k, v), v
""",
    "length-zero": """
for shape in ((len(q), *q.shape[1:2], 0, q.shape[3]), (0, *q.shape[1:])):
    q0 = torch.zeros(shape, dtype=DTYPE)
    assert attention(q0, q0, q0).shape == shape
CROSS
""",
    "strides-change-nothing": """
for t in (q, k, v):
    t.requires_grad_()
strided = [torch.stack([t, t], dim=-1)[..., 0] for t in (q, k, v)]
swapped = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (q, k, v)]
for others in (strided, swapped):
    torch.testing.assert_close(attention(*others), attention(q, k, v), rtol=0, atol=TOLERANCE)
one = [t[:1].expand_as(t) for t in (q, k, v)]
found, expected = attention(*one), attention(*(t.clone() for t in one))
""",
    "deterministic": """
torch.manual_seed(0)
expected = attention(q, k, v)
torch.manual_seed(1)
found = attention(q, k, v)
print("differ by", float((found - expected).abs().max()))
assert torch.equal(found, expected)
""",
    "dropout-of-zero-is-none": """
found, expected = attention(q, k, v, dropout=0.0), attention(q, k, v)
""",
    "dropout-is-unbiased": """
expected = attention(q, k, v)[:1]
torch.manual_seed(0)
drawn = attention(*(t[:1].expand(600, -1, -1, -1) for t in (q, k, v)), dropout=0.5)
assert (drawn[0] != drawn[1]).any(), "nothing is dropped, or the same of all samples"
error = (drawn.mean(0) - expected[0]).abs() / (drawn.std(0) / 600**0.5 + 1e-12)
print("the mean is off by", float(error.max()), "standard errors")
assert error.max() < 6
""",
    "dropout-is-of-single-weights": """
m = q.shape[3] // 2
q, k, v = (normal(32, q.shape[1], m, 2 * m, seed=i) for i in range(3))
v = torch.eye(m, dtype=DTYPE).repeat(1, 2).expand(v.shape)  # the output is the weights, twice
weights, drawn = attention(q, k, v), []
for seed in (0, 1, 0):
    torch.manual_seed(seed)
    drawn += [attention(q, k, v, dropout=0.5), attention(q, k, v, dropout=0.5)]
assert torch.equal(drawn[0], drawn[4]), "the same random state drops other weights"
assert torch.equal(drawn[0][..., :m], drawn[0][..., m:]), "outputs are dropped, not weights"
dropped, large = drawn[0].abs() <= TOLERANCE, weights > 100 * TOLERANCE
assert (dropped | ((drawn[0] - 2 * weights).abs() <= 2 * TOLERANCE))[large].all(), "a weight is neither 0 nor doubled"
for other in (drawn[1].abs() <= TOLERANCE, *(dropped.roll(1, axis) for axis in (1, 2, 3) if q.shape[axis] > 1)):
    print("dropped alike:", float((dropped == other)[large].double().mean()))
    assert (dropped == other)[large].double().mean() <= 0.75
""",
    "gradcheck-with-dropout": """
for t in (q, k, v):
    t.requires_grad_()
def drop(q, k, v):
    torch.manual_seed(0)
    return attention(q, k, v, dropout=0.5)
torch.autograd.gradcheck(drop, (q, k, v), fast_mode=True, atol=1e-7, rtol=1e-5)
""",
    "compiles": """
expected = attention(q, k, v, {options})
found = torch.compile(lambda q, k, v: attention(q, k, v, {options}), backend="aot_eager")(q, k, v)
""",
    "exports": """
class Module(torch.nn.Module):
    def forward(self, q, k, v):
        return attention(q, k, v, {options})
program = torch.export.export(Module(), (q, k, v), strict=False).module()
others = [normal(*t.shape, seed=10 + i) for i, t in enumerate((q, k, v))]
found, expected = program(*others), attention(*others, {options})
""",
    "cost-grows-as-claimed": """
counts = []
for n in (256, 1024):
    q = normal(1, q.shape[1], n, q.shape[3], seed=0).float().requires_grad_()
    COUNTED
exponent = math.log(counts[1] / counts[0]) / math.log(4)
print(f"WHAT grow as n^{exponent:.2f}, and n^CLAIMED is claimed")
assert exponent <= CLAIMED + 0.2
""",
}
KEPT = """counts.append(0)
    def keep(t):
        counts[-1] += t.numel()
        return t
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        attention(q, q, q)"""
OPERATIONS = """with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        attention(q, q, q).sum().backward()
    counts.append(counter.get_total_flops())"""
