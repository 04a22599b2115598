"""The text towers of CLIP and SigLIP say what they say in transformers."""

import warnings

import pytest
import torch
import transformers
from image_text_peers import clip_config, clip_tokenizer, randomise, siglip_config
from text_peers import assert_close

from core import UserError, sparsify
from core.sparse import Causal
from text import from_hf

LENGTHS = (16, 9, 2)


def make_tower(kind, **changes):
    if kind.startswith("Siglip"):
        config, end = siglip_config().text_config, 1
    else:
        config, end = clip_config(clip_tokenizer()).text_config, clip_tokenizer().eos_token_id
        config.projection_dim = 24
    for name, value in changes.items():
        setattr(config, name, value)
    return randomise(getattr(transformers, kind)(config)), end


def make_texts(end):
    generator = torch.Generator().manual_seed(1)
    return [torch.cat([torch.randint(3, 60, (n - 1,), generator=generator), torch.tensor([end])]) for n in LENGTHS]


def filled(texts, filler):
    return torch.stack([torch.nn.functional.pad(ids, (0, 16 - len(ids)), value=filler) for ids in texts])


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize(
    "kind, changes",
    [
        ("CLIPTextModel", {}),
        ("CLIPTextModel", {"eos_token_id": 2}),  # as configs before transformers 4.31 have it
        ("CLIPTextModelWithProjection", {"hidden_act": "gelu"}),
        ("SiglipTextModel", {}),
        ("SiglipTextModel", {"projection_size": 24, "layer_norm_eps": 1e-3}),
    ],
)
def test_outputs_equal_transformers(kind, changes, folder, tmp_path):
    peer, end = make_tower(kind, **changes)
    if folder:
        peer.save_pretrained(tmp_path)
    ours, texts = from_hf(tmp_path if folder else peer), make_texts(end)
    with torch.no_grad():
        stock = peer(filled(texts, end))
        expected = stock.text_embeds if "Projection" in kind else stock.pooler_output
        for given in (filled(texts, end), texts):
            assert_close(ours(given), expected)
        hidden = ours.encode(filled(texts, end)).x
        real = torch.arange(16) < torch.tensor(LENGTHS)[:, None] if end != 1 else torch.ones(3, 16, dtype=torch.bool)
        assert_close(hidden[real], stock.last_hidden_state[real])


def test_a_tower_is_read_as_it_is():
    with pytest.raises(UserError, match="reads a CLIPTextModel as it is: leave out head, classes and max_length"):
        from_hf(make_tower("CLIPTextModel")[0], classes=3)


def test_a_causal_tower_that_is_shown_later_tokens_is_warned_of():
    peer, end = make_tower("CLIPTextModel")
    texts = make_texts(end)
    before = from_hf(peer)(texts)
    with pytest.warns(UserWarning, match=r"attended to no later token, and with Local\(4\) it does"):
        sparsify(from_hf(peer), "Local(4)")
    with pytest.warns(UserWarning, match="attended to no later token, and with dense attention it does"):
        sparsify(from_hf(peer), (Causal(), None))
    with warnings.catch_warnings(action="error"):
        near = sparsify(from_hf(peer), "Causal() & Local(4, exact=True)")
        assert not torch.allclose(near(texts), before)
        torch.testing.assert_close(sparsify(near, "Causal() & Local(40)")(texts), before)
