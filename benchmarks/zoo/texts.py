"""Models of texts, and what pools them."""

from functools import partial
from typing import Any

import peft
import transformers
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import TextTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn

from core import adapters
from core.adapters import LoRA
from core.testing import ModelSubject
from core.testing.models import MODEL_CHECKS
from text import TextConfig, TextEncoder

from .shapes import (
    CLASSES,
    DIM,
    HEADS,
    IDS,
    NO_DROPOUT,
    OURS,
    PAD,
    PROMISED,
    SHAPE,
    TINY,
    WORDS,
    flex,
    flex_ways,
    hidden,
    text_batches,
    with_cache,
)

BATCHES = text_batches()
ABSOLUTE = {key: batch for key, batch in BATCHES.items() if key != "left"}  # positions are counted from the first place
PADS = {"pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": 2}
BERT = {"vocab_size": WORDS, "max_position_embeddings": 24, **SHAPE, **NO_DROPOUT, **PADS}
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
NO_POOLING = {"add_pooling_layer": False}
DISTIL = {"dim": DIM, "n_layers": 2, "n_heads": HEADS, "hidden_dim": 2 * DIM, "dropout": 0.0, "attention_dropout": 0.0}
GPT2_DROPOUT = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
WINDOWED = {"local_attention": 4, "global_attn_every_n_layers": 2, "cls_token_id": 3, "sep_token_id": 2}
RELATIVELY = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # the class, its configuration and its options
    "hf_bert": ("Bert", BERT, NO_POOLING),
    "hf_roberta": ("Roberta", BERT, NO_POOLING),
    "hf_xlm_roberta": ("XLMRoberta", BERT, NO_POOLING),
    "hf_distilbert": ("DistilBert", {"vocab_size": WORDS, "max_position_embeddings": 24, **PADS, **DISTIL}, {}),
    "hf_albert": ("Albert", {**BERT, "embedding_size": 8}, NO_POOLING),
    "hf_electra": ("Electra", {**BERT, "embedding_size": 8}, {}),
    "hf_mpnet": ("MPNet", BERT, NO_POOLING),
    "hf_deberta": ("DebertaV2", {**BERT, **RELATIVELY}, {}),
    "hf_modernbert": ("ModernBert", {"vocab_size": WORDS, **SHAPE, **PADS, **WINDOWED}, {}),
    "hf_nomicbert": ("NomicBert", BERT, NO_POOLING),
    "hf_eurobert": ("EuroBert", {"vocab_size": WORDS, **SHAPE, **PADS, "num_key_value_heads": 1}, {}),
    "hf_esm": ("Esm", {**BERT, "mask_token_id": 3, "position_embedding_type": "rotary"}, NO_POOLING),
}
RELATIVE = {"hf_deberta", "hf_modernbert", "hf_nomicbert", "hf_eurobert", "hf_esm"}
CLIP = {"vocab_size": WORDS, "max_position_embeddings": 24, **SHAPE, "projection_dim": DIM, **PADS}


def words(module: nn.Module, ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
    """Of transformers' models the mean of the last hidden states, padding left out."""
    x = module(ids, attention_mask=mask.long(), **options).last_hidden_state.where(mask[..., None], 0)
    return x.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)


def eager_words(module: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    module.set_attn_implementation("eager")
    return words(module, ids, mask)


def flex_words(module: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    return flex(module, words, ids, mask)


UNUSED = "gradient-reaches-every-parameter"
EXPECTED = {"hf_esm": {UNUSED: "not promised: the weights of the contact head serve predict_contacts alone"}}
POOLER = {UNUSED: "not promised: with config= the model has a pooling layer of its own, which is not used"}
BROKEN = "found here: docs/findings/open-clip-max-pooler.md"
EMPTY_MAX = {"fully-masked-sample-is-harmless": "not promised: the maximum over no tokens is -inf"}
WAYS = {
    "attn_implementation='eager'": eager_words,
    "output_attentions=True": partial(words, output_attentions=True),
}


def transformers_model(family: str, config: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    made = getattr(transformers, f"{family}Config")(**config)
    return getattr(transformers, f"{family}Model")(made, **options)


def with_dropout(recomputing: bool = False) -> nn.Module:
    model = transformers_model("Bert", {**BERT, **DROPOUT}, NO_POOLING)
    if recomputing:
        model.gradient_checkpointing_enable()
    return model


def lora(model: nn.Module) -> nn.Module:
    """peft's, on the queries and values."""
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query", "value"]))


def in_bf16(model: nn.Module) -> nn.Module:
    return model.bfloat16()


def merged(model: nn.Module) -> nn.Module:
    return model.merge_and_unload()


def of_transformers(key: str) -> ModelSubject:
    family = FAMILIES[key][0]
    name = f"transformers: {family}Model"
    factory = partial(transformers_model, *FAMILIES[key])
    batches = BATCHES if key in RELATIVE else ABSOLUTE
    expected = EXPECTED.get(key, {})
    return ModelSubject(
        factory,
        name=name,
        call=words,
        ways=WAYS,
        inference_ways=flex_ways(family, flex_words),
        claims=PROMISED,
        expected_failures=expected,
        **batches,
    )


def causal(family: str, **config: Any) -> ModelSubject:
    """A model of which each token sees those before it, with and without a cache."""
    options = NO_POOLING if family in ("Bert", "Roberta") else {}
    return ModelSubject(
        partial(transformers_model, family, config, options),
        (IDS,),
        name=f"transformers: {family}Model, causal, with a cache",
        call=hidden,
        cached=with_cache,
        claims=PROMISED,
    )


class Pooled(nn.Module):
    """Token embeddings, pooled by sentence-transformers."""

    def __init__(self, mode: str):
        super().__init__()
        self.embed, self.pooling = nn.Embedding(WORDS, DIM), Pooling(DIM, pooling_mode=mode)
        self.head = nn.Linear(DIM, DIM)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        features = {"token_embeddings": self.embed(ids), "attention_mask": mask.long()}
        return self.head(self.pooling(features)["sentence_embedding"])


def open_clip_text(**options: Any) -> nn.Module:
    return TextTransformer(12, WORDS, DIM, HEADS, 2, output_dim=DIM, pad_id=PAD, **options)


def open_clip_hf(pooler: str) -> nn.Module:
    return HFTextEncoder("", DIM, transformers.RobertaConfig(**BERT), pooler, "linear", pretrained=False)


def ids_only(module: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Of models that know padding by its id."""
    return module(ids.where(mask, PAD))


def our_text() -> TextEncoder:
    return TextEncoder(TextConfig(vocab_size=WORDS, max_length=24, classes=CLASSES, encoder=TINY))


def our_lora(model: nn.Module) -> nn.Module:
    return adapters.add(model, LoRA(rank=2))


def our_merge(model: nn.Module) -> nn.Module:
    adapters.merge(model)
    return model


def text_model(factory: Any, name: str, call: Any = None, claims: Any = PROMISED, **options: Any) -> ModelSubject:
    return ModelSubject(factory, name=name, call=call, claims=claims, **ABSOLUTE | options)


NEEDED = PROMISED | {"padding"}
ALL_OF_IDS = [each.id for each in MODEL_CHECKS if NEEDED.issuperset(each.needs)]
ID_BATCHES: dict[str, Any] = {
    "altered": None,
    "emptied": None,
}  # padding can't have other ids, and nobody sends none but padding
TEXTS = {
    "ours_text": text_model(our_text, "ours: TextEncoder", None, OURS),
    "ours_lora": text_model(
        our_text, "ours: LoRA, on TextEncoder", None, OURS, adapt=our_lora, merge=our_merge, quantise=in_bf16
    ),
    **{key: of_transformers(key) for key in FAMILIES},
    "hf_bert_dropout": text_model(
        with_dropout,
        "transformers: BertModel, dropout, checkpointed",
        words,
        PROMISED | {"dropout"},
        checkpointed=partial(with_dropout, recomputing=True),
    ),
    "hf_bert_causal": causal("Bert", **BERT, is_decoder=True),
    "hf_roberta_causal": causal("Roberta", **BERT, is_decoder=True),
    "hf_electra_causal": causal("Electra", **BERT, is_decoder=True, embedding_size=8),
    "hf_gpt2": causal("GPT2", vocab_size=WORDS, n_embd=DIM, n_layer=2, n_head=HEADS, n_positions=24, **GPT2_DROPOUT),
    "hf_llama": causal("Llama", vocab_size=WORDS, **SHAPE, **PADS, num_key_value_heads=1),
    "hf_mistral": causal("Mistral", vocab_size=WORDS, **SHAPE, **PADS, num_key_value_heads=1, sliding_window=4),
    "peft_lora": text_model(
        partial(transformers_model, *FAMILIES["hf_bert"]),
        "peft: LoRA, on transformers' BertModel",
        words,
        adapt=lora,
        merge=merged,
        quantise=in_bf16,
    ),
    "hf_clip_text": text_model(
        partial(transformers_model, "CLIPText", CLIP, {}), "transformers: CLIPTextModel", words, emptied=None
    ),
    **{
        f"st_{mode}": text_model(
            partial(Pooled, mode),
            f"sentence-transformers: Pooling, {mode}",
            left=BATCHES["left"] if mode != "cls" else None,
            expected_failures=EMPTY_MAX if mode == "max" else {},
        )
        for mode in ("mean", "max", "weightedmean", "lasttoken", "cls", "mean_sqrt_len_tokens")
    },
    "open_clip_text": text_model(
        partial(open_clip_text, no_causal_mask=True, use_pad_mask=True, pool_type="first"),
        "open_clip: TextTransformer",
        ids_only,
        padded=None,  # as many places as there are positions
        **ID_BATCHES,
    ),
    **{
        f"open_clip_{pooler}": text_model(
            partial(open_clip_hf, pooler),
            f"open_clip: HFTextEncoder, {pooler}",
            ids_only,
            expected_failures=expected,
            **ID_BATCHES,
        )
        for pooler, expected in {
            "mean_pooler": POOLER,
            "max_pooler": dict.fromkeys(ALL_OF_IDS, BROKEN),
            "cls_last_hidden_state_pooler": POOLER,
        }.items()
    },
}
