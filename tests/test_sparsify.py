"""Stock models of every modality, made sparse with their weights as they are."""

import pytest
import timm
import torch
import transformers

import audio
import text
import vision
from core import Encoder, EncoderConfig, Tokens, UserError, attention_backend, record_attention, sparsify
from core.sparse import Global, Local, PowersOfTwo, Window2d

SHAPE = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 96}


def vit():
    peer = timm.create_model("vit_tiny_patch16_224", img_size=(256, 288), embed_dim=48, depth=4)
    return vision.from_timm(peer), (torch.randn(2, 3, 256, 288),), peer


def ast():
    config = transformers.ASTConfig(**SHAPE, max_length=404, num_labels=5)
    peer = transformers.ASTForAudioClassification(config)
    sounds = torch.randn(2, 64_000) * 0.1
    return audio.from_hf(peer), (sounds, torch.tensor([64_000, 50_000])), None


def text_model(family):
    def make():
        positions = {"vocab_size": 90, "max_position_embeddings": 700}
        if family == "ModernBert":
            positions |= {f"{name}_token_id": i for i, name in enumerate(("pad", "bos", "eos", "cls", "sep"))}
        peer = getattr(transformers, f"{family}Model")(
            getattr(transformers, f"{family}Config")(**SHAPE, **positions, attn_implementation="sdpa")
        )
        ids, mask = torch.randint(5, 90, (2, 600)), torch.arange(600) < torch.tensor([[600], [430]])
        return text.from_hf(peer), (ids, mask), peer

    return make


MODELS = {
    "vit": (vit, Window2d(3) | Global()),
    "ast": (ast, Window2d(4)),
    **{
        family.lower(): (text_model(family), (Local(64), PowersOfTwo() | Global(1)))
        for family in ("Bert", "Roberta", "Albert", "ModernBert")
    },
}


def make(name):
    torch.manual_seed(0)
    model, inputs, peer = MODELS[name][0]()
    return model.eval(), inputs, peer


def outputs_and_gradients(model, inputs):
    model.zero_grad()
    out = model(*inputs)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", MODELS)
def test_sparse_models_compute_what_their_patterns_say(name):
    """Each sparse backend agrees with dense attention under the pattern's mask, gradients included."""
    model, inputs, _ = make(name)
    stock = {key: value.clone() for key, value in model.state_dict().items()}
    full = outputs_and_gradients(model, inputs)
    sparsify(model, MODELS[name][1])
    assert all(torch.equal(value, stock[key]) for key, value in model.state_dict().items())
    results = {}
    for backend in ("dense", "native", "blockwise"):
        with attention_backend(backend):
            results[backend] = outputs_and_gradients(model, inputs)
    assert not torch.allclose(results["dense"][0], full[0], atol=1e-5)
    for backend in ("native", "blockwise"):
        for found, expected in zip(results[backend], results["dense"], strict=True):
            assert (found - expected).abs().max() <= 1e-4 * expected.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "vit"])
@pytest.mark.parametrize("backend", ["native", "blockwise"])
def test_alone_or_in_any_batch(name, backend):
    """Blocks stand where they stand, however much padding follows."""
    model, (x, real), _ = make(name)
    sparsify(model, MODELS[name][1])
    length = int(real[1]) if name == "ast" else int(real[1].sum())
    alone = (x[1:, :length], real[1:] if name == "ast" else None)
    with torch.no_grad(), attention_backend(backend):
        together, single = model(x, real)[1:], model(*alone)
    together = together[:, :length] if together.ndim == 3 else together
    assert (together - single).abs().max() <= 1e-5 * single.abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_a_pattern_that_keeps_everything_changes_nothing(name):
    model, inputs, _ = make(name)
    on_grid = name in ("vit", "ast")
    everything = Window2d(100) if on_grid else Local(5000)
    if name == "modernbert":  # its windows are its own
        everything = tuple(everything if p is None else p for p in model.config.encoder.patterns)
    with torch.no_grad():
        expected = model(*inputs)
        with attention_backend("native"):
            torch.testing.assert_close(sparsify(model, everything)(*inputs), expected, atol=1e-4, rtol=1e-4)


def test_attention_maps_of_sparse_layers():
    model, inputs, _ = make("vit")
    sparsify(model, Window2d(3))
    with torch.no_grad(), attention_backend("native"), record_attention() as calls:
        model(*inputs)
    allowed = Window2d(3).dense((16, 18), prefix=1)
    for call in calls:
        assert call.backend == "native" and (call.weights[..., ~allowed] == 0).all()
        torch.testing.assert_close(call.weights.sum(dim=-1), torch.ones(2, 3, 289))


def test_patterns_are_saved_with_the_model(tmp_path):
    model, inputs, _ = make("bert")
    sparsify(model, ("Local(64)", "PowersOfTwo() | Global(1)")).save_pretrained(tmp_path)
    again = text.TextEncoder.from_pretrained(tmp_path).eval()
    assert again.config.encoder.patterns == (Local(64), PowersOfTwo() | Global(1))
    with torch.no_grad():
        torch.testing.assert_close(again(*inputs), model(*inputs))


def test_modernbert_windows_run_sparsely():
    """transformers' own output at a length where the windows leave most pairs out, without a dense mask."""
    torch.manual_seed(0)
    peer_config = transformers.ModernBertConfig(
        **SHAPE, vocab_size=90, max_position_embeddings=2000, pad_token_id=0, attn_implementation="sdpa"
    )
    peer = transformers.ModernBertModel(peer_config).eval()
    ids = torch.randint(5, 90, (1, 1500))
    with torch.no_grad(), record_attention() as calls:
        found = text.from_hf(peer).eval().encode(ids).x
        expected = peer(ids).last_hidden_state
    assert {call.backend for call in calls} == {"native"}
    assert [call.relation.pattern is None for call in calls] == [True, False, False, True]
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_checkpointing_with_patterns():
    tokens, results = Tokens(torch.randn(2, 900, 32)), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        config = EncoderConfig(dim=32, depth=2, heads=2, patterns=Local(64), checkpointing=checkpointing)
        encoder = Encoder(config)
        encoder(tokens).x.square().sum().backward()
        results.append([p.grad for p in encoder.parameters()])
    for plain, again in zip(*results, strict=True):
        torch.testing.assert_close(plain, again)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(dim=64, depth=2, heads=2, patterns=Local(64)))
    tokens = Tokens(torch.randn(2, 700, 64))
    expected = encoder(tokens).x
    with torch.autocast("cpu", dtype), record_attention() as calls:
        found = encoder(tokens).x
    assert {call.q.dtype for call in calls} == {dtype} and {call.backend for call in calls} == {"native"}
    assert (found - expected).abs().max() < 0.1
    found.float().sum().backward()


def test_models_without_our_encoder_are_refused():
    with pytest.raises(UserError, match=r"Linear has no core\.Encoder"):
        sparsify(torch.nn.Linear(2, 2), Local(8))
