"""FlexAttention: its tables and functions mean what the reference computes, and no batch is compiled anew."""

import pytest
import torch
from flex_cases import by_definition, by_plain_operators, flexed, listed
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_cases import alone, calls, near, parts, together
from packed_cases import inputs as inputs_of_row
from packed_cases import worst as worst_in_row
from sparse_cases import gradients, inputs, relation, worst
from torch._subclasses.fake_tensor import FakeTensorMode

from core import attend, attend_reference, attention_backend, explain, record_attention
from core.attention import flex
from core.attention.call import make_call
from core.attention.flex_table import ALL, table_of_batch, table_of_row
from core.attention.packing import Packing, Place
from core.private_torch import one_graph_for_all_shapes, tree_map_only
from core.sparse import Axial, Causal, Dilated, Global, Local, PowersOfTwo, Random, Window2d
from core.sparse.plan import make_plan

LINES = [
    Local(128),
    Local(50, exact=True),
    PowersOfTwo() | Global(2),
    Causal(),
    Causal() | Global(70),
    Local(50, exact=True) & Causal() | Global(1) & Causal(),
    Local(40, exact=True) | Random(2),
    Dilated(40, 3, exact=True),
]
GRIDS = [Window2d(3), Window2d(3, exact=True), Axial(exact=True), PowersOfTwo() | Window2d(2)]
LENGTHS = (1, 5, 64, 65, 130, 200, 256, 330)
CUT = Local(50, exact=True) & Causal()


@st.composite
def places(draw):
    """A pattern, and prefix, grid and length of a sequence that it fits."""
    pattern, prefix = draw(st.sampled_from([*LINES, *GRIDS])), draw(st.sampled_from((0, 1, 3)))
    if pattern.on_grid:
        grid = draw(st.integers(1, 20)), draw(st.integers(1, 12))
        return pattern, prefix, grid, prefix + grid[0] * grid[1]
    n = draw(st.sampled_from(LENGTHS))
    return pattern, min(prefix, n), None, n


def masks(b, n):
    """None, or a mask of keys that leaves one sample nothing."""
    mask = torch.rand(b, n, generator=torch.Generator().manual_seed(n)) > 0.4
    mask[-1] = False
    return st.sampled_from([None, mask, mask[:1]])


def biases(b, h, n):
    """None, or a bias of any shape that forbids some pairs."""

    def made(shape):
        bias = torch.randn(shape, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
        return bias.masked_fill(bias > 1.5, -torch.inf)

    shapes = [(b, h, n, n), (1, h, n, n), (b, 1, 1, n), (1, 1, n, 1)]
    return st.sampled_from([None, *shapes]).map(lambda shape: None if shape is None else made(shape))


@settings(max_examples=60, deadline=None)
@given(place=places(), data=st.data())
def test_a_batch_gets_what_the_reference_computes(place, data):
    pattern, prefix, grid, n = place
    *qkv, upstream = inputs((2, 2, n, 16), 0)
    mask, bias = data.draw(masks(2, n)), data.draw(biases(2, 2, n))
    scale = data.draw(st.sampled_from([None, -0.5]))
    allowed = relation(pattern, prefix, grid, n)
    allowed = allowed if mask is None else allowed & mask[:, None, None]

    def reference(q, k, v, bias=None):
        return attend_reference(q, k, v, allowed, bias, scale)

    def found(q, k, v, bias=None):
        return flexed(q, k, v, mask=mask, bias=bias, pattern=pattern, prefix=prefix, grid=grid, scale=scale)

    tensors = qkv if bias is None else [*qkv, bias]
    with by_definition():
        computed = gradients(found, tensors, upstream)
    assert worst(computed, gradients(reference, tensors, upstream)) < 1e-10


@settings(max_examples=60, deadline=None)
@given(call=calls(), data=st.data())
def test_a_sequence_in_a_row_gets_what_it_gets_alone(call, data):
    pattern, packing = call
    if not packing.total:
        return
    *qkv, upstream = inputs_of_row(packing, e=5)
    bias = None
    if data.draw(st.booleans()):
        wide = data.draw(st.booleans())
        shapes = [(1, 2 if wide else 1, n, n if wide else 1) for n in packing.lengths.tolist()]
        bias = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    with by_definition():
        found = together(qkv, upstream, packing, attention=flexed, pattern=pattern, bias=bias)
    assert worst_in_row(found, alone(qkv, upstream, packing, pattern=pattern, bias=bias)) < 1e-10


def test_the_biases_of_a_row_learn():
    packing = Packing.of([Place(70, 1), Place(1), Place(130, 3)])
    *qkv, upstream = inputs_of_row(packing)
    bias = [torch.randn(1, 2, n, n, dtype=torch.float64, requires_grad=True) for n in packing.lengths.tolist()]
    with by_plain_operators():
        found = torch.autograd.grad(flexed(*qkv, packing=packing, pattern=CUT, bias=bias), bias, upstream)
    for own, place, each, grad in zip(parts(packing), packing, bias, found, strict=True):
        q, k, v = (t[:, :, own] for t in qkv)
        [expected] = torch.autograd.grad(attend_reference(q, k, v, near(CUT, place), each), [each], upstream[:, :, own])
        torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_what_is_forbidden_does_not_leak(poison, where, learns, biased):
    """Those who attend to NaN get it, in a pair or from their own query; all others, and all gradients, stay clean."""
    *qkv, upstream = inputs((2, 2, 200, 16), 0)
    clean = [t.clone() for t in qkv]
    qkv["qkv".index(where)][:, :, 77, 3] = poison
    clean["qkv".index(where)][:, :, 77] = 0
    mask = torch.ones(2, 200, dtype=torch.bool)
    mask[1, 77] = mask[:, 180:] = False
    bias = None
    allowed = relation(CUT, 0, None, 200) & mask[:, None, None]
    if biased:
        bias = torch.zeros(1, 1, 200, 200, dtype=torch.float64)
        bias[..., 90:, 77] = -torch.inf
        allowed = allowed & (bias > -torch.inf)
    bad = torch.zeros(2, 1, 200, dtype=torch.bool)
    if where == "q":
        bad[:, :, 77] = True
    else:
        bad |= allowed[..., 77]
    options = {"mask": mask, "bias": bias, "pattern": CUT}
    if learns:
        with by_definition():
            out, grads = gradients(lambda q, k, v: flexed(q, k, v, **options), qkv, upstream)
        expected = gradients(
            lambda q, k, v: attend_reference(q, k, v, allowed).masked_fill(bad[..., None], 0), clean, upstream
        )
        assert worst((out.nan_to_num(0), grads), expected) < 1e-10
    else:
        with by_definition():
            out = flexed(*qkv, **options)
    assert torch.equal(out.isnan().any(dim=-1), bad.expand(-1, 2, -1))
    assert torch.equal(out.isnan().all(dim=-1), bad.expand(-1, 2, -1))


def test_no_block_is_computed_in_vain():
    """A pair of blocks is listed if any query may attend to any key, and it is whole if every one may."""
    for pattern, prefix, grid, n in [*((line, 3, None, 330) for line in LINES), *((g, 1, (9, 17), 154) for g in GRIDS)]:
        table = table_of_batch(make_plan(pattern, n, prefix, grid), False, torch.device("cpu"))
        slots = torch.zeros(table.token.numel(), table.token.numel(), dtype=torch.bool)
        slots[table.place[:, None], table.place] = relation(pattern, prefix, grid, n)[0, 0]
        blocks = slots.unflatten(0, (-1, 64)).unflatten(2, (-1, 64)).transpose(1, 2)
        cut, whole, cut_by_key, whole_by_key = map(listed, table.counts, table.columns)
        there = (table.token >= 0).view(-1, 64)
        every = (blocks | ~there[:, None, :, None]).flatten(2).all(dim=-1) & there.any(dim=1)[:, None]
        assert torch.equal(cut | whole, blocks.flatten(2).any(dim=-1)), pattern
        assert torch.equal(whole, every), pattern
        assert torch.equal(cut_by_key, cut.T) and torch.equal(whole_by_key, whole.T)


def test_sequences_share_the_masks_of_blocks():
    """As many as one sequence has, however many there are: a row of 200 texts is not 200 times as much to copy."""
    lengths = [100 + 7 * number for number in range(40)]
    one = table_of_row(Packing.of([Place(500)]), CUT, torch.device("cpu"))
    row = table_of_row(Packing.of(map(Place, lengths)), CUT, torch.device("cpu"))
    assert len(row.masks) == len(one.masks) and ALL == 0
    assert row.kinds.shape[1] == -(-max(lengths) // 64)


def test_neither_lengths_nor_masks_nor_patterns_make_a_new_graph():
    with by_plain_operators() as counter:
        for lengths, pattern in [
            ([70, 1, 130, 5], CUT),
            ([64, 300, 2, 9, 77], Causal()),
            ([500], Local(20, exact=True) | Global(1)),
            ([20] * 11, Dilated(9, 2, exact=True)),
            ([128, 128], CUT),
        ]:
            packing = Packing.of([Place(n, min(1, n)) for n in lengths])
            *qkv, upstream = inputs_of_row(packing)
            found = together(qkv, upstream, packing, attention=flexed, pattern=pattern)
            assert worst_in_row(found, alone(qkv, upstream, packing, pattern=pattern)) < 1e-10
        assert counter.frame_count == 1
    with by_plain_operators() as counter:
        for n, share, pattern in [(65, 0.1, CUT), (65, 0.5, CUT), (200, 1.0, Causal()), (333, 0.5, Window2d(2, True))]:
            *qkv, upstream = inputs((3, 2, n, 8), n)
            grid, mask = ((37, 9) if pattern.on_grid else None), torch.rand(3, n) < share
            allowed = relation(pattern, 0, grid, n) & mask[:, None, None]
            options = {"pattern": pattern, "mask": mask, "grid": grid}
            expected = gradients(lambda q, k, v, a=allowed: attend_reference(q, k, v, a), qkv, upstream)
            found = gradients(lambda q, k, v, options=options: flexed(q, k, v, **options), qkv, upstream)
            assert worst(found, expected) < 1e-10
        assert counter.frame_count == 1


@pytest.mark.parametrize(
    "in_row, biased, dtype",
    [(True, True, torch.bfloat16), (True, False, torch.float32), (False, True, torch.float32)],
)
def test_the_graph_for_cuda_is_traced_whole(in_row, biased, dtype):
    """As far as torch can without a device: with the tensors of a card that is not there, and without gradients."""
    packing, n = Packing.of([Place(70, 1), Place(300)]), 370
    q, k, v = (torch.randn(1, 2, n, 64, dtype=dtype) for _ in range(3))
    bias = [torch.zeros(1, 2, m, m) for m in (70, 300)] if in_row else torch.zeros(1, 2, n, n)
    options = {"packing": packing} if in_row else {"mask": torch.ones(1, n, dtype=torch.bool)}
    made = flex._inputs(make_call(q, k, v, pattern=CUT, bias=bias if biased else None, **options))
    compiled = torch.compile(flex._attend, backend="aot_eager", dynamic=True, fullgraph=True)
    for learns in (True, False):
        numbers = made.options._replace(learns=learns)
        with FakeTensorMode(allow_non_fake_inputs=True), one_graph_for_all_shapes(), torch.no_grad():
            on_cuda = tree_map_only(torch.Tensor, lambda t: t.to("cuda"), made._replace(options=numbers))
            out = compiled(*on_cuda)
        assert out.device.type == "cuda" and out.shape == q.shape and out.dtype == dtype


def test_on_cuda_it_serves_and_says_why_not():
    def on_cuda(dtype=torch.bfloat16, width=64, **options):
        with FakeTensorMode():
            q, k, v = (torch.empty(1, 2, 2048, width, dtype=dtype, device="cuda") for _ in range(3))
        return explain(q, k, v, pattern=CUT, **options)

    row = Packing.of([Place(2000, 1), Place(48)])
    with FakeTensorMode():
        bias = torch.empty(1, 1, 1, 2048, device="cuda")
    assert on_cuda().backend == on_cuda(bias=bias).backend == "flex"
    assert on_cuda(dropout=0.1).why.endswith("not flex: it has no dropout")
    assert on_cuda(torch.float64).why.endswith("not flex: it has no double precision")
    assert on_cuda(width=8).why.endswith("not flex: heads must be 16 to 256 wide")
    choice = on_cuda(packing=row)
    assert choice.backend == "flex" and "not varlen: it takes neither a pattern nor a bias" in choice.why
    assert on_cuda(packing=row, dropout=0.1).backend == "blockwise"


def test_inside_a_larger_graph_it_is_a_graph_of_its_own():
    q, k, v, _ = inputs((2, 2, 200, 16), 0)

    def model(q, k, v):
        return attend(q * 2, k, v, pattern=CUT) + 1

    with by_plain_operators(), attention_backend("flex"), record_attention() as recorded:
        found = torch.compile(model, backend="eager")(q.float(), k.float(), v.float())
    expected = attend_reference(q * 2, k, v, relation(CUT, 0, None, 200)) + 1
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    assert [call.backend for call in recorded] == ["flex"]
