"""ESM-2 checkpoints of transformers on our model, with equal outputs."""

from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from core import EncoderConfig, UserError, convert, load, sparsify
from core.checkpoints.files import plain_state, read_state
from core.checkpoints.keys import KeyMap
from core.models.hub import model_folder, read_settings

from .alphabet import Alphabet, read_alphabet
from .esm import ESM, ESMConfig

LAYER = "encoder.blocks.{i}"

KEYS: KeyMap = {
    "embeddings.word_embeddings.weight": "embed.residues.weight",
    "embeddings.layer_norm.{p}": "encoder.input_norm.{p}",
    "rotary_embeddings.inv_freq": None,  # in the config
    "encoder.layer.{i}.attention.self.rotary_embeddings.inv_freq": None,  # where older transformers keep it
    (
        "encoder.layer.{i}.attention.self.query.{p}",
        "encoder.layer.{i}.attention.self.key.{p}",
        "encoder.layer.{i}.attention.self.value.{p}",
    ): f"{LAYER}.attention.qkv.{{p}}",
    "encoder.layer.{i}.attention.output.dense.{p}": f"{LAYER}.attention.out.{{p}}",
    "encoder.layer.{i}.attention.LayerNorm.{p}": f"{LAYER}.attention_norm.{{p}}",
    "encoder.layer.{i}.intermediate.dense.{p}": f"{LAYER}.mlp.up.{{p}}",
    "encoder.layer.{i}.output.dense.{p}": f"{LAYER}.mlp.down.{{p}}",
    "encoder.layer.{i}.LayerNorm.{p}": f"{LAYER}.mlp_norm.{{p}}",
    "encoder.emb_layer_norm_after.{p}": "encoder.final_norm.{p}",
    "contact_head.regression.{p}": "contact_head.regression.{p}",
    "pooler.dense.{p}": None,  # ESM-2 never trained one
    "lm_head.dense.{p}": "head.dense.{p}",
    "lm_head.layer_norm.{p}": "head.norm.{p}",
    "lm_head.decoder.weight": "head.out.weight",
    "lm_head.bias": "head.out.bias",
}
KINDS: dict[str, Literal["tokens", "none"]] = {"EsmModel": "none", "EsmForMaskedLM": "tokens"}
UNUSED = ("position_ids", "position_embeddings.weight")  # in published checkpoints, though the positions are rotary


def from_hf(source: str | Path | nn.Module, *, alphabet: Alphabet | None = None) -> ESM:
    """Our ESM with the weights of an ESM-2 of transformers: its EsmModel, or EsmForMaskedLM (which predicts residues).

    source: a name on the hub, a local directory, or a module in memory.
    alphabet: that of the source's vocab.txt if None, and ESM-2's if it has none.
    """
    if isinstance(source, nn.Module):
        module = source
    else:
        module, found = _read(str(source))
        alphabet = alphabet or found
    config = hf_config(module, alphabet or Alphabet())
    state = {key.removeprefix("esm."): tensor for key, tensor in module.state_dict().items()}
    model = ESM(config)
    load(model, convert(state, KEYS))
    return model.eval()


def load_model(source: str, patterns: tuple[str, ...] = ()) -> ESM:
    """A model ready to use, on a GPU where there is one, attending by patterns if there are any.

    source: a directory that save_pretrained wrote (ours or transformers'), or hf-hub:NAME, so that a misspelt
    directory is reported at once.
    """
    folder = model_folder(Path(source))
    try:
        if source.startswith("hf-hub:"):
            model = from_hf(source.removeprefix("hf-hub:"))
        elif not folder.is_dir():
            raise UserError(f"There is no directory {source}; a model of the hub is written hf-hub:NAME.")
        elif "model_type" in read_settings(folder / "config.json"):
            model = from_hf(folder)
        else:
            model = ESM.from_run(folder)
    except UserError:
        raise
    except Exception as error:  # each library raises its own errors for files that are missing or damaged
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(f"The model {source} cannot be loaded: {reason}.") from None
    if patterns:
        sparsify(model, patterns)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def hf_config(module: nn.Module, alphabet: Alphabet) -> ESMConfig:
    """The config of a transformers module; what we have no equal of is an error that names it."""
    stock: Any = module.config
    kind = type(module).__name__
    if kind not in KINDS:
        raise UserError(f"from_hf takes an ESM-2 ({' or '.join(KINDS)}), not {kind}.")
    if stock.position_embedding_type != "rotary":
        raise UserError(f"from_hf takes ESM-2 (rotary positions), not ESM-1b ({stock.position_embedding_type} ones).")
    if stock.is_decoder or stock.add_cross_attention:
        raise UserError("from_hf takes an encoder, not a decoder.")
    names, size = alphabet.tokens, cast(Any, module).get_input_embeddings().num_embeddings
    if size != len(names):
        raise UserError(
            f"from_hf: a model of {size} tokens, an alphabet of {len(names)} (name it, or have a vocab.txt)."
        )
    for token, number in (("<pad>", stock.pad_token_id), ("<mask>", stock.mask_token_id)):
        if number is not None and names[number] != token:
            raise UserError(f"from_hf: {token} is token {number} of the model; its alphabet has {names[number]} there.")
    found = next(tensor for key, tensor in module.state_dict().items() if key.endswith("rotary_embeddings.inv_freq"))
    usual = stock.rope_theta ** -(torch.arange(len(found)) / len(found))
    same = torch.allclose(found.float().cpu(), usual, rtol=1e-6, atol=0)
    return ESMConfig(
        alphabet=alphabet.tokens,
        token_dropout=bool(stock.token_dropout),
        head=KINDS[kind],
        tie_weights=bool(stock.tie_word_embeddings),
        frequencies=() if same else tuple(found.tolist()),
        encoder=EncoderConfig(
            dim=stock.hidden_size,
            depth=stock.num_hidden_layers,
            heads=stock.num_attention_heads,
            mlp_dim=stock.intermediate_size,
            norm_eps=stock.layer_norm_eps,
            input_norm=bool(stock.emb_layer_norm_before),
            rotary="1d",
            rotary_theta=float(stock.rope_theta),
            dropout=float(stock.hidden_dropout_prob),
            attention_dropout=float(stock.attention_probs_dropout_prob),
        ),
    )


def _read(name: str) -> tuple[nn.Module, Alphabet | None]:
    try:
        import transformers
        from transformers.utils import cached_file
    except ImportError:
        raise UserError("from_hf needs the transformers package: pip install transformers.") from None
    stock = transformers.AutoConfig.from_pretrained(name)
    kind = (stock.architectures or [type(stock).__name__])[0]
    if kind not in KINDS:
        raise UserError(f"{name} is no ESM-2 ({' or '.join(KINDS)}), but {kind}.")
    source, options = name, {"dtype": torch.float32, "output_loading_info": True}
    if Path(name).is_dir():
        state = plain_state(read_state(Path(name)), wanted=())  # as DDP or torch.compile may have named it
        source, options = None, options | {"config": stock, "state_dict": state}
    module, report = getattr(transformers, kind).from_pretrained(source, **options)
    _check_complete(name, report)
    vocabulary = cached_file(name, "vocab.txt", _raise_exceptions_for_missing_entries=False)
    return module, read_alphabet(Path(vocabulary)) if vocabulary else None


def _check_complete(name: str, report: dict[str, Any]) -> None:
    """transformers gives weights that are missing random values, and leaves out what it has no place for."""
    if missing := sorted(key for key in report["missing_keys"] if not key.startswith("pooler.")):
        raise UserError(f"{name} lacks weights: {', '.join(missing)}.")
    if others := sorted(key for key in report["unexpected_keys"] if not key.endswith(UNUSED)):
        raise UserError(f"{name} holds weights that its class has no place for: {', '.join(others)}.")
