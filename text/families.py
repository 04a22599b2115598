"""Stock model families of transformers: key maps, configs and heads. A new family is added here."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from core import EncoderConfig, UserError
from core.checkpoints.keys import KeyMap
from core.encoder.config import Activation
from core.sparse import Local

from .model import TextConfig

Head = Literal["classes", "tags", "spans", "tokens", "none"]

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
    "qa_outputs.{p}": "head.out.{p}",
    "cls.predictions.transform.dense.{p}": "head.dense.{p}",
    "cls.predictions.transform.LayerNorm.{p}": "head.norm.{p}",
    "cls.predictions.bias": "head.out.bias",  # the decoder's, which may be there as well
    "cls.predictions.decoder.{p}": "head.out.{p}",
}

ROBERTA: KeyMap = {
    **BODY,
    "pooler.dense.{p}": "head.dense.{p}",
    "classifier.weight": "head.out.weight",  # of tags
    "classifier.bias": "head.out.bias",
    "classifier.dense.{p}": "head.dense.{p}",
    "classifier.out_proj.{p}": "head.out.{p}",
    "qa_outputs.{p}": "head.out.{p}",
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
    "qa_outputs.{p}": "head.out.{p}",
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
    "qa_outputs.{p}": "head.out.{p}",
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

ACTIVATIONS: dict[str, Any] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "tanh": "tanh",
}
GATED: dict[str, Activation] = {"gelu": "geglu", "silu": "swiglu"}
HEADS: dict[str, Head] = {
    "Model": "none",
    "ForSequenceClassification": "classes",
    "ForTokenClassification": "tags",
    "ForQuestionAnswering": "spans",
    "ForMaskedLM": "tokens",
    "ForPreTraining": "tokens",  # without its second head, which predicts whether two sentences follow each other
}


def _bert(stock: Any, head: str, has_pooler: bool) -> TextConfig:
    check_supported(not getattr(stock, "is_decoder", False), "a decoder")
    activation = _activation(stock.hidden_act)
    return TextConfig(
        vocab_size=stock.vocab_size,
        max_length=stock.max_position_embeddings,
        segments=stock.type_vocab_size,
        dropout=float(stock.hidden_dropout_prob),
        head_dense=head in ("classes", "tokens") or (head == "none" and has_pooler),
        head_activation=activation if head == "tokens" else "tanh",
        head_norm=head == "tokens",
        head_dropout=_head_dropout(stock) if head in ("classes", "tags") else 0.0,
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
    padding = stock.pad_token_id  # positions are counted from its id on; the rows before are not used
    check_supported(padding is not None, "a RoBERTa without a padding token")
    longest = stock.max_position_embeddings - padding - 1
    return replace(config, max_length=longest, padding=padding, head_activation=activation)


def _albert(stock: Any, head: str, has_pooler: bool) -> TextConfig:
    check_supported(stock.inner_group_num == 1, f"groups of {stock.inner_group_num} layers")
    config = _bert(stock, head, has_pooler)
    encoder = replace(config.encoder, shared_groups=stock.num_hidden_groups)
    return replace(config, embedding_dim=stock.embedding_size, encoder=encoder)


def _distilbert(stock: Any, head: str, has_pooler: bool) -> TextConfig:
    dropouts = {"classes": stock.seq_classif_dropout, "tags": stock.dropout, "spans": stock.qa_dropout}
    return TextConfig(
        vocab_size=stock.vocab_size,
        max_length=stock.max_position_embeddings,
        dropout=float(stock.dropout),
        head_dense=head in ("classes", "tokens"),
        head_activation=_activation(stock.activation) if head == "tokens" else "relu",
        head_norm=head == "tokens",
        head_dropout=float(dropouts.get(head, 0.0)),
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
    check_supported(stock.hidden_activation in GATED, f"activation {stock.hidden_activation!r}")
    check_supported(stock.decoder_bias or head != "tokens", "a decoder without bias")
    for kind, rope in stock.rope_parameters.items():
        check_supported(rope["rope_type"] == "default", f"rotary positions of type {rope['rope_type']!r} ({kind})")
    local = [kind == "sliding_attention" for kind in stock.layer_types]
    near, far = (stock.rope_parameters[kind]["rope_theta"] for kind in ("sliding_attention", "full_attention"))
    window = Local(stock.local_attention, exact=True)
    return TextConfig(
        vocab_size=stock.vocab_size,
        max_length=stock.max_position_embeddings,
        positions="none",
        dropout=float(stock.embedding_dropout),
        pool=stock.classifier_pooling if head == "classes" else "cls",
        head_dense=head != "none",
        head_bias=stock.classifier_bias,
        head_activation=_activation(stock.classifier_activation),
        head_norm=head != "none",
        head_dropout=float(stock.classifier_dropout) if head in ("classes", "tags", "spans") else 0.0,
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


def _head_dropout(stock: Any) -> float:
    """Its name differs between families; without a value of its own it is the dropout of the layers."""
    own = getattr(stock, "classifier_dropout_prob", getattr(stock, "classifier_dropout", None))
    return float(stock.hidden_dropout_prob if own is None else own)


def _activation(name: str) -> Any:
    check_supported(name in ACTIVATIONS, f"activation {name!r}")
    return ACTIVATIONS[name]


def check_supported(supported: bool, what: str) -> None:
    if not supported:
        raise UserError(f"from_hf does not support {what}.")


@dataclass(frozen=True)
class Family:
    """Stock models that differ in nothing but their size and their head."""

    name: str
    """What the names of transformers' classes begin with; in lower case the type in config.json."""
    read: Callable[[Any, str, bool], TextConfig]
    """Our config for that of transformers, a head, and whether the checkpoint has a pooler."""
    keys: KeyMap
    prefix: str
    """Of the base model's weights in a model with a head."""
    heads: dict[Head, tuple[str, ...]]
    """What the keys of each head's weights begin with."""


TAIL: dict[Head, tuple[str, ...]] = {"tags": ("classifier.",), "spans": ("qa_outputs.",)}

FAMILIES = (
    Family(
        "Bert",
        _bert,
        BERT,
        "bert.",
        {**TAIL, "none": ("pooler.",), "classes": ("pooler.", "classifier."), "tokens": ("cls.predictions.",)},
    ),
    Family(
        "Roberta",
        _roberta,
        ROBERTA,
        "roberta.",
        {
            **TAIL,
            "none": ("pooler.",),
            "classes": ("classifier.dense.", "classifier.out_proj."),
            "tags": ("classifier.weight", "classifier.bias"),
            "tokens": ("lm_head.",),
        },
    ),
    Family(
        "DistilBert",
        _distilbert,
        DISTILBERT,
        "distilbert.",
        {**TAIL, "none": (), "classes": ("pre_classifier.", "classifier."), "tokens": ("vocab_",)},
    ),
    Family(
        "Albert",
        _albert,
        ALBERT,
        "albert.",
        {**TAIL, "none": ("pooler.",), "classes": ("pooler.", "classifier."), "tokens": ("predictions.",)},
    ),
    Family(
        "ModernBert",
        _modernbert,
        MODERNBERT,
        "model.",
        {
            **dict.fromkeys(("classes", "tags", "spans"), ("head.", "classifier.")),
            "none": (),
            "tokens": ("head.", "decoder."),
        },
    ),
)


def find_family(stock: Any, kind: str) -> tuple[Family, Head]:
    """The family and the head of a class of transformers; the base model of the config's type if no class is named."""
    for family in FAMILIES:
        if not kind and getattr(stock, "model_type", None) == family.name.lower():
            return family, "none"
        if kind.startswith(family.name) and (head := HEADS.get(kind.removeprefix(family.name))):
            return family, head
    given = kind or f"a model of type {getattr(stock, 'model_type', None)!r}"
    names = ", ".join(family.name for family in FAMILIES)
    raise UserError(f"from_hf takes {names} ({', '.join(HEADS)}), not {given}.")
