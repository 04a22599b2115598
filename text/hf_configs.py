"""Our config for one of transformers: a reader for each of text's families."""

from copy import copy
from dataclasses import replace
from typing import Any

from core import EncoderConfig
from core.encoder.config import Activation
from core.models.stock import ACTIVATIONS, activation_of, check_supported
from core.sparse import Local

from .model import TextConfig

HEAD_ACTIVATIONS: dict[str, Any] = {
    **{name: ours for name, ours in ACTIVATIONS.items() if ours != "quick_gelu"},
    "tanh": "tanh",
    "silu": "silu",
}
GATED: dict[str, Activation] = {"gelu": "geglu", "silu": "swiglu"}


def bert(stock: Any, head: str, has_pooler: bool) -> TextConfig:
    check_supported(not getattr(stock, "is_decoder", False), "a decoder")
    positions = getattr(stock, "position_embedding_type", "absolute")
    check_supported(positions == "absolute", f"positions of type {positions!r}")
    activation = activation_of(stock.hidden_act)
    return TextConfig(
        vocab_size=stock.vocab_size,
        max_length=stock.max_position_embeddings,
        segments=getattr(stock, "type_vocab_size", 0),
        dropout=float(stock.hidden_dropout_prob),
        head_dense=head in ("classes", "tokens") or (head == "none" and has_pooler),
        head_activation=activation_of(stock.hidden_act, HEAD_ACTIVATIONS) if head == "tokens" else "tanh",
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


def roberta(stock: Any, head: str, has_pooler: bool) -> TextConfig:
    config = bert(stock, head, has_pooler)
    activation = "gelu" if head == "tokens" else "tanh"
    padding = stock.pad_token_id  # positions are counted from its id on; the rows before are not used
    check_supported(padding is not None, "a RoBERTa without a padding token")
    longest = stock.max_position_embeddings - padding - 1
    return replace(config, max_length=longest, padding=padding, head_activation=activation)


def xlm_roberta_xl(stock: Any, head: str, has_pooler: bool) -> TextConfig:
    config = roberta(stock, head, has_pooler)
    return replace(config, embedding_norm=False, encoder=replace(config.encoder, norm_order="pre"))


def electra(stock: Any, head: str, has_pooler: bool) -> TextConfig:
    config = bert(stock, head, has_pooler)
    narrow = stock.embedding_size != stock.hidden_size
    return replace(config, embedding_dim=stock.embedding_size if narrow else None, head_activation="gelu")


def mpnet(stock: Any, head: str, has_pooler: bool) -> TextConfig:
    buckets = stock.relative_attention_num_buckets
    check_supported(buckets == 32, f"{buckets} buckets of distances (transformers uses 32 whatever their number)")
    check_supported(stock.pad_token_id == 1, f"an MPNet whose padding token is {stock.pad_token_id}, not 1")
    config = roberta(stock, head, has_pooler)
    return replace(config, encoder=replace(config.encoder, distance_bias=(buckets, 128)))


DEBERTA_OPTIONS: dict[str, Any] = {
    "relative_attention": True,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "conv_kernel_size": 0,
    "embedding_size": "hidden_size",
    "pooler_hidden_size": "hidden_size",
}
"""What its options must be: those of version 3, and of version 2 without its convolution. One may be the value of
another."""


def deberta(stock: Any, head: str, has_pooler: bool) -> TextConfig:
    for name, value in DEBERTA_OPTIONS.items():
        wanted = getattr(stock, value, value) if isinstance(value, str) else value
        given = getattr(stock, name, wanted if value == "hidden_size" else 0)
        check_supported(given == wanted, f"a DeBERTa with {name}={given!r}")
    terms = sorted(stock.pos_att_type or ())
    check_supported(terms == ["c2p", "p2c"], f"a DeBERTa with pos_att_type={stock.pos_att_type!r}")
    check_supported(stock.legacy or head != "tokens", "a DeBERTa's head for masked tokens with legacy=False")
    buckets = getattr(stock, "position_buckets", -1)
    check_supported(buckets > 0, f"a DeBERTa with position_buckets={buckets}")
    furthest, longest = stock.max_relative_positions, stock.max_position_embeddings
    config = bert(stock, "none", False)
    dropout = getattr(stock, "cls_dropout", None) if head == "classes" else None
    return replace(
        config,
        positions="learned" if stock.position_biased_input else "none",
        head_dense=head in ("classes", "tokens"),
        head_activation=activation_of(
            stock.pooler_hidden_act if head == "classes" else stock.hidden_act, HEAD_ACTIVATIONS
        ),
        head_norm=head == "tokens",
        head_dropout=float(stock.hidden_dropout_prob if dropout is None else dropout) * (head in ("classes", "tags")),
        encoder=replace(config.encoder, disentangled=(buckets, furthest if furthest > 0 else longest)),
    )


# The names in config.json of nomic-ai's own code, and what its options must be.
NOMIC_NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
}
NOMIC_OPTIONS: dict[str, Any] = {
    "activation_function": "swiglu",
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "prenorm": False,
    "parallel_block": False,
    "use_rms_norm": False,
    "causal": False,
    "num_experts": 0,
}


def nomic(stock: Any, head: str, has_pooler: bool) -> TextConfig:
    if hasattr(stock, "n_embd"):
        own, stock = stock, copy(stock)
        for name, value in NOMIC_OPTIONS.items():
            given = getattr(own, name, value)
            check_supported(given == value, f"a NomicBERT with {name}={given!r}")
        for name, ours in NOMIC_NAMES.items():
            check_supported(getattr(own, name, None) is not None, f"a NomicBERT without {name} in its config")
            setattr(stock, ours, getattr(own, name))
        stock.head_dim = own.n_embd // own.n_head
        stock.rope_parameters = {"rope_type": "default", "rope_theta": own.rotary_emb_base}
    return _rotary_bert(stock, head, has_pooler, gated=True, qkv_bias=False, out_bias=False, mlp_bias=False)


def gte(stock: Any, head: str, has_pooler: bool) -> TextConfig:
    config = _rotary_bert(stock, head, has_pooler, gated=True, mlp_up_bias=False)
    return replace(config, head_activation="gelu" if head == "tokens" else "tanh")


def jina(stock: Any, head: str, has_pooler: bool) -> TextConfig:
    config = _rotary_bert(stock, head, has_pooler, gated=False)
    return replace(config, head_activation="gelu" if head == "tokens" else "tanh")


def _rotary_bert(stock: Any, head: str, has_pooler: bool, gated: bool, **encoder: Any) -> TextConfig:
    """A BERT with rotary positions."""
    kinds = GATED if gated else ACTIVATIONS
    check_supported(stock.hidden_act in kinds, f"activation {stock.hidden_act!r}")
    return TextConfig(
        vocab_size=stock.vocab_size,
        max_length=stock.max_position_embeddings,
        segments=stock.type_vocab_size,
        positions="none",
        dropout=float(stock.hidden_dropout_prob),
        head_dense=head in ("classes", "tokens") or (head == "none" and has_pooler),
        head_activation=HEAD_ACTIVATIONS[stock.hidden_act] if head == "tokens" else "tanh",
        head_norm=head == "tokens",
        head_dropout=_head_dropout(stock) if head in ("classes", "tags") else 0.0,
        encoder=EncoderConfig(
            dim=stock.hidden_size,
            depth=stock.num_hidden_layers,
            heads=stock.num_attention_heads,
            head_dim=getattr(stock, "head_dim", None),
            mlp_dim=stock.intermediate_size,
            activation=kinds[stock.hidden_act],
            norm_order="post",
            norm_eps=stock.layer_norm_eps,
            rotary="1d",
            rotary_theta=_theta(stock),
            dropout=float(stock.hidden_dropout_prob),
            attention_dropout=float(stock.attention_probs_dropout_prob),
            **encoder,
        ),
    )


def eurobert(stock: Any, head: str, has_pooler: bool) -> TextConfig:
    check_supported(stock.hidden_act in GATED, f"activation {stock.hidden_act!r}")
    pool, is_late = stock.classifier_pooling, stock.classifier_pooling == "late"
    check_supported(pool in ("bos", "mean", "late") or head != "classes", f"pooling {pool!r}")
    return TextConfig(
        vocab_size=stock.vocab_size,
        max_length=stock.max_position_embeddings,
        positions="none",
        embedding_norm=False,
        pool="cls" if pool == "bos" or head != "classes" else "mean",
        pool_dense=is_late and head == "classes",
        head_dense=head == "classes",
        head_activation="gelu",
        head_out_bias=stock.mlp_bias,
        encoder=EncoderConfig(
            dim=stock.hidden_size,
            depth=stock.num_hidden_layers,
            heads=stock.num_attention_heads,
            kv_heads=stock.num_key_value_heads,
            head_dim=stock.head_dim,
            mlp_dim=stock.intermediate_size,
            activation=GATED[stock.hidden_act],
            norm="rmsnorm",
            norm_eps=stock.rms_norm_eps,
            qkv_bias=stock.attention_bias,
            out_bias=stock.attention_bias,
            mlp_bias=stock.mlp_bias,
            rotary="1d",
            rotary_theta=_theta(stock),
            attention_dropout=float(stock.attention_dropout),
        ),
    )


def _theta(stock: Any) -> float:
    rope = stock.rope_parameters
    check_supported(rope["rope_type"] == "default", f"rotary positions of type {rope['rope_type']!r}")
    share = rope.get("partial_rotary_factor", 1.0)
    check_supported(share == 1, f"rotary positions of a share of {share} of each head")
    return float(rope["rope_theta"])


def albert(stock: Any, head: str, has_pooler: bool) -> TextConfig:
    check_supported(stock.inner_group_num == 1, f"groups of {stock.inner_group_num} layers")
    config = bert(stock, head, has_pooler)
    encoder = replace(config.encoder, shared_groups=stock.num_hidden_groups)
    return replace(config, embedding_dim=stock.embedding_size, encoder=encoder)


def distilbert(stock: Any, head: str, has_pooler: bool) -> TextConfig:
    dropouts = {"classes": stock.seq_classif_dropout, "tags": stock.dropout, "spans": stock.qa_dropout}
    return TextConfig(
        vocab_size=stock.vocab_size,
        max_length=stock.max_position_embeddings,
        dropout=float(stock.dropout),
        head_dense=head in ("classes", "tokens"),
        head_activation=activation_of(stock.activation, HEAD_ACTIVATIONS) if head == "tokens" else "relu",
        head_norm=head == "tokens",
        head_dropout=float(dropouts.get(head, 0.0)),
        encoder=EncoderConfig(
            dim=stock.dim,
            depth=stock.n_layers,
            heads=stock.n_heads,
            mlp_dim=stock.hidden_dim,
            activation=activation_of(stock.activation),
            norm_order="post",
            norm_eps=1e-12,
            dropout=float(stock.dropout),
            attention_dropout=float(stock.attention_dropout),
        ),
    )


def modernbert(stock: Any, head: str, has_pooler: bool) -> TextConfig:
    check_supported(stock.hidden_activation in GATED, f"activation {stock.hidden_activation!r}")
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
        head_out_bias=stock.decoder_bias,
        head_activation=activation_of(stock.classifier_activation, HEAD_ACTIVATIONS),
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
