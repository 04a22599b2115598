"""Adapters on every modality's model: they start as nothing, merge and go without a trace, and travel alone."""

import copy
import subprocess
import sys

import pytest
import torch

from audio import AST, ASTConfig
from core import Attention, EncoderConfig, UserError, adapters, attention_backend, share, unshare
from core.adapters import ROLES, Bottleneck, LoRA, Prompt
from core.sparse import Global, Local
from text import TextConfig, TextEncoder
from vision import ViT, ViTConfig

SPECS = {
    "lora": LoRA(rank=4),
    "lora everywhere": LoRA(rank=3, roles=ROLES, rslora=True),
    "dora": LoRA(rank=4, roles=("q", "out", "mlp_out"), dora=True),
    "serial": Bottleneck(width=8),
    "parallel": Bottleneck(width=8, parallel=True),
}
ENCODERS = {
    "dense": {},
    "sparse": {"patterns": (Local(64), Global(1) | Local(64))},
    "shared": {"shared_groups": 2},
    "checkpointed": {"checkpointing": True},
    "post-norm, gated": {"norm_order": "post", "activation": "swiglu"},
}


def vision(encoder):
    return ViT(ViTConfig(image_size=32, patch_size=4, classes=5, encoder=encoder)), (torch.randn(2, 3, 32, 32),)


def audio(encoder):
    model = AST(ASTConfig(n_mels=32, max_frames=64, patch_size=(8, 8), stride=(8, 8), classes=5, encoder=encoder))
    return model, (torch.randn(2, 8_000) * 0.1, torch.tensor([8_000, 5_000]))


def text(encoder):
    ids, mask = torch.randint(5, 50, (2, 70)), torch.arange(70) < torch.tensor([[70], [30]])
    return TextEncoder(TextConfig(vocab_size=50, max_length=70, classes=5, encoder=encoder)), (ids, mask)


MODALITIES = {"vision": vision, "audio": audio, "text": text}


def make(modality="vision", encoder="dense"):
    torch.manual_seed(0)
    config = EncoderConfig(dim=32, depth=4, heads=2, mlp_dim=48, **ENCODERS[encoder])
    model, inputs = MODALITIES[modality](config)
    return model.eval(), inputs


@torch.no_grad()
def disturb(model, name="default"):
    """As if it had been trained."""
    for _, adapter in adapters.modules(model, name):
        for parameter in adapter.parameters():
            parameter += 0.1 * torch.randn_like(parameter)


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


def test_layers_that_share_weights_have_adapters_of_their_own():
    model, inputs = make("vision", "shared")
    adapters.add(model, LoRA(rank=2))
    assert adapters.state(model)["encoder.blocks.0.attention.qkv.up.q"].shape == (2, 32, 2)
    disturb(model)
    with torch.no_grad():
        before = model(*inputs)
        for _, adapter in adapters.modules(model):
            for parameter in adapter.parameters():
                parameter.copy_(parameter.flip(0))  # the layers' adapters change places
        assert (model(*inputs) - before).abs().max() > 1e-4


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


def test_a_model_is_saved_with_its_adapters_as_they_stand(tmp_path):
    model, inputs = make()
    for name, spec in (("z", Bottleneck(width=4)), ("a", LoRA(rank=2, roles=ROLES)), ("m", Bottleneck(width=4))):
        adapters.add(model, spec, name)
        disturb(model, name)
    adapters.scale(model, "a", 0.5)
    adapters.scale(model, "z", 2.0)
    changed = model(*inputs)
    model.save_pretrained(tmp_path)
    again = ViT.from_pretrained(tmp_path).eval()
    assert adapters.names(again) == ["z", "a", "m"] and torch.equal(again(*inputs), changed)
    adapters.disable(model, "m")
    model.save_pretrained(tmp_path)
    assert torch.equal(ViT.from_pretrained(tmp_path).eval()(*inputs), model(*inputs))


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


def test_sharing_divides_what_is_saved_by_the_layers(tmp_path):
    """A ViT-S of 12 layers in one group: its encoder holds one block."""
    sizes = []
    for groups in (None, 1):
        encoder = EncoderConfig(dim=384, depth=12, heads=6, shared_groups=groups)
        model = ViT(ViTConfig(classes=0, encoder=encoder))
        model.save_pretrained(tmp_path / str(groups))
        blocks = sum(p.numel() for p in model.encoder.blocks.parameters())
        rest = sum(p.numel() for p in model.parameters()) - blocks
        file = tmp_path / str(groups) / "model.safetensors"
        assert file.stat().st_size == pytest.approx(4 * (blocks + rest), rel=1e-3)
        sizes.append(blocks)
    assert sizes[0] == 12 * sizes[1]


def test_sharing_and_unsharing():
    model, inputs = make("audio")
    size = sum(p.numel() for p in model.encoder.blocks.parameters())
    shared = share(model, 2)
    assert len(shared.encoder.blocks) == 2 and shared.config.encoder.shared_groups == 2
    assert sum(p.numel() for p in shared.encoder.blocks.parameters()) == size / 2
    before = shared(*inputs)
    whole = unshare(shared)
    assert len({id(block) for block in whole.encoder.blocks}) == 4 and whole.config.encoder.shared_groups is None
    assert torch.equal(whole(*inputs), before)
    with pytest.raises(UserError, match="4 layers cannot be shared out to 3 groups"):
        share(whole, 3)


@pytest.mark.parametrize(
    "spec, words",
    [
        (lambda: LoRA(rank=0), "LoRA: rank must be at least 1, not 0"),
        (lambda: LoRA(rank=33), "rank must be from 1 to 32, the width of 'q', not 33"),
        (lambda: LoRA(roles=("query",)), "roles.* must be 'q', 'k', 'v', 'out', 'mlp_in' or 'mlp_out', not 'query'"),
        (lambda: LoRA(dropout=1.5), "dropout must be less than 1, not 1.5"),
        (lambda: LoRA(alpha=float("nan")), "alpha must be a finite number"),
        (lambda: Bottleneck(width=0), "width must be at least 1"),
        (lambda: Prompt(tokens=0), "tokens must be at least 1"),
    ],
)
def test_what_cannot_be_added(spec, words):
    model, _ = make()
    with pytest.raises(UserError, match=words):
        adapters.add(model, spec())
    assert adapters.names(model) == [] and all(p.requires_grad for p in model.parameters())


def test_mistakes_are_named(tmp_path):
    model, _ = make()
    adapters.add(model, LoRA(rank=2))
    for call, words in (
        (lambda: adapters.add(model, LoRA()), "an adapter 'default' already"),
        (lambda: adapters.add(model, LoRA(dora=True), "other"), "DoRA learns how large"),
        (lambda: adapters.add(model, LoRA(), "a.b"), "'a.b' can't be the name"),
        (lambda: adapters.add(model, LoRA(), "train"), "'train' can't be the name"),
        (lambda: adapters.save(model, tmp_path / "none", "other"), "no adapter 'other'; there are: default"),
        (lambda: adapters.merge(model, "other"), "no adapter 'other'; there are: default"),
        (lambda: adapters.unmerge(model), "is not merged"),
        (lambda: share(model), "merge or remove the adapters first"),
        (lambda: adapters.load(model, tmp_path / "none"), "holds no adapter that can be read"),
        (lambda: adapters.add(torch.nn.Linear(2, 2), LoRA()), "Linear has nothing"),
    ):
        with pytest.raises(UserError, match=words):
            call()
    assert not (tmp_path / "none").exists()
    adapters.merge(model)
    with pytest.raises(UserError, match="is merged already"):
        adapters.merge(model)
    adapters.add(model, Bottleneck(), "narrow")
    with pytest.raises(UserError, match="only a LoRA becomes part"):
        adapters.merge(model, "narrow")


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_that_is_no_finite_number_is_refused(strength):
    model, _ = make("text")
    adapters.add(model, LoRA(rank=2))
    with pytest.raises(UserError, match="must be a finite number"):
        adapters.scale(model, "default", strength)


@pytest.mark.parametrize("spec", [LoRA(rank=2), Bottleneck(width=4), Prompt(tokens=2)], ids=lambda s: type(s).__name__)
def test_a_quantised_model_takes_no_adapter(spec):
    model, _ = make("text")
    model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
    with pytest.raises(UserError, match="is quantised: an adapter can only be put on a model before that"):
        adapters.add(model, spec)


def test_an_adapter_for_another_model_is_refused(tmp_path):
    adapters.save(adapters.add(make()[0], LoRA(rank=2)), tmp_path)
    wide = ViT(ViTConfig(image_size=32, patch_size=4, encoder=EncoderConfig(dim=64, depth=4, heads=2)))
    deep = ViT(ViTConfig(image_size=32, patch_size=4, encoder=EncoderConfig(dim=32, depth=5, heads=2)))
    flat = ViT(ViTConfig(image_size=32, patch_size=4, encoder=EncoderConfig(dim=32, depth=3, heads=2)))
    for model, words in (
        (wide, r"blocks\.0\.attention\.qkv was \[96, 32\] there and is \[192, 64\] here"),
        (deep, r"lacks encoder\.blocks\.4\.attention\.qkv"),
        (flat, r"changes encoder\.blocks\.3\.attention\.qkv"),
        (make("text")[0], "for a ViT, not for a TextEncoder"),
    ):
        with pytest.raises(UserError, match=words):
            adapters.load(model, tmp_path)
    (tmp_path / "adapter.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="holds no adapter that can be read"):
        adapters.load(make()[0], tmp_path)


def test_the_head_is_kept_with_the_adapter(tmp_path):
    (start, inputs), (other, _), (again, _) = make(), make(), make()
    start.head.requires_grad_(False).weight.add_(1)
    model = adapters.add(copy.deepcopy(start), LoRA(rank=2))
    disturb(model)
    with torch.no_grad():
        model.head.weight += 1
    adapters.save(model, tmp_path)
    assert torch.equal(adapters.load(other, tmp_path)(*inputs), model(*inputs))
    alone = adapters.load(copy.deepcopy(start), tmp_path, beside=False)
    assert torch.equal(alone.head.weight, start.head.weight)
    again.head = torch.nn.Linear(32, 3)
    with pytest.raises(UserError, match=r"head\.(weight|bias) was .* there and is \[3.*\] here"):
        adapters.load(again, tmp_path)
    assert adapters.names(again) == []
    adapters.save(model, tmp_path, beside=False)
    assert torch.equal(adapters.load(copy.deepcopy(start), tmp_path).head.weight, start.head.weight)


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
for groups, spec in ((1, LoRA(rank=2)), (None, LoRA(rank=2, dora=True)), (None, Bottleneck(width=4))):
    torch.manual_seed(0)
    encoder = EncoderConfig(dim=32, depth=2, heads=2, shared_groups=groups)
    model = adapters.add(ViT(ViTConfig(image_size=32, patch_size=8, classes=5, encoder=encoder)), spec)
    with torch.no_grad():
        for _, adapter in adapters.modules(model):
            for p in adapter.parameters():
                p += 0.1 * torch.randn_like(p)
    gradients = []
    for run in (model, torch.compile(model, fullgraph=True)):
        model.zero_grad()
        out = run(images)
        out.square().sum().backward()
        gradients.append([out, *(p.grad for p in model.parameters() if p.grad is not None)])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
"""


def test_compiled_equals_eager():
    """In a process of its own, where shapes are not checked: the checkers are Python that no graph can hold."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
