"""Learned biases by the distance of two tokens."""

from dataclasses import replace

import pytest
import torch
from encoder_variants import SMALL
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder
from transformers.models.t5.modeling_t5 import T5Attention

from core import Encoder, Relation, Tokens, UserError
from core.encoder.layers import layer_groups
from core.encoder.relative import DistanceBias
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


def test_its_table_belongs_to_the_embeddings_and_decays_not():
    model = Encoder(replace(SMALL, distance_bias=(8, 9)))
    assert layer_groups(model)[0].parameters.keys() == {"distance_bias.weight"}
    assert model.distance_bias.weight.no_decay


def test_a_sequence_of_one_token_is_at_no_distance():
    bias = DistanceBias(2, 8, 9)
    assert torch.equal(bias(Relation(), 1).bias[0, :, 0, 0], bias.weight[0])


@pytest.mark.parametrize("sizes", [(3, 9), (32, 8)])
def test_impossible_buckets_are_named(sizes):
    with pytest.raises(UserError, match="distance_bias needs 4 buckets or more"):
        Encoder(replace(SMALL, distance_bias=sizes))
