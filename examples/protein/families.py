"""The families of protein language models that load: their key maps and configs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from core import EncoderConfig, UserError
from core.checkpoints.keys import KeyMap, Move, State

from .alphabet import ESM2, ESMC, Alphabet
from .esm import ESMConfig

Head = Literal["tokens", "none"]

LAYER = "encoder.blocks.{i}"

ESM2_KEYS: KeyMap = {
    "embeddings.word_embeddings.weight": "embed.residues.weight",
    "embeddings.layer_norm.{p}": "encoder.input_norm.{p}",
    "embeddings.position_ids": None,
    "embeddings.position_embeddings.weight": None,  # in published checkpoints, though the positions are rotary
    "rotary_embeddings.inv_freq": None,  # in the config
    # Where older transformers keep it; newer ones write a * for the number of the layer.
    "encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq": None,
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


def _esmc_keys(depth: int) -> KeyMap:
    """ESM C divides each branch by a number that depends on the depth; here, that is part of its last projection."""
    gain = (36 / depth) ** 0.5
    return {
        "embed_tokens.weight": "embed.residues.weight",
        "layers.{i}.input_layernorm.{p}": f"{LAYER}.attention_norm.{{p}}",
        (
            "layers.{i}.self_attn.q_proj.{p}",
            "layers.{i}.self_attn.k_proj.{p}",
            "layers.{i}.self_attn.v_proj.{p}",
        ): f"{LAYER}.attention.qkv.{{p}}",
        "layers.{i}.self_attn.q_norm.{p}": f"{LAYER}.attention.q_norm.{{p}}",
        "layers.{i}.self_attn.k_norm.{p}": f"{LAYER}.attention.k_norm.{{p}}",
        "layers.{i}.self_attn.o_proj.{p}": Move(f"{LAYER}.attention.out.{{p}}", lambda t: t * gain),
        "layers.{i}.post_attention_layernorm.{p}": f"{LAYER}.mlp_norm.{{p}}",
        ("layers.{i}.mlp.gate_proj.{p}", "layers.{i}.mlp.up_proj.{p}"): f"{LAYER}.mlp.up.{{p}}",
        "layers.{i}.mlp.down_proj.{p}": Move(f"{LAYER}.mlp.down.{{p}}", lambda t: t * gain),
        "norm.{p}": "encoder.final_norm.{p}",
        "lm_head.dense.{p}": "head.dense.{p}",
        "lm_head.layer_norm.{p}": "head.norm.{p}",
        "lm_head.decoder.{p}": "head.out.{p}",
    }


PACKAGE_BLOCK = "transformer.blocks.{i}"


def _package_keys(depth: int) -> KeyMap:
    """ESM C as EvolutionaryScale publishes it: of the esm package, and of the first checkpoints on the hub, whose norms
    are fused with the projections after them."""
    gain = (36 / depth) ** 0.5
    return {
        "embed.weight": "embed.residues.weight",
        f"{PACKAGE_BLOCK}.attn.layernorm_qkv.0.{{p}}": f"{LAYER}.attention_norm.{{p}}",
        f"{PACKAGE_BLOCK}.attn.layernorm_qkv.layer_norm_{{p}}": f"{LAYER}.attention_norm.{{p}}",
        f"{PACKAGE_BLOCK}.attn.layernorm_qkv.1.{{p}}": f"{LAYER}.attention.qkv.{{p}}",
        f"{PACKAGE_BLOCK}.attn.layernorm_qkv.weight": f"{LAYER}.attention.qkv.weight",
        f"{PACKAGE_BLOCK}.attn.q_ln.{{p}}": f"{LAYER}.attention.q_norm.{{p}}",
        f"{PACKAGE_BLOCK}.attn.k_ln.{{p}}": f"{LAYER}.attention.k_norm.{{p}}",
        f"{PACKAGE_BLOCK}.attn.out_proj.{{p}}": Move(f"{LAYER}.attention.out.{{p}}", lambda t: t * gain),
        f"{PACKAGE_BLOCK}.ffn.0.{{p}}": f"{LAYER}.mlp_norm.{{p}}",
        f"{PACKAGE_BLOCK}.ffn.layer_norm_{{p}}": f"{LAYER}.mlp_norm.{{p}}",
        f"{PACKAGE_BLOCK}.ffn.1.{{p}}": f"{LAYER}.mlp.up.{{p}}",
        f"{PACKAGE_BLOCK}.ffn.fc1_weight": f"{LAYER}.mlp.up.weight",
        f"{PACKAGE_BLOCK}.ffn.3.{{p}}": Move(f"{LAYER}.mlp.down.{{p}}", lambda t: t * gain),
        f"{PACKAGE_BLOCK}.ffn.fc2_weight": Move(f"{LAYER}.mlp.down.weight", lambda t: t * gain),
        "transformer.norm.{p}": "encoder.final_norm.{p}",
        **{
            f"{head}.{number}.{{p}}": f"head.{part}.{{p}}"
            for head in ("sequence_head", "lm_head")
            for number, part in ((0, "dense"), (2, "norm"), (3, "out"))
        },
    }


def _esm2(stock: Any, weights: State, head: Head, alphabet: Alphabet | None) -> ESMConfig:
    if stock.position_embedding_type != "rotary":
        raise UserError(f"from_hf takes ESM-2 (rotary positions), not ESM-1b ({stock.position_embedding_type} ones).")
    if stock.is_decoder or stock.add_cross_attention:
        raise UserError("from_hf takes an encoder, not a decoder.")
    alphabet = alphabet or Alphabet(ESM2)
    _check_alphabet(stock, alphabet)
    words, decoder = weights.get("embeddings.word_embeddings.weight"), weights.get("lm_head.decoder.weight")
    tied = stock.tie_word_embeddings
    if tied and words is not None and decoder is not None:
        tied = torch.equal(words, decoder)
    return ESMConfig(
        alphabet=alphabet.tokens,
        token_dropout=bool(stock.token_dropout),
        head=head,
        tie_weights=bool(tied),
        frequencies=_frequencies(stock, weights),
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


def _frequencies(stock: Any, weights: State) -> tuple[float, ...]:
    """The rotary frequencies that a checkpoint holds, if they are not those of its config."""
    found = [tensor.float().cpu() for key, tensor in weights.items() if key.endswith("rotary_embeddings.inv_freq")]
    if not found:
        return ()
    count = stock.hidden_size // stock.num_attention_heads // 2
    if any(each.shape != (count,) or not torch.equal(each, found[0]) for each in found):
        raise UserError(f"from_hf takes one table of {count} rotary frequencies for all layers, not others.")
    usual = float(stock.rope_theta) ** -(torch.arange(count) / count)
    return () if torch.allclose(found[0], usual, rtol=1e-6, atol=0) else tuple(found[0].tolist())


def _esmc(stock: Any, weights: State, head: Head, alphabet: Alphabet | None) -> ESMConfig:
    rope = stock.rope_parameters
    if stock.hidden_act != "silu" or rope["rope_type"] != "default":
        how = f"{stock.hidden_act} and {rope['rope_type']} ones"
        raise UserError(f"from_hf takes ESM C with silu and default rotary positions, not {how}.")
    embed = weights.get("embed_tokens.weight")
    tokens = stock.vocab_size if embed is None or not embed.ndim else min(stock.vocab_size, len(embed))
    alphabet = alphabet or _esmc_alphabet(tokens)
    _check_alphabet(stock, alphabet)
    return _esmc_config(
        head,
        alphabet,
        stock.max_position_embeddings,
        dim=stock.hidden_size,
        depth=stock.num_hidden_layers,
        heads=stock.num_attention_heads,
        head_dim=stock.head_dim,
        mlp_dim=stock.intermediate_size,
        qkv_bias=stock.attention_bias,
        out_bias=stock.attention_bias,
        mlp_bias=stock.mlp_bias,
        rotary_theta=float(rope["rope_theta"]),
        attention_dropout=float(stock.attention_dropout),
    )


HEAD_DIM = 64  # of every ESM C that is published
CONTEXT = 2048  # tokens of the longest training sequences of ESM C


def _package(stock: Any, weights: State, head: Head, alphabet: Alphabet | None) -> ESMConfig:
    """These checkpoints have no config: the sizes are those of the weights."""
    block = PACKAGE_BLOCK.format(i=0)
    downs = [weights[key] for key in (f"{block}.ffn.3.weight", f"{block}.ffn.fc2_weight") if key in weights]
    embed = weights.get("embed.weight")
    if embed is None or embed.ndim != 2 or not downs or downs[0].ndim != 2 or embed.shape[1] % HEAD_DIM:
        names = f"embed.weight (tokens, {HEAD_DIM} x heads) and {block}.ffn.3.weight"
        raise UserError(f"from_hf takes an ESM C of the esm package, which has {names}.")
    tokens, dim = embed.shape
    return _esmc_config(
        head,
        alphabet or _esmc_alphabet(tokens),
        CONTEXT,
        dim=dim,
        depth=package_depth(weights),
        heads=dim // HEAD_DIM,
        mlp_dim=downs[0].shape[1],
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
    )


def package_depth(weights: State) -> int:
    return len({key.split(".")[2] for key in weights if key.startswith(PACKAGE_BLOCK.removesuffix("{i}"))})


def _esmc_config(head: Head, alphabet: Alphabet, context: int, **sizes: Any) -> ESMConfig:
    return ESMConfig(
        alphabet=alphabet.tokens,
        token_dropout=False,
        head=head,
        tie_weights=False,
        contact_head=False,
        longest=context - 2,
        encoder=EncoderConfig(
            **sizes, activation="swiglu", norm_eps=1e-5, qk_norm=True, qk_norm_whole=True, rotary="1d"
        ),
    )


def _esmc_alphabet(size: int) -> Alphabet:
    """ESM C embeds more tokens than it has."""
    return Alphabet((*ESMC, *(f"<null_{number}>" for number in range(len(ESMC), size))))


def _check_alphabet(stock: Any, alphabet: Alphabet) -> None:
    names = alphabet.tokens
    if stock.vocab_size != len(names):
        raise UserError(
            f"from_hf: a model of {stock.vocab_size} tokens, an alphabet of {len(names)} "
            "(name it, or have a vocab.txt)."
        )
    for token, number in (("<pad>", stock.pad_token_id), ("<mask>", stock.mask_token_id)):
        if number is not None and (not 0 <= number < len(names) or names[number] != token):
            here = names[number] if 0 <= number < len(names) else "nothing"
            raise UserError(f"from_hf: {token} is token {number} of the model; its alphabet has {here} there.")


@dataclass(frozen=True)
class Family:
    read: Callable[[Any, State, Head, Alphabet | None], ESMConfig]
    """Our config, from the stock config, the weights and the alphabet (None for that of the family)."""
    keys: Callable[[int], KeyMap]
    """The key map of a model of so many layers."""
    without_bias: tuple[str, ...] = ()
    """Ends of the names of norms that may have no bias; our encoder has one in all norms or in none."""
    sizes_in_weights: bool = False
    """Whether there is no config."""


PLAIN_NORMS = ("q_norm", "k_norm", "final_norm")  # of ESM C
ESM2_FAMILY = Family(_esm2, lambda depth: ESM2_KEYS)
ESMC_FAMILY = Family(_esmc, _esmc_keys, PLAIN_NORMS)
PACKAGE_FAMILY = Family(_package, _package_keys, PLAIN_NORMS, sizes_in_weights=True)
KINDS: Mapping[str, tuple[Family, Head]] = {
    "EsmModel": (ESM2_FAMILY, "none"),
    "EsmForMaskedLM": (ESM2_FAMILY, "tokens"),
    "EsmcModel": (ESMC_FAMILY, "none"),
    "EsmcForMaskedLM": (ESMC_FAMILY, "tokens"),
    "ESMC": (PACKAGE_FAMILY, "tokens"),
    "ESMCForMaskedLM": (PACKAGE_FAMILY, "tokens"),
}
"""By the name of the class: of transformers, of the esm package, of the first checkpoints on the hub."""


def find_family(kind: str, source: str = "") -> tuple[Family, Head]:
    """source: where the model is, for the message."""
    if kind not in KINDS:
        here, found = source or "The model", kind or "of no named class"
        raise UserError(f"{here} is {found}, not an ESM-2 or ESM C ({', '.join(KINDS)}).")
    return KINDS[kind]
