"""Adapters on every modality's model: a new one changes nothing; they merge, and are removed without a trace."""

import copy

import pytest
import torch
from adapted import ENCODERS, MODALITIES, SPECS, disturb, make, vision
from processes import run_script

from core import Attention, EncoderConfig, UserError, adapters, attention_backend, unshare
from core.adapters import ROLES, Bottleneck, LoRA, Prompt


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("modality", MODALITIES)
def test_from_identity_to_removal(tmp_path, modality, spec, encoder):
    model, inputs = make(modality, encoder)
    base, bare = model(*inputs), copy.deepcopy(model)
    adapters.add(model, spec)
    assert torch.equal(model(*inputs), base)
    disturb(model)
    changed = model(*inputs)
    assert (changed - base).abs().max() > 1e-3

    adapters.disable(model, "default")
    assert torch.equal(model(*inputs), base)
    adapters.enable(model, "default")
    adapters.save(model, tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 150_000
    assert torch.equal(adapters.load(copy.deepcopy(bare), tmp_path)(*inputs), changed)

    if isinstance(spec, LoRA):
        if encoder == "shared":
            with pytest.raises(UserError, match=r"differs by layer.*unshare\(\) first"):
                adapters.merge(model)
            bare, model = unshare(bare), unshare(model)
            torch.testing.assert_close(model(*inputs), changed, rtol=0, atol=1e-6)
        adapters.merge(model)
        torch.testing.assert_close(model(*inputs), changed, rtol=0, atol=1e-5)
        adapters.unmerge(model)
        for name, weight in bare.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], weight, rtol=0, atol=1e-6)
    adapters.remove(model)
    assert model.state_dict().keys() == bare.state_dict().keys()
    torch.testing.assert_close(model(*inputs), base, rtol=0, atol=1e-5)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("spec", [*SPECS.values(), Prompt(tokens=3)], ids=[*SPECS, "prompt"])
def test_only_the_adapter_and_the_head_are_trained(spec, encoder):
    model, inputs = make("text", encoder)
    adapters.add(model.train(), spec)
    disturb(model)
    model(*inputs).square().sum().backward()
    for name, parameter in model.named_parameters():
        trained = ".adapters." in name or name.startswith("head.")
        assert parameter.requires_grad == trained
        assert (parameter.grad is not None and bool(parameter.grad.any())) == trained, name


def test_a_lora_is_the_sum_that_the_paper_says():
    """On separate parts of a fused projection, against weights changed by hand."""
    model, inputs = make()
    adapters.add(model, LoRA(rank=4, alpha=6.0, roles=("k", "v")))
    disturb(model)
    expected = model(*inputs)
    tensors = adapters.state(model)
    adapters.remove(model)
    with torch.no_grad():
        for number, block in enumerate(model.encoder.blocks):
            _, k, v = block.attention.qkv.weight.chunk(3)
            for role, weight in (("k", k), ("v", v)):
                path = f"encoder.blocks.{number}.attention.qkv"
                weight += 6 / 4 * tensors[f"{path}.up.{role}"][0] @ tensors[f"{path}.down.{role}"][0]
    torch.testing.assert_close(model(*inputs), expected, rtol=0, atol=1e-5)


def test_separate_projections():
    """Of cross-attention: queries by themselves, keys and values fused."""
    torch.manual_seed(0)
    model = Attention(32, 4, context_dim=24)
    x, context = torch.randn(2, 5, 32), torch.randn(2, 7, 24)
    base = model(x, context)
    adapters.add(model, LoRA(rank=4, roles=("q", "v", "out")), train=())
    assert torch.equal(model(x, context), base)
    assert {path for path, _ in adapters.modules(model)} == {"q", "kv", "out"}
    disturb(model)
    changed = model(x, context)
    adapters.merge(model)
    torch.testing.assert_close(model(x, context), changed, rtol=0, atol=1e-5)
    adapters.unmerge(model)
    adapters.remove(model)
    torch.testing.assert_close(model(x, context), base, rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_recomputing_layers_gives_the_same_gradients(training):
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        config = EncoderConfig(dim=32, depth=4, heads=2, shared_groups=1, checkpointing=checkpointing)
        model, inputs = vision(config)
        adapters.add(model.train(training), LoRA(rank=2, dropout=0.2))
        disturb(model)
        torch.manual_seed(1)
        model(*inputs).square().sum().backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_several_adapters_add_up():
    model, inputs = make()
    base = model(*inputs)
    outputs = {}
    for name in ("a", "b"):
        adapters.add(model, LoRA(rank=2), name)
        disturb(model, name)
        outputs[name] = model(*inputs)
    assert adapters.names(model) == ["a", "b"]
    adapters.disable(model, "b")
    assert torch.equal(model(*inputs), outputs["a"])
    adapters.scale(model, "a", 0.0)
    assert torch.equal(model(*inputs), base)
    adapters.scale(model, "a", 1.0)
    adapters.enable(model, "b")
    adapters.merge(model, "b")
    torch.testing.assert_close(model(*inputs), outputs["b"], rtol=0, atol=1e-5)
    adapters.remove(model, "a")
    adapters.unmerge(model, "b")
    adapters.remove(model, "b")
    torch.testing.assert_close(model(*inputs), base, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_what_is_scaled_lies_between(dora):
    model, inputs = make()
    base = model(*inputs)
    adapters.add(model, LoRA(rank=2, dora=dora))
    disturb(model)
    adapters.scale(model, "default", 0.0)
    assert torch.equal(model(*inputs), base)
    weight = model.encoder.blocks[0].attention.qkv.weight
    weights = {0.0: weight.clone()}
    for strength in (0.3, 1.0):
        adapters.scale(model, "default", strength)
        changed = model(*inputs)
        adapters.merge(model)
        weights[strength] = weight.clone()
        torch.testing.assert_close(model(*inputs), changed, rtol=0, atol=1e-5)
        adapters.unmerge(model)
        torch.testing.assert_close(weight, weights[0.0], rtol=0, atol=1e-6)
    torch.testing.assert_close(weights[0.3], weights[0.0].lerp(weights[1.0], 0.3), rtol=0, atol=1e-6)


def test_prompt_tokens_are_seen_and_gone():
    model, (ids, mask) = make("text", "sparse")
    base = model.encode(ids, mask)
    adapters.add(model, Prompt(tokens=3))
    found = model.encode(ids, mask)
    assert found.x.shape == base.x.shape and found.prefix == base.prefix and torch.equal(found.mask, mask)
    assert (found.x - base.x)[mask].abs().max() > 1e-3
    alone = model.encode(ids[1:, :30], mask[1:, :30])
    torch.testing.assert_close(found.x[1, :30], alone.x[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["native", "blockwise", "reference"])
def test_every_backend_serves_adapted_layers(backend):
    model, inputs = make("vision", "sparse")
    adapters.add(model, LoRA(rank=4, roles=ROLES))
    disturb(model)
    expected = model(*inputs)
    with attention_backend(backend):
        torch.testing.assert_close(model(*inputs), expected, rtol=0, atol=1e-5)


COMPILED = """
import torch
from core import EncoderConfig, adapters
from core.adapters import LoRA, Bottleneck
from vision import ViT, ViTConfig

images = torch.randn(2, 3, 32, 32)
for backend, groups, spec in (
    ("inductor", 1, LoRA(rank=2)),
    ("aot_eager", None, LoRA(rank=2, dora=True)),  # the same graphs without machine code, which takes long to make
    ("aot_eager", None, Bottleneck(width=4)),
):
    torch.manual_seed(0)
    encoder = EncoderConfig(dim=32, depth=2 if groups else 1, heads=2, shared_groups=groups)
    model = adapters.add(ViT(ViTConfig(image_size=32, patch_size=8, classes=5, encoder=encoder)), spec)
    with torch.no_grad():
        for _, adapter in adapters.modules(model):
            for p in adapter.parameters():
                p += 0.1 * torch.randn_like(p)
    gradients = []
    for run in (model, torch.compile(model, fullgraph=True, backend=backend)):
        model.zero_grad()
        out = run(images)
        out.square().sum().backward()
        gradients.append([out, *(p.grad for p in model.parameters() if p.grad is not None)])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
"""


def test_compiled_equals_eager(tmp_path):
    """In a process of its own, where shapes are not checked: the checkers are Python that no graph can hold."""
    run_script(COMPILED, tmp_path)


@pytest.mark.parametrize(
    "spec", [LoRA(rank=4), LoRA(rank=4, dora=True), Bottleneck(width=4), Prompt(tokens=2)], ids=repr
)
def test_an_adapter_keeps_small_updates_whatever_the_model_is(spec):
    """Of a bf16 model too, the adapter is fp32, as PEFT's are: a step of 1e-4 changes every number."""
    model, inputs = make()
    model = adapters.add(model.bfloat16(), spec, train=())
    half = [x.bfloat16() if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for parameter in optimizer.param_groups[0]["params"]:
        assert parameter.dtype == torch.float32
        parameter.data.fill_(1.0)
        parameter.grad = torch.full_like(parameter, 1e-4)
    optimizer.step()
    assert all((p != 1).all() for p in optimizer.param_groups[0]["params"])
    assert model(*half).dtype == torch.bfloat16
    model(*half).float().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in optimizer.param_groups[0]["params"])


@pytest.mark.parametrize("spec", [LoRA(rank=4), Bottleneck(width=4), Prompt(tokens=3)], ids=repr)
def test_the_tokens_between_layers_are_those_with_the_adapter(spec):
    model, inputs = make()
    adapters.add(model, spec)
    disturb(model)
    tokens = model.tokens(*inputs)
    *between, last = model.encoder.intermediate(tokens, (0, -1), norm=True)
    assert torch.equal(last.x, model.encoder(tokens).x) and between[0].x.shape == tokens.x.shape
    adapters.disable(model, "default")
    assert not torch.equal(model.encoder.intermediate(tokens, (-1,), norm=True)[0].x, last.x)
