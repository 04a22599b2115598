"""The page of the explorer: its numbers are the model's own, to the precision that they are stored with."""

import sys
from dataclasses import replace

import pytest
import torch
from explorer_pages import ReadPage

from core import UserError
from core.attention import attention_map, attention_rollout, gradient_weighted, record_attention, relevance
from core.explore import LONGEST, Marks, Sample, page, write_page
from core.explore.storage import Numbers
from core.sparse import Local, Window2d
from vision.looks import look_at
from vision.model import ViT

HALF = {"rtol": 2**-11, "atol": 2**-24}


@pytest.fixture
def model():
    return vit()


def vit(**encoder):
    torch.manual_seed(0)
    settings = {"dim": 16, "depth": 3, "heads": 2, "mlp_dim": 32, **encoder}
    model = ViT({"image_size": 24, "patch_size": 4, "channels": 1, "classes": 3, "registers": 2, "encoder": settings})
    for parameter in model.parameters():  # weights that attend to something
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def image(side=24):
    return torch.randn(1, side, side, generator=torch.Generator().manual_seed(1))


def written(tmp_path, *looks, **options):
    write_page(tmp_path / "page.html", "Title", [Sample("sample", looks)], **options)
    return ReadPage(tmp_path / "page.html")


def softmaxes(model, inputs):
    """The weights of each layer, computed from its queries and keys in double precision."""
    with record_attention() as calls, torch.no_grad():
        model(inputs[None])
    found = []
    for call in calls:
        logits = call.q.double() @ call.k.double().mT * call.q.shape[-1] ** -0.5
        allowed = call.allowed
        found.append((logits if allowed is None else logits.masked_fill(~allowed, -torch.inf)).softmax(dim=-1))
    return found


@pytest.mark.parametrize("pattern", [None, Window2d(1, exact=True)])
def test_weights_are_the_softmax_of_the_models_own_queries_and_keys(tmp_path, pattern):
    model = vit(patterns=pattern)
    read = written(tmp_path, look_at("model", model, image()))
    look = read.look()
    assert look["tokens"] == 39 and look["whole"]
    for layer, wanted in enumerate(softmaxes(model, image())):
        *heads, mean = read.matrices(look, layer, "weights")
        for found, each in zip([*heads, mean], [*wanted[0], wanted[0].mean(dim=0)], strict=True):
            torch.testing.assert_close(torch.from_numpy(found).double(), each, rtol=2**-11 + 1e-5, atol=1e-7)
        if pattern is not None:
            assert (torch.from_numpy(read.forbidden(look, layer)) == ~pattern.dense((6, 6), 3)).all()
            assert look["layers"][layer]["pattern"] == str(pattern)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("changes", [{"relative_bias": (6, 6)}, {"patterns": Window2d(1)}, {"kv_heads": 1}])
def test_weights_are_those_of_the_recorded_calls(changes, dtype):
    look = look_at("model", vit(**changes).to(dtype), image().to(dtype))
    wide = torch.promote_types(dtype, torch.float32)
    for layer, call in enumerate(look.layers):
        call = replace(call, q=call.q.to(wide), k=call.k.to(wide), v=call.v.to(wide))
        weighted = gradient_weighted(call, look.gradients[layer].to(wide))[0]
        for head, (weights, spoken) in enumerate(look.heads_of(layer)):
            torch.testing.assert_close(weights, call.weights[0, head], rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(spoken, weighted[head], rtol=1e-4, atol=1e-7)


def test_rollout_and_relevance_are_matrix_products(tmp_path, model, monkeypatch):
    read = written(tmp_path, look_at("model", model, image()))
    weights = [layer.requires_grad_() for layer in softmaxes(model, image())]
    gradients = gradients_by_weights(model, image(), monkeypatch)
    speaking = [(gradient * weight).clamp(min=0) for gradient, weight in zip(gradients, weights, strict=True)]
    for layer in range(3):
        (found,) = read.matrices(read.look(), layer, "rollout")
        wanted = attention_rollout(weights[: layer + 1])[0]
        torch.testing.assert_close(torch.from_numpy(found), wanted.float(), rtol=1e-3, atol=1e-6)
        *heads, mean = read.matrices(read.look(), layer, "gradients")
        for one, each in zip([*heads, mean], [*speaking[layer][0], speaking[layer][0].mean(dim=0)], strict=True):
            torch.testing.assert_close(torch.from_numpy(one), each.float(), rtol=2e-3, atol=2e-6)
        (found,) = read.matrices(read.look(), layer, "relevance")
        wanted = relevance(speaking[: layer + 1])[0] - torch.eye(39)
        torch.testing.assert_close(torch.from_numpy(found), wanted.float(), rtol=2e-3, atol=2e-6)


def gradients_by_weights(model, inputs, monkeypatch):
    """Of the predicted class's logit, by definition: the model runs with weights that are in the graph."""
    weights = []

    def attend(call, backend):
        weights.append((call.q @ call.k.mT * call.factor).softmax(dim=-1))
        return weights[-1] @ call.v

    monkeypatch.setattr(sys.modules["core.attention.attend"], "_compute", attend)
    return torch.autograd.grad(model(inputs[None])[0].max(), weights)


def test_the_output_is_what_the_model_pools(tmp_path, model):
    look = look_at("model", model, image())
    read = written(tmp_path, look)
    (rollout,) = read.matrices(read.look(), 2, "rollout")
    reached = torch.tensor(read.look()["pooling"]) @ torch.from_numpy(rollout)
    wanted = attention_map(model, image()[None])[0].flatten()
    torch.testing.assert_close(reached[3:] / reached[3:].max(), wanted, rtol=2e-3, atol=1e-5)


def test_the_largest_numbers_are_stored_where_all_do_not_fit(tmp_path, model, monkeypatch):
    monkeypatch.setattr(page, "MOST", 450_000)
    read = written(tmp_path, look_at("model", model, image(48)))
    look, (wanted, *_) = read.look(), softmaxes(model, image(48))
    assert not look["whole"] and len(look["layers"]) == 3 and 8 <= look["count"] < 147 and 0.2 < look["share"] < 1
    assert (tmp_path / "page.html").stat().st_size < 450_000
    found, true = torch.from_numpy(read.matrices(look, 0, "weights")[0]), wanted[0, 0].float()
    stored = found > 0
    torch.testing.assert_close(found[stored], true[stored], rtol=1e-3, atol=1e-7)
    for left, matrix in ((stored, true), (stored.T, true.T)):
        for kept, row in zip(left, matrix, strict=True):
            least = row.topk(look["count"]).values[-1]
            assert kept[row >= least].all()


def test_fewer_layers_are_stored_where_there_is_no_room_for_all(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MOST", 130_000)
    read = written(tmp_path, look_at("model", vit(depth=12), image()))
    numbers = [layer["number"] for layer in read.look()["layers"]]
    assert 1 < len(numbers) < 12 and numbers[-1] == 12 and read.look()["depth"] == 12


def test_chosen_layers_are_stored_alone(tmp_path, model):
    read = written(tmp_path, look_at("model", model, image()), layers=[3, 1])
    assert [layer["number"] for layer in read.look()["layers"]] == [1, 3]
    with pytest.raises(UserError, match="layers must be numbers from 1 to 3, not 4"):
        written(tmp_path, look_at("model", model, image()), layers=[4])


def test_the_page_needs_nothing_else(tmp_path, model):
    text = written(tmp_path, look_at("<b>&</b>", model, image())).text
    assert "http:" not in text and "https:" not in text and "default-src 'none'" in text
    assert "<b>&" not in text


def test_a_sample_of_too_many_tokens_is_refused():
    model = vit(depth=1)
    with pytest.raises(UserError, match=f"has 4,.* tokens, and a page shows at most {LONGEST:,}"):
        look_at("model", model, image(260))


def test_tokens_of_an_adapter_come_first(tmp_path, model):
    from core import adapters
    from core.adapters import Prompt

    adapters.add(model, Prompt(tokens=2))
    look = look_at("model", model, image())
    assert look.parts[0] == Marks(["prompt 1", "prompt 2"]) and look.tokens == 41
    assert look.pooling.tolist() == [0, 0, 1] + [0] * 38
    written(tmp_path, look)


def test_largest_of_rows_and_columns():
    matrix = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.0, 0.9, 0.1]])
    found = Numbers.largest_of(matrix, 1)
    # Of the rows 0.5, 0.8 and 0.9, which are the largest of the columns, too.
    assert found.places.tolist() == [0, 5, 7] and found.share == pytest.approx(2.2 / 3.0)
    assert found.packed()[:4] == b"\x03\x00\x00\x00"


@pytest.mark.parametrize("count", [1, 3, 7])
def test_fewer_of_the_largest_are_the_largest_of_the_matrix(count):
    matrix = torch.rand(20, 20, generator=torch.Generator().manual_seed(0)) ** 4
    wanted = Numbers.largest_of(matrix, count)
    for numbers in (Numbers.largest_of(matrix, 7), Numbers.all_of(matrix)):
        found = numbers.largest(count)
        assert torch.equal(found.places, wanted.places) and torch.equal(found.values, wanted.values)
        assert found.share == pytest.approx(wanted.share) and found.packed() == wanted.packed()


def test_a_pattern_that_is_no_whole_byte_wide(tmp_path):
    pattern = Local(2, exact=True)
    read = written(tmp_path, look_at("model", vit(depth=1, patterns=pattern), image()))
    assert (torch.from_numpy(read.forbidden(read.look(), 0)) == ~pattern.dense(36, 3)).all()
