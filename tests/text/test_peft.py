"""LoRA goes to and from Hugging Face's PEFT: the stock model there and ours here give the same logits."""

import copy
import json

import peft as theirs
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from core import UserError, adapters
from core.adapters import ROLES, Bottleneck, LoRA, peft
from core.encoder.surgery import unshare
from text import from_hf
from text.hf_keys import ALBERT, BERT, DISTILBERT, EUROBERT, GTE, MODERNBERT, NOMIC, ROBERTA

SHAPE = {"vocab_size": 90, "num_labels": 3, "max_position_embeddings": 40}
WIDE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
TOKENS = {f"{name}_token_id": i for i, name in enumerate(("pad", "bos", "eos", "cls", "sep"))}
# The stock model's shape; its key map; what its layer names begin with; its layers of the roles q, v, out, mlp_in.
FAMILIES = {
    "Bert": (WIDE, BERT, "bert.", ["query", "value", "attention.output.dense", "intermediate.dense"]),
    "Roberta": (WIDE, ROBERTA, "roberta.", ["query", "value", "attention.output.dense", "intermediate.dense"]),
    "DistilBert": (
        {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 64},
        DISTILBERT,
        "distilbert.",
        ["q_lin", "v_lin", "out_lin", "lin1"],
    ),
    "NomicBert": (WIDE, NOMIC, "nomic_bert.", ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj"]),
    "EuroBert": (
        WIDE | {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0},
        EUROBERT,
        "model.",
        ["q_proj", "v_proj", "o_proj", "up_proj"],
    ),
    "ModernBert": (WIDE | TOKENS, MODERNBERT, "model.", ["attn.Wqkv", "attn.Wo", "mlp.Wi"]),
}
KINDS = {"lora": {}, "dora": {"dora": True}, "rslora": {"rslora": True}}


def make(family, kind="ForSequenceClassification", **changes):
    torch.manual_seed(0)
    shape, keys, prefix, layers = FAMILIES[family]
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **shape, **changes})
    stock = getattr(transformers, f"{family}{kind}")(config).eval()
    return stock, keys, prefix, layers, torch.randint(5, 90, (2, 11))


@torch.no_grad()
def disturb(model):
    """As if its adapter had been trained."""
    for name, parameter in model.named_parameters():
        if "lora_" in name or ".adapters." in name:
            parameter += 0.3 * torch.randn_like(parameter)


def check(ours, wrapped, stock, ids):
    with torch.no_grad():
        found, expected = ours(ids), wrapped(ids).logits
        assert (expected - stock(ids).logits).abs().max() > 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * max(expected.abs().max().item(), 1.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_theirs_comes_here_and_goes_back(tmp_path, family, kind):
    stock, keys, _prefix, layers, ids = make(family)
    options = {f"use_{name}": on for name, on in KINDS[kind].items()}
    config = theirs.LoraConfig(r=4, lora_alpha=6, target_modules=layers, task_type="SEQ_CLS", **options)
    wrapped = theirs.get_peft_model(copy.deepcopy(stock), config).eval()
    disturb(wrapped)
    with torch.no_grad():
        head = wrapped.base_model.model.classifier.modules_to_save["default"]
        next(head.parameters()).add_(0.1)  # the head was trained too
    wrapped.save_pretrained(tmp_path / "theirs")
    ours = peft.read(from_hf(stock), tmp_path / "theirs", keys)
    check(ours, wrapped, stock, ids)
    adapters.merge(ours)
    check(ours, wrapped, stock, ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("roles", [("q", "v"), ROLES], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_ours_goes_there(tmp_path, family, roles, kind):
    stock, keys, prefix, _, ids = make(family)
    ours = adapters.add(from_hf(stock), LoRA(rank=3, alpha=5.0, roles=roles, **KINDS[kind]))
    disturb(ours)
    peft.write(ours, tmp_path, keys, prefix=prefix)
    wrapped = theirs.PeftModel.from_pretrained(copy.deepcopy(stock), tmp_path).eval()
    check(ours, wrapped, stock, ids)
    again = peft.read(from_hf(stock), tmp_path, keys)
    check(again, wrapped, stock, ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_that_was_trained_goes_along(tmp_path, family):
    stock, keys, prefix, _, ids = make(family)
    ours = adapters.add(from_hf(stock), LoRA(rank=3))
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    peft.write(ours, tmp_path, keys, prefix=prefix)
    check(ours, theirs.PeftModel.from_pretrained(copy.deepcopy(stock), tmp_path).eval(), stock, ids)


@pytest.mark.parametrize("kind", ["ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM"])
@pytest.mark.parametrize("family", ["Bert", "Roberta", "ModernBert"])
def test_heads_of_tokens_go_along(tmp_path, family, kind):
    outputs = {"num_labels": 2} if kind == "ForQuestionAnswering" else {}
    stock, keys, prefix, _, ids = make(family, kind, **outputs)
    ours = adapters.add(from_hf(stock), LoRA(rank=3))
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if parameter.requires_grad and not (kind == "ForMaskedLM" and name.startswith("head.out")):
                parameter += 0.1 * torch.randn_like(parameter)
    if kind == "ForMaskedLM":
        ours.head.out.requires_grad_(False)
    peft.write(ours, tmp_path, keys, prefix=prefix)
    wrapped = theirs.PeftModel.from_pretrained(copy.deepcopy(stock), tmp_path).eval()
    with torch.no_grad():
        expected, found = wrapped(ids), ours(ids)
        if kind == "ForQuestionAnswering":
            found, (first, last) = found.unbind(-1), (expected.start_logits, expected.end_logits)
            torch.testing.assert_close(torch.stack(found), torch.stack([first, last]), rtol=1e-5, atol=1e-5)
        else:
            torch.testing.assert_close(found, expected.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [{"bias": "all"}, {"bias": "lora_only"}, {"modules_to_save": ["key", "k_proj"]}], ids=str
)
@pytest.mark.parametrize("family", ["Bert", "Roberta", "EuroBert"])
def test_what_else_was_trained_comes_along(tmp_path, family, settings):
    """Biases of layers with a LoRA on them, and a layer that is one part of a joined one of ours."""
    stock, keys, _, layers, ids = make(family)
    config = theirs.LoraConfig(r=4, target_modules=layers, **settings)
    wrapped = theirs.get_peft_model(copy.deepcopy(stock), config).eval()
    disturb(wrapped)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad and "lora_" not in name:
                parameter += 0.1 * torch.randn_like(parameter)
    wrapped.save_pretrained(tmp_path)
    check(peft.read(from_hf(stock), tmp_path, keys), wrapped, stock, ids)


def test_a_trained_decoder_of_its_own_is_refused_by_a_tied_model(tmp_path):
    shape, keys, _, layers = FAMILIES["Bert"]
    stock = transformers.BertForMaskedLM(transformers.BertConfig(**SHAPE, **shape)).eval()
    config = theirs.LoraConfig(r=4, target_modules=layers, modules_to_save=["cls"])
    wrapped = theirs.get_peft_model(copy.deepcopy(stock), config).eval()
    wrapped.save_pretrained(tmp_path / "untrained")
    peft.read(from_hf(stock), tmp_path / "untrained", keys)
    with torch.no_grad():
        wrapped.base_model.model.cls.modules_to_save["default"].predictions.decoder.weight.add_(0.1)
    wrapped.save_pretrained(tmp_path / "trained")
    with pytest.raises(UserError, match=r"a trained head.out.weight of its own, .* tied to embed.words.weight"):
        peft.read(from_hf(stock), tmp_path / "trained", keys)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_an_adapter_of_a_changed_model_is_refused(tmp_path, start):
    """Converted to a plain LoRA, as PEFT can, it is read."""
    stock, keys, _, layers, ids = make("Bert")
    settings = theirs.LoraConfig(r=4, target_modules=layers, init_lora_weights=start, task_type="SEQ_CLS")
    wrapped = theirs.get_peft_model(copy.deepcopy(stock), settings).eval()
    wrapped.peft_config["default"].init_lora_weights = True
    wrapped.save_pretrained(tmp_path / "start")
    wrapped.peft_config["default"].init_lora_weights = start
    disturb(wrapped)
    wrapped.save_pretrained(tmp_path / "raw")
    with pytest.raises(UserError, match=f"started as '{start}' .* path_initial_model_for_weight_conversion"):
        peft.read(from_hf(stock), tmp_path / "raw", keys)
    wrapped.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=tmp_path / "start")
    check(peft.read(from_hf(stock), tmp_path / "plain", keys), wrapped, stock, ids)


@pytest.mark.parametrize(
    "settings",
    [{"lora_bias": True}, {"layer_replication": [[0, 2]]}, {"trainable_token_indices": [1]}, {"unheard_of": 3}],
    ids=lambda settings: next(iter(settings)),
)
def test_what_cannot_be_read_of_an_adapter_is_named(tmp_path, settings):
    stock, keys, _, layers, _ = make("Bert")
    wrapped = theirs.get_peft_model(copy.deepcopy(stock), theirs.LoraConfig(r=4, target_modules=layers))
    wrapped.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(UserError, match=f"the adapter's {next(iter(settings))} is .*, which cannot be read"):
        peft.read(from_hf(stock), tmp_path, keys)


def test_what_layers_share_comes_for_all_of_them(tmp_path):
    torch.manual_seed(0)
    stock = transformers.AlbertForSequenceClassification(
        transformers.AlbertConfig(**SHAPE, **WIDE, embedding_size=16)
    ).eval()
    ids = torch.randint(5, 90, (2, 11))
    wrapped = theirs.get_peft_model(
        copy.deepcopy(stock), theirs.LoraConfig(r=4, target_modules=["query", "ffn"])
    ).eval()
    disturb(wrapped)
    wrapped.save_pretrained(tmp_path)
    ours = peft.read(from_hf(stock), tmp_path, ALBERT)
    check(ours, wrapped, stock, ids)
    with pytest.raises(UserError, match="differs by layer"):
        peft.write(ours, tmp_path, ALBERT, prefix="albert.")
    check(unshare(ours), wrapped, stock, ids)


def test_what_is_stored_in_another_order_is_refused(tmp_path):
    """The joined projection of GTE's own code has the halves the other way round."""
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    name = "base_model.model.new.encoder.layer.0.mlp.up_gate_proj"
    save_file(
        {f"{name}.lora_A.weight": torch.ones(2, 32), f"{name}.lora_B.weight": torch.ones(128, 2)},
        tmp_path / "adapter_model.safetensors",
    )
    stock = transformers.GteModel(transformers.GteConfig(**SHAPE, **WIDE))
    with pytest.raises(UserError, match=r"up_gate_proj.weight is stored in another way here"):
        peft.read(from_hf(stock), tmp_path, GTE)


def test_mistakes_are_named(tmp_path):
    stock, keys, _prefix, _layers, _ = make("Bert")
    wrapped = theirs.get_peft_model(copy.deepcopy(stock), theirs.LoraConfig(r=4, target_modules=["query"]))
    wrapped.save_pretrained(tmp_path)
    settings, tensors = tmp_path / "adapter_config.json", load_file(tmp_path / "adapter_model.safetensors")
    wide = dict(WIDE, hidden_size=64)
    other = from_hf(transformers.BertForSequenceClassification(transformers.BertConfig(**SHAPE, **wide)))
    with pytest.raises(UserError, match=r"is for another model: encoder.blocks.0.attention.qkv does not fit"):
        peft.read(other, tmp_path, keys)
    with pytest.raises(UserError, match=r"has no counterpart in the key map"):
        peft.read(from_hf(stock), tmp_path, DISTILBERT)
    strange = {key.replace("attention.self.query", "attention.output.LayerNorm"): t for key, t in tensors.items()}
    save_file(strange, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match="only attention and MLP layers can be adapted"):
        peft.read(from_hf(stock), tmp_path, keys)
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "peft_type": "IA3"}))
    with pytest.raises(UserError, match="a LoRA of one rank and alpha can be read, not IA3"):
        peft.read(from_hf(stock), tmp_path, keys)
    settings.write_text("[]")
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="holds no PEFT adapter that can be read"):
            peft.read(from_hf(stock), folder, keys)
    with pytest.raises(UserError, match="is not a LoRA"):
        peft.write(adapters.add(from_hf(stock), Bottleneck()), tmp_path, keys)
