"""Stock transformers checkpoints on our text encoder, with equal outputs."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn

from core import EncoderConfig, UserError, WeightsError, convert, load
from core.checkpoints.keys import KeyMap, key_pattern
from core.models.hub import check_modality, model_folder, read_settings
from core.sparse import Local

from .checkpoints import Checkpoint, State, download, of_folder, of_module, plain_names
from .model import TextConfig, TextEncoder
from .sentences import read_sentences
from .tokenizer import Tokenizer

LAYER = "encoder.blocks.{i}"

BODY: KeyMap = {
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
}

BERT: KeyMap = {
    **BODY,
    "pooler.dense.{p}": "head.dense.{p}",
    "classifier.{p}": "head.out.{p}",
    "cls.predictions.transform.dense.{p}": "head.dense.{p}",
    "cls.predictions.transform.LayerNorm.{p}": "head.norm.{p}",
    "cls.predictions.bias": "head.out.bias",  # the decoder's, which may be there as well
    "cls.predictions.decoder.{p}": "head.out.{p}",
}

ROBERTA: KeyMap = {
    **BODY,
    "pooler.dense.{p}": "head.dense.{p}",
    "classifier.dense.{p}": "head.dense.{p}",
    "classifier.out_proj.{p}": "head.out.{p}",
    "lm_head.dense.{p}": "head.dense.{p}",
    "lm_head.layer_norm.{p}": "head.norm.{p}",
    "lm_head.bias": "head.out.bias",
    "lm_head.decoder.{p}": "head.out.{p}",
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
    "predictions.bias": "head.out.bias",
    "predictions.decoder.{p}": "head.out.{p}",
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
HEADS = {
    "Model": "none",
    "ForSequenceClassification": "classes",
    "ForMaskedLM": "tokens",
    "ForPreTraining": "tokens",  # and whether two sentences follow each other, which is left out
}
UNUSED = ("pooler.", "cls.seq_relationship.", "sop_classifier.")  # saved along, where the head has no use for them


def from_hf(
    source: str | Path | nn.Module,
    *,
    head: Literal["classes", "tokens", "none"] | None = None,
    classes: int | None = None,
    max_length: int | None = None,
) -> TextEncoder:
    """Our text encoder with the weights of a BERT, RoBERTa, DistilBERT, ALBERT or ModernBERT of transformers.

    source: a name on the hub, a local directory (of sentence-transformers too), or a module in memory: the base model
        (its pooled output is our `features`), or the one for sequence classification or masked words.
    head, classes: another head than the checkpoint's starts afresh, with a warning.
    max_length: fewer positions than the checkpoint's.

    A checkpoint that lacks weights, or holds others than its class has, is a WeightsError that names them.
    """
    if isinstance(source, nn.Module):
        checkpoint = of_module(source)
    else:
        checkpoint = of_folder(Path(source) if Path(source).is_dir() else download(str(source)))
    stock, weights, keys = read_stock(checkpoint)
    usual = (checkpoint.sentences and checkpoint.sentences.max_length) or stock.max_length
    config = replace(stock, max_length=min(max_length or usual, stock.max_length))
    if (table := "embed.positions.weight") in weights:
        weights[table] = weights[table][: config.max_length + (config.padding is not None)]
    fresh = ()
    head, classes = head or stock.head, stock.classes if classes is None else classes
    if head != stock.head or (head == "classes" and classes != stock.classes):
        config = replace(config, head=head, classes=classes, labels=(), multilabel=False)
        if head != "none":
            warnings.warn(
                f"The checkpoint has {_head(stock)}, not {_head(config)}: the head starts afresh.", stacklevel=2
            )
        with_norm = head == "tokens" or config.head_norm
        config = replace(config, head_hidden=head != "none", head_norm=with_norm)
        fresh = ("head.",)
        weights = {key: tensor for key, tensor in weights.items() if not key.startswith("head.")}
    model = TextEncoder(config)
    wanted = {key for key in model.state_dict() if not key.startswith(fresh)}
    faults = {"lacks": wanted - set(weights), "holds more than its config says": set(weights) - wanted}
    for fault, at_fault in faults.items():
        if at_fault:
            names = sorted(name for key in at_fault for name in stock_names(key, keys))
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise WeightsError(f"The checkpoint {fault}: {', '.join(names[:5])}{more}.")
    load(model, weights, fresh=fresh)
    return model.eval()


def load_pretrained(source: str) -> tuple[TextEncoder, Tokenizer]:
    """A model with its tokenizer: of a run, of a directory written by save_pretrained (by us or by transformers) or by
    sentence-transformers, or on the hub (hf-hub:NAME, as timm writes it, so that a misspelt directory is told at once).
    """
    check_modality(source, "text")
    hub = source.startswith("hf-hub:")
    folder = download(source.removeprefix("hf-hub:")) if hub else model_folder(Path(source))
    sentences = read_sentences(folder)
    transformer = sentences.folder if sentences else folder
    settings = read_settings(transformer / "config.json")
    if not settings or not ("model_type" in settings or list(folder.glob("*.safetensors"))):
        raise UserError(f"{source} holds no trained model: name the directory of a finished run.")
    if not {"model_type", "vocab_size"} & set(settings):
        raise UserError(f"{source} holds no text model: name the directory of a finished run of text.")
    try:
        model = from_hf(folder) if "model_type" in settings else TextEncoder.from_pretrained(folder).eval()
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"The model in {source} cannot be loaded: {' '.join(str(error).split())}") from None
    tokenizer = Tokenizer.load(transformer, extend=False)
    if sentences and sentences.lowercase:
        tokenizer.lowercase()
    size = max(tokenizer.size, *(number + 1 for number in (*tokenizer.before, *tokenizer.after)))
    if size > model.config.vocab_size:
        raise UserError(f"{source}: a tokenizer of {size} words, a model of {model.config.vocab_size}.")
    tokenizer.room(model.config.max_length)
    return model, tokenizer


class Family(NamedTuple):
    """Models of transformers that differ in nothing but their size and their head."""

    read: Callable[..., TextConfig]
    keys: KeyMap
    prefix: str
    """Of the base model's weights in a model with a head."""
    heads: dict[str, tuple[str, ...]]
    """What the names of each head's weights begin with."""


def read_stock(checkpoint: Checkpoint) -> tuple[TextConfig, State, KeyMap]:
    """A checkpoint's config and weights as ours, and the key map that they were found by.

    What has no equal here is an error that names it.
    """
    stock, kind, weights, sentences = checkpoint
    family, head = _family(stock, "" if sentences else kind)
    every = {start for starts in family.heads.values() for start in starts} | set(UNUSED)
    foreign = tuple(every - set(family.heads[head]))
    unused = tuple(every) if sentences else tuple(set(foreign) & set(UNUSED))
    weights = plain_names(weights, family.prefix)
    weights = {key: tensor for key, tensor in weights.items() if not key.startswith(unused)}
    keys = {names: target for names, target in family.keys.items() if not _sources(names)[0].startswith(foreign)}
    config = replace(family.read(stock, head, any(key.startswith("pooler.") for key in weights)), head=head)
    if head == "classes":
        config = replace(config, **_classes(stock))
    if sentences:
        made = {"pool": sentences.pool, "sentence_pool": sentences.pool, "sentence_norm": sentences.norm}
        config = replace(config, **made, sentence_prompt=sentences.prompt)
    weights = convert(weights, keys)
    if head == "tokens":
        words, tied = weights.get("embed.words.weight"), getattr(stock, "tie_word_embeddings", True)
        if tied and words is not None:
            # As in transformers: a decoder saved with weights of its own is not tied, whatever the config says.
            tied = torch.equal(weights.setdefault("head.out.weight", words), words)
        config = replace(config, tie_weights=tied)
    if (table := "embed.positions.weight") in weights and config.padding is not None:
        weights[table] = weights[table][config.padding :]
    return config, weights, keys


def stock_names(key: str, keys: KeyMap) -> list[str]:
    """What the weights of the stock model are called that one of ours is made of."""
    for sources, target in keys.items():
        if isinstance(target, str) and (match := key_pattern(target).fullmatch(key)):
            return [source.format(**match.groupdict()) for source in _sources(sources)]
    return [key]


def _sources(sources: str | tuple[str, ...]) -> tuple[str, ...]:
    return (sources,) if isinstance(sources, str) else sources


def _family(stock: Any, kind: str) -> tuple[Family, str]:
    """The family that a class is of, and its head; the base model where no class is named."""
    families = {
        "Bert": Family(
            _bert,
            BERT,
            "bert.",
            {"none": ("pooler.",), "classes": ("pooler.", "classifier."), "tokens": ("cls.predictions.",)},
        ),
        "Roberta": Family(
            _roberta, ROBERTA, "roberta.", {"none": ("pooler.",), "classes": ("classifier.",), "tokens": ("lm_head.",)}
        ),
        "DistilBert": Family(
            _distilbert,
            DISTILBERT,
            "distilbert.",
            {"none": (), "classes": ("pre_classifier.", "classifier."), "tokens": ("vocab_",)},
        ),
        "Albert": Family(
            _albert,
            ALBERT,
            "albert.",
            {"none": ("pooler.",), "classes": ("pooler.", "classifier."), "tokens": ("predictions.",)},
        ),
        "ModernBert": Family(
            _modernbert,
            MODERNBERT,
            "model.",
            {"none": (), "classes": ("head.", "classifier."), "tokens": ("head.", "decoder.")},
        ),
    }
    for name, family in families.items():
        if not kind and getattr(stock, "model_type", None) == name.lower():
            return family, "none"
        if kind.startswith(name) and (head := HEADS.get(kind.removeprefix(name))):
            return family, head
    given = kind or f"a model of type {getattr(stock, 'model_type', None)!r}"
    raise ValueError(f"from_hf takes {', '.join(families)} ({', '.join(HEADS)}), not {given}.")


def _classes(stock: Any) -> dict[str, Any]:
    """What a classifier predicts: by transformers' rule a number where there is one output and nothing else is said."""
    count, problem = stock.num_labels, stock.problem_type
    multilabel = problem == "multi_label_classification"
    _check(problem != "regression" or count == 1, f"a regression of {count} numbers")
    named = sorted(stock.id2label) == list(range(count)) and (count > 1 or multilabel)
    labels = tuple(str(stock.id2label[number]) for number in range(count)) if named else ()
    return {"classes": count, "labels": labels, "multilabel": multilabel}


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
    padding = stock.pad_token_id  # positions count from there on; those up to it stand for nothing
    _check(padding is not None, "a RoBERTa without a padding token")
    longest = stock.max_position_embeddings - padding - 1
    return replace(config, max_length=longest, padding=padding, head_activation=activation)


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
