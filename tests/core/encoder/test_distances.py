"""Learned biases by the distance of two tokens, and vectors of it that tokens meet."""

from dataclasses import replace

import pytest
import torch
from encoder_variants import SMALL
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder
from transformers.models.t5.modeling_t5 import T5Attention

from core import Encoder, Relation, Tokens, UserError
from core.encoder.layers import layer_groups
from core.encoder.relative import DistanceBias, PositionVectors, RelativeBias
from core.sparse import Local


@pytest.mark.parametrize("buckets, furthest", [(32, 128), (320, 800), (8, 9), (7, 20), (4, 3)])
def test_every_distance_is_in_the_bucket_of_t5_and_of_mpnet(buckets, furthest):
    offset = torch.arange(-3 * furthest, 3 * furthest + 1)
    found = DistanceBias(2, buckets, furthest).bucket(offset)
    expected = T5Attention._relative_position_bucket(offset, True, buckets, furthest)
    assert torch.equal(found, expected)
    assert torch.equal(found, MPNetEncoder.relative_position_bucket(offset, buckets, furthest))
    assert found.unique().numel() >= buckets - 2


def test_a_bias_of_pairs_says_it_in_full():
    """On a padded batch with a pattern and a prefix, which has no distances."""
    torch.manual_seed(0)
    model = Encoder(replace(SMALL, distance_bias=(8, 9), patterns=Local(16, exact=True))).eval()
    model.distance_bias.weight.data.normal_()
    plain = Encoder(replace(SMALL, patterns=Local(16, exact=True))).eval()
    plain.load_state_dict({key: t for key, t in model.state_dict().items() if not key.startswith("distance")})
    mask = torch.arange(42) < torch.tensor([[42], [17]])
    given = Tokens(torch.randn(2, 42, 32), mask, prefix=2)
    bias = torch.zeros(1, 4, 42, 42)
    for query in range(40):
        for key in range(40):
            bucket = model.distance_bias.bucket(torch.tensor([key - query]))
            bias[0, :, query + 2, key + 2] = model.distance_bias.weight[bucket]
    torch.testing.assert_close(model(given).x, plain(given, bias).x)
    own = torch.randn(1, 4, 42, 42)
    torch.testing.assert_close(model(given, own).x, plain(given, bias + own).x)
    assert not torch.allclose(model(given).x, plain(given).x, atol=1e-2)


@pytest.mark.parametrize("buckets, furthest", [(256, 512), (32, 400), (8, 9), (4, 100)])
def test_every_distance_has_the_vector_of_deberta(buckets, furthest):
    offset = torch.arange(-3 * furthest, 3 * furthest + 1)
    found = PositionVectors(torch.nn.Identity(), 2, buckets, furthest).number(offset)
    expected = make_log_bucket_position(offset, buckets, furthest).long() + buckets
    assert torch.equal(found, expected.clamp(0, 2 * buckets - 1))
    assert found[offset == 0] == buckets


def test_vectors_of_positions_add_to_the_logits_of_all_but_prefix_tokens():
    """Said in full, for one layer, as biases of pairs."""
    torch.manual_seed(0)
    model = Encoder(replace(SMALL, depth=1, disentangled=(8, 9))).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    plain = Encoder(replace(SMALL, depth=1)).eval()
    plain.load_state_dict({key: t for key, t in model.state_dict().items() if not key.startswith("position_vectors")})
    x = torch.randn(1, 14, 32)
    attention = model.blocks[0].attention
    of_tokens = attention.qkv(model.blocks[0].attention_norm(x))[0].unflatten(1, (3, 4, 8))
    of_positions = attention.qkv(model.position_vectors.norm(model.position_vectors.weight)).unflatten(1, (3, 4, 8))
    logits = torch.einsum("qhc,khc->hqk", of_tokens[:, 0], of_tokens[:, 1])
    for query in range(2, 14):
        for key in range(2, 14):
            number = int(model.position_vectors.number(torch.tensor(query - key)))
            logits[:, query, key] += (of_tokens[query, 0] * of_positions[number, 1]).sum(dim=1)
            logits[:, query, key] += (of_tokens[key, 1] * of_positions[number, 0]).sum(dim=1)
    weights = (logits / 24**0.5).softmax(dim=2)
    attended = attention.out(torch.einsum("hqk,khc->qhc", weights, of_tokens[:, 2]).flatten(1))
    block = plain.blocks[0]
    expected = x + attended
    expected = plain.final_norm(expected + block.mlp(block.mlp_norm(expected)))
    torch.testing.assert_close(model(Tokens(x, prefix=2)).x, expected)


@pytest.mark.parametrize("name, module", [("distance_bias", "distance_bias"), ("disentangled", "position_vectors")])
def test_a_table_belongs_to_the_embeddings_and_decays_not(name, module):
    model = Encoder(replace(SMALL, **{name: (8, 9)}))
    assert f"{module}.weight" in layer_groups(model)[0].parameters
    assert getattr(model, module).weight.no_decay


def test_a_sequence_of_one_token_is_at_no_distance():
    bias = DistanceBias(2, 8, 9)
    assert torch.equal(bias(Relation(), 1).bias[0, :, 0, 0], bias.weight[0])


@pytest.mark.parametrize("sizes", [(3, 9), (32, 8)])
@pytest.mark.parametrize("name", ["distance_bias", "disentangled"])
def test_impossible_buckets_are_named(name, sizes):
    with pytest.raises(UserError, match=f"{name} needs 4 buckets or more"):
        Encoder(replace(SMALL, **{name: sizes}))


def test_what_does_not_go_together_is_named():
    with pytest.raises(UserError, match="disentangled needs no rotary, qk_norm, distance_bias and kv_heads"):
        Encoder(replace(SMALL, disentangled=(8, 9), rotary="1d"))


class OnAGrid(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = RelativeBias(2, (3, 7))
        torch.nn.init.normal_(self.bias.weight)

    def forward(self, factor):
        return factor * self.bias.of((3, 7), 1)


def test_a_model_that_was_exported_first_is_called_afterwards():
    """What is kept of a grid is nothing that was traced."""
    model, factor = OnAGrid(), torch.ones(1)
    program = torch.export.export(model, (factor,), strict=False).module()
    assert torch.equal(model(factor), program(factor))
