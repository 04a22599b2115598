"""Stock transformers checkpoints on our text encoder, with equal outputs."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from core import EncoderConfig, UserError, convert, load
from core.hub import check_modality, model_folder, read_settings
from core.sparse import Local
from core.weights import KeyMap

from .model import TextConfig, TextEncoder
from .tokenizer import Tokenizer

LAYER = "encoder.blocks.{i}"

BERT: KeyMap = {
    "embeddings.word_embeddings.weight": "embed.words.weight",
    "embeddings.position_embeddings.weight": "embed.positions.weight",
    "embeddings.token_type_embeddings.weight": "embed.segments.weight",
    "embeddings.LayerNorm.{p}": "embed.norm.{p}",
    (
        "encoder.layer.{i}.attention.self.query.{p}",
        "encoder.layer.{i}.attention.self.key.{p}",
        "encoder.layer.{i}.attention.self.value.{p}",
    ): f"{LAYER}.attention.qkv.{{p}}",
    "encoder.layer.{i}.attention.output.dense.{p}": f"{LAYER}.attention.out.{{p}}",
    "encoder.layer.{i}.attention.output.LayerNorm.{p}": f"{LAYER}.attention_norm.{{p}}",
    "encoder.layer.{i}.intermediate.dense.{p}": f"{LAYER}.mlp.up.{{p}}",
    "encoder.layer.{i}.output.dense.{p}": f"{LAYER}.mlp.down.{{p}}",
    "encoder.layer.{i}.output.LayerNorm.{p}": f"{LAYER}.mlp_norm.{{p}}",
    "pooler.dense.{p}": "head.dense.{p}",
    "classifier.{p}": "head.out.{p}",
    "cls.predictions.transform.dense.{p}": "head.dense.{p}",
    "cls.predictions.transform.LayerNorm.{p}": "head.norm.{p}",
    "cls.predictions.decoder.{p}": "head.out.{p}",
    "cls.predictions.bias": None,  # the decoder's, again
}

ROBERTA: KeyMap = {
    **BERT,
    "classifier.dense.{p}": "head.dense.{p}",
    "classifier.out_proj.{p}": "head.out.{p}",
    "lm_head.dense.{p}": "head.dense.{p}",
    "lm_head.layer_norm.{p}": "head.norm.{p}",
    "lm_head.decoder.{p}": "head.out.{p}",
    "lm_head.bias": None,  # the decoder's, again
}

DISTILBERT: KeyMap = {
    "embeddings.word_embeddings.weight": "embed.words.weight",
    "embeddings.position_embeddings.weight": "embed.positions.weight",
    "embeddings.LayerNorm.{p}": "embed.norm.{p}",
    (
        "transformer.layer.{i}.attention.q_lin.{p}",
        "transformer.layer.{i}.attention.k_lin.{p}",
        "transformer.layer.{i}.attention.v_lin.{p}",
    ): f"{LAYER}.attention.qkv.{{p}}",
    "transformer.layer.{i}.attention.out_lin.{p}": f"{LAYER}.attention.out.{{p}}",
    "transformer.layer.{i}.sa_layer_norm.{p}": f"{LAYER}.attention_norm.{{p}}",
    "transformer.layer.{i}.ffn.lin1.{p}": f"{LAYER}.mlp.up.{{p}}",
    "transformer.layer.{i}.ffn.lin2.{p}": f"{LAYER}.mlp.down.{{p}}",
    "transformer.layer.{i}.output_layer_norm.{p}": f"{LAYER}.mlp_norm.{{p}}",
    "pre_classifier.{p}": "head.dense.{p}",
    "classifier.{p}": "head.out.{p}",
    "vocab_transform.{p}": "head.dense.{p}",
    "vocab_layer_norm.{p}": "head.norm.{p}",
    "vocab_projector.{p}": "head.out.{p}",
}

GROUP = "encoder.albert_layer_groups.{i}.albert_layers.0"

ALBERT: KeyMap = {
    "embeddings.word_embeddings.weight": "embed.words.weight",
    "embeddings.position_embeddings.weight": "embed.positions.weight",
    "embeddings.token_type_embeddings.weight": "embed.segments.weight",
    "embeddings.LayerNorm.{p}": "embed.norm.{p}",
    "encoder.embedding_hidden_mapping_in.{p}": "embed.projection.{p}",
    (
        f"{GROUP}.attention.query.{{p}}",
        f"{GROUP}.attention.key.{{p}}",
        f"{GROUP}.attention.value.{{p}}",
    ): f"{LAYER}.attention.qkv.{{p}}",
    f"{GROUP}.attention.dense.{{p}}": f"{LAYER}.attention.out.{{p}}",
    f"{GROUP}.attention.LayerNorm.{{p}}": f"{LAYER}.attention_norm.{{p}}",
    f"{GROUP}.ffn.{{p}}": f"{LAYER}.mlp.up.{{p}}",
    f"{GROUP}.ffn_output.{{p}}": f"{LAYER}.mlp.down.{{p}}",
    f"{GROUP}.full_layer_layer_norm.{{p}}": f"{LAYER}.mlp_norm.{{p}}",
    "pooler.{p}": "head.dense.{p}",
    "classifier.{p}": "head.out.{p}",
    "predictions.dense.{p}": "head.dense.{p}",
    "predictions.LayerNorm.{p}": "head.norm.{p}",
    "predictions.decoder.{p}": "head.out.{p}",
    "predictions.bias": None,  # the decoder's, again
}

MODERNBERT: KeyMap = {
    "embeddings.tok_embeddings.weight": "embed.words.weight",
    "embeddings.norm.{p}": "embed.norm.{p}",
    "layers.{i}.attn_norm.{p}": f"{LAYER}.attention_norm.{{p}}",
    "layers.{i}.attn.Wqkv.{p}": f"{LAYER}.attention.qkv.{{p}}",
    "layers.{i}.attn.Wo.{p}": f"{LAYER}.attention.out.{{p}}",
    "layers.{i}.mlp_norm.{p}": f"{LAYER}.mlp_norm.{{p}}",
    "layers.{i}.mlp.Wi.{p}": f"{LAYER}.mlp.up.{{p}}",
    "layers.{i}.mlp.Wo.{p}": f"{LAYER}.mlp.down.{{p}}",
    "final_norm.{p}": "encoder.final_norm.{p}",
    "head.dense.{p}": "head.dense.{p}",
    "head.norm.{p}": "head.norm.{p}",
    "decoder.{p}": "head.out.{p}",
    "classifier.{p}": "head.out.{p}",
}

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "tanh": "tanh",
}
GATED = {"gelu": "geglu", "silu": "swiglu"}
HEADS = {"Model": "none", "ForSequenceClassification": "classes", "ForMaskedLM": "tokens"}


def from_hf(
    source: str | Path | nn.Module,
    *,
    head: Literal["classes", "tokens", "none"] | None = None,
    classes: int | None = None,
    max_length: int | None = None,
) -> TextEncoder:
    """Our text encoder with the weights of a BERT, RoBERTa, DistilBERT, ALBERT or ModernBERT of transformers.

    source: a name on the hub, a local directory, or a module in memory: the base model (its pooled output is our
        `features`), or the one for sequence classification or masked words.
    head, classes: another head than the checkpoint's starts afresh, with a warning.
    max_length: fewer positions than the checkpoint's.
    """
    module = source if isinstance(source, nn.Module) else _read(str(source))
    stock, key_map = hf_config(module)
    state = {key.removeprefix(f"{module.base_model_prefix}."): t for key, t in module.state_dict().items()}
    weights = convert(state, key_map)
    # RoBERTa counts positions from the padding's number on; those up to it stand for nothing.
    if (table := "embed.positions.weight") in weights:
        weights[table] = weights[table][-stock.max_length :]

    config = replace(
        stock,
        head=head or stock.head,
        classes=stock.classes if classes is None else classes,
        max_length=min(max_length or stock.max_length, stock.max_length),
    )
    if table in weights:
        weights[table] = weights[table][: config.max_length]
    fresh = ()
    if config.head != stock.head or (config.head == "classes" and config.classes != stock.classes):
        if config.head != "none":
            warnings.warn(
                f"The checkpoint has {_head(stock)}, not {_head(config)}: the head starts afresh.", stacklevel=2
            )
        with_norm = config.head == "tokens" or config.head_norm
        config = replace(config, labels=(), head_hidden=config.head != "none", head_norm=with_norm)
        fresh = ("head.",)
        weights = {key: tensor for key, tensor in weights.items() if not key.startswith("head.")}
    model = TextEncoder(config)
    load(model, weights, fresh=fresh)
    return model.eval()


def load_pretrained(source: str) -> tuple[TextEncoder, Tokenizer]:
    """A model with its tokenizer: of a run, of a directory written by save_pretrained (by us or by transformers), or of
    transformers' on the hub (hf-hub:NAME, as timm writes it, so that a misspelt directory is told at once)."""
    if source.startswith("hf-hub:"):
        return _from_hub(source.removeprefix("hf-hub:"))
    check_modality(source, "text")
    folder = model_folder(Path(source))
    settings = read_settings(folder / "config.json")
    if not settings or not list(folder.glob("*.safetensors")):
        raise UserError(f"{source} holds no trained model: name the directory of a finished run.")
    if not {"model_type", "vocab_size"} & set(settings):
        raise UserError(f"{source} holds no text model: name the directory of a finished run of text.")
    tokenizer = Tokenizer.load(folder)
    try:
        model = from_hf(folder) if "model_type" in settings else TextEncoder.from_pretrained(folder).eval()
    except (ValueError, OSError) as error:
        raise UserError(f"The model in {source} cannot be loaded: {_line(error)}") from None
    if tokenizer.size > model.config.vocab_size:
        raise UserError(f"{source}: a tokenizer of {tokenizer.size} words, a model of {model.config.vocab_size}.")
    return model, tokenizer


def _from_hub(name: str) -> tuple[TextEncoder, Tokenizer]:
    import tokenizers

    try:
        return from_hf(name), Tokenizer(tokenizers.Tokenizer.from_pretrained(name))
    except Exception as error:  # each library has its own for a name that does not exist
        raise UserError(f"The model {name} cannot be loaded from the hub: {_line(error)}") from None


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def hf_config(module: nn.Module) -> tuple[TextConfig, KeyMap]:
    """The config of a transformers module, and its key map; what we have no equal of is an error that names it."""
    kind = type(module).__name__
    families: dict[str, tuple[Callable[..., TextConfig], KeyMap]] = {
        "Bert": (_bert, BERT),
        "Roberta": (_roberta, ROBERTA),
        "DistilBert": (_distilbert, DISTILBERT),
        "Albert": (_albert, ALBERT),
        "ModernBert": (_modernbert, MODERNBERT),
    }
    for family, (read, key_map) in families.items():
        head = HEADS.get(kind.removeprefix(family))
        if kind.startswith(family) and head is not None:
            stock = module.config
            labels = tuple(stock.id2label[i] for i in range(stock.num_labels)) if head == "classes" else ()
            named = {"classes": stock.num_labels, "labels": labels} if head == "classes" else {}
            tied = getattr(stock, "tie_word_embeddings", True)
            has_pooler = getattr(module, "pooler", None) is not None
            return replace(read(stock, head, has_pooler), head=head, tie_weights=tied, **named), key_map
    served = ", ".join(families)
    raise ValueError(f"from_hf takes {served} ({', '.join(HEADS)}), not {kind}.")


def _bert(stock: Any, head: str, has_pooler: bool) -> TextConfig:
    _check(not getattr(stock, "is_decoder", False), "a decoder")
    activation = _activation(stock.hidden_act)
    return TextConfig(
        vocab_size=stock.vocab_size,
        max_length=stock.max_position_embeddings,
        segments=stock.type_vocab_size,
        dropout=float(stock.hidden_dropout_prob),
        head_hidden=head != "none" or has_pooler,
        head_activation=activation if head == "tokens" else "tanh",
        head_norm=head == "tokens",
        head_dropout=_head_dropout(stock) if head == "classes" else 0.0,
        encoder=EncoderConfig(
            dim=stock.hidden_size,
            depth=stock.num_hidden_layers,
            heads=stock.num_attention_heads,
            mlp_dim=stock.intermediate_size,
            activation=activation,
            norm_order="post",
            norm_eps=stock.layer_norm_eps,
            dropout=float(stock.hidden_dropout_prob),
            attention_dropout=float(stock.attention_probs_dropout_prob),
        ),
    )


def _roberta(stock: Any, head: str, has_pooler: bool) -> TextConfig:
    config = _bert(stock, head, has_pooler)
    activation = "gelu" if head == "tokens" else "tanh"
    return replace(
        config, max_length=stock.max_position_embeddings - stock.pad_token_id - 1, head_activation=activation
    )


def _albert(stock: Any, head: str, has_pooler: bool) -> TextConfig:
    _check(stock.inner_group_num == 1, f"groups of {stock.inner_group_num} layers")
    config = _bert(stock, head, has_pooler)
    encoder = replace(config.encoder, shared_groups=stock.num_hidden_groups)
    return replace(config, embedding_dim=stock.embedding_size, encoder=encoder)


def _distilbert(stock: Any, head: str, has_pooler: bool) -> TextConfig:
    return TextConfig(
        vocab_size=stock.vocab_size,
        max_length=stock.max_position_embeddings,
        dropout=float(stock.dropout),
        head_hidden=head != "none",
        head_activation=_activation(stock.activation) if head == "tokens" else "relu",
        head_norm=head == "tokens",
        head_dropout=float(stock.seq_classif_dropout) if head == "classes" else 0.0,
        encoder=EncoderConfig(
            dim=stock.dim,
            depth=stock.n_layers,
            heads=stock.n_heads,
            mlp_dim=stock.hidden_dim,
            activation=_activation(stock.activation),
            norm_order="post",
            norm_eps=1e-12,
            dropout=float(stock.dropout),
            attention_dropout=float(stock.attention_dropout),
        ),
    )


def _modernbert(stock: Any, head: str, has_pooler: bool) -> TextConfig:
    _check(stock.hidden_activation in GATED, f"activation {stock.hidden_activation!r}")
    _check(stock.decoder_bias or head != "tokens", "a decoder without bias")
    for kind, rope in stock.rope_parameters.items():
        _check(rope["rope_type"] == "default", f"rotary positions of type {rope['rope_type']!r} ({kind})")
    local = [kind == "sliding_attention" for kind in stock.layer_types]
    near, far = (stock.rope_parameters[kind]["rope_theta"] for kind in ("sliding_attention", "full_attention"))
    window = Local(stock.local_attention, exact=True)
    return TextConfig(
        vocab_size=stock.vocab_size,
        max_length=stock.max_position_embeddings,
        positions="none",
        dropout=float(stock.embedding_dropout),
        pool=stock.classifier_pooling if head == "classes" else "cls",
        head_hidden=head != "none",
        head_bias=stock.classifier_bias,
        head_activation=_activation(stock.classifier_activation),
        head_norm=head != "none",
        head_dropout=float(stock.classifier_dropout) if head == "classes" else 0.0,
        encoder=EncoderConfig(
            dim=stock.hidden_size,
            depth=stock.num_hidden_layers,
            heads=stock.num_attention_heads,
            mlp_dim=stock.intermediate_size,
            activation=GATED[stock.hidden_activation],
            norm_eps=stock.norm_eps,
            norm_bias=stock.norm_bias,
            first_norm=False,
            qkv_bias=stock.attention_bias,
            out_bias=stock.attention_bias,
            mlp_bias=stock.mlp_bias,
            rotary="1d",
            rotary_theta=tuple(float(near if is_local else far) for is_local in local),
            patterns=tuple(window if is_local else None for is_local in local),
            dropout=float(stock.mlp_dropout),
            attention_dropout=float(stock.attention_dropout),
        ),
    )


def _read(name: str) -> nn.Module:
    import transformers

    stock = transformers.AutoConfig.from_pretrained(name)
    kind = (stock.architectures or [f"no architecture in {name}"])[0]
    if not hasattr(transformers, kind):
        raise ValueError(f"from_hf: transformers has no {kind}.")
    return getattr(transformers, kind).from_pretrained(name)


def _head(config: TextConfig) -> str:
    named = {"classes": f"a head of {config.classes} classes", "tokens": "a head for hidden words", "none": "no head"}
    return named[config.head]


def _head_dropout(stock: Any) -> float:
    """Named in two ways; that of the hidden layers if not at all."""
    named = getattr(stock, "classifier_dropout_prob", getattr(stock, "classifier_dropout", None))
    return float(stock.hidden_dropout_prob if named is None else named)


def _activation(name: str) -> str:
    _check(name in ACTIVATIONS, f"activation {name!r}")
    return ACTIVATIONS[name]


def _check(served: bool, what: str) -> None:
    if not served:
        raise ValueError(f"from_hf has no equal of {what} here.")
