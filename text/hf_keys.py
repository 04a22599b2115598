"""Which weights of transformers are which of ours: the key maps of text's families."""

import torch

from core.checkpoints.keys import KeyMap, Move

LAYER = "encoder.blocks.{i}"

EMBEDDINGS: KeyMap = {
    "embeddings.word_embeddings.weight": "embed.words.weight",
    "embeddings.position_embeddings.weight": "embed.positions.weight",
    "embeddings.token_type_embeddings.weight": "embed.segments.weight",
    "embeddings.LayerNorm.{p}": "embed.norm.{p}",
}

MLP: KeyMap = {
    "encoder.layer.{i}.intermediate.dense.{p}": f"{LAYER}.mlp.up.{{p}}",
    "encoder.layer.{i}.output.dense.{p}": f"{LAYER}.mlp.down.{{p}}",
    "encoder.layer.{i}.output.LayerNorm.{p}": f"{LAYER}.mlp_norm.{{p}}",
}

BODY: KeyMap = {
    **EMBEDDINGS,
    (
        "encoder.layer.{i}.attention.self.query.{p}",
        "encoder.layer.{i}.attention.self.key.{p}",
        "encoder.layer.{i}.attention.self.value.{p}",
    ): f"{LAYER}.attention.qkv.{{p}}",
    "encoder.layer.{i}.attention.output.dense.{p}": f"{LAYER}.attention.out.{{p}}",
    "encoder.layer.{i}.attention.output.LayerNorm.{p}": f"{LAYER}.attention_norm.{{p}}",
    **MLP,
}

BERT_HEADS: KeyMap = {
    "pooler.dense.{p}": "head.dense.{p}",
    "classifier.{p}": "head.out.{p}",
    "qa_outputs.{p}": "head.out.{p}",
    "cls.predictions.transform.dense.{p}": "head.dense.{p}",
    "cls.predictions.transform.LayerNorm.{p}": "head.norm.{p}",
    "cls.predictions.bias": "head.out.bias",  # the decoder's, which may be there as well
    "cls.predictions.decoder.{p}": "head.out.{p}",
}

BERT: KeyMap = {**BODY, **BERT_HEADS}

ROBERTA_HEADS: KeyMap = {
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

ROBERTA: KeyMap = {**BODY, **ROBERTA_HEADS}

XLM_ROBERTA_XL: KeyMap = {
    **ROBERTA,
    "encoder.layer.{i}.attention.self_attn_layer_norm.{p}": f"{LAYER}.attention_norm.{{p}}",
    "encoder.layer.{i}.LayerNorm.{p}": f"{LAYER}.mlp_norm.{{p}}",
    "encoder.LayerNorm.{p}": "encoder.final_norm.{p}",
}

ELECTRA: KeyMap = {
    **BODY,
    **ROBERTA_HEADS,
    "embeddings_project.{p}": "embed.projection.{p}",
    "generator_predictions.dense.{p}": "head.dense.{p}",
    "generator_predictions.LayerNorm.{p}": "head.norm.{p}",
    "generator_lm_head.{p}": "head.out.{p}",
}

DEBERTA: KeyMap = {
    **EMBEDDINGS,
    "embeddings.embed_proj.{p}": "embed.projection.{p}",
    (
        "encoder.layer.{i}.attention.self.query_proj.{p}",
        "encoder.layer.{i}.attention.self.key_proj.{p}",
        "encoder.layer.{i}.attention.self.value_proj.{p}",
    ): f"{LAYER}.attention.qkv.{{p}}",
    "encoder.layer.{i}.attention.output.dense.{p}": f"{LAYER}.attention.out.{{p}}",
    "encoder.layer.{i}.attention.output.LayerNorm.{p}": f"{LAYER}.attention_norm.{{p}}",
    **MLP,
    "encoder.rel_embeddings.weight": "encoder.position_vectors.weight",
    "encoder.LayerNorm.{p}": "encoder.position_vectors.norm.{p}",
    **BERT_HEADS,
}

MPNET: KeyMap = {
    **EMBEDDINGS,
    "encoder.relative_attention_bias.weight": "encoder.distance_bias.weight",
    (
        "encoder.layer.{i}.attention.attn.q.{p}",
        "encoder.layer.{i}.attention.attn.k.{p}",
        "encoder.layer.{i}.attention.attn.v.{p}",
    ): f"{LAYER}.attention.qkv.{{p}}",
    "encoder.layer.{i}.attention.attn.o.{p}": f"{LAYER}.attention.out.{{p}}",
    "encoder.layer.{i}.attention.LayerNorm.{p}": f"{LAYER}.attention_norm.{{p}}",
    **MLP,
    **ROBERTA_HEADS,
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

SELF_ATTENTION: KeyMap = {
    (
        "layers.{i}.self_attn.q_proj.{p}",
        "layers.{i}.self_attn.k_proj.{p}",
        "layers.{i}.self_attn.v_proj.{p}",
    ): f"{LAYER}.attention.qkv.{{p}}",
    "layers.{i}.self_attn.o_proj.{p}": f"{LAYER}.attention.out.{{p}}",
}

GATED_MLP: KeyMap = {
    ("layers.{i}.mlp.gate_proj.{p}", "layers.{i}.mlp.up_proj.{p}"): f"{LAYER}.mlp.up.{{p}}",
    "layers.{i}.mlp.down_proj.{p}": f"{LAYER}.mlp.down.{{p}}",
}

POST_NORMS: KeyMap = {
    "layers.{i}.post_attention_layernorm.{p}": f"{LAYER}.attention_norm.{{p}}",
    "layers.{i}.post_mlp_layernorm.{p}": f"{LAYER}.mlp_norm.{{p}}",
}

# NomicBERT's, GTE's and Jina's files have the names of their authors' own code, which transformers keeps when it saves.
NOMIC: KeyMap = {
    **EMBEDDINGS,
    **SELF_ATTENTION,
    **GATED_MLP,
    **POST_NORMS,
    "emb_ln.{p}": "embed.norm.{p}",
    "encoder.layers.{i}.attn.Wqkv.{p}": f"{LAYER}.attention.qkv.{{p}}",
    "encoder.layers.{i}.attn.out_proj.{p}": f"{LAYER}.attention.out.{{p}}",
    ("encoder.layers.{i}.mlp.fc12.{p}", "encoder.layers.{i}.mlp.fc11.{p}"): f"{LAYER}.mlp.up.{{p}}",
    "encoder.layers.{i}.mlp.fc2.{p}": f"{LAYER}.mlp.down.{{p}}",
    "encoder.layers.{i}.norm1.{p}": f"{LAYER}.attention_norm.{{p}}",
    "encoder.layers.{i}.norm2.{p}": f"{LAYER}.mlp_norm.{{p}}",
    **BERT_HEADS,
    "cls.predictions.transform.layer_norm.{p}": "head.norm.{p}",
}

GTE: KeyMap = {
    **EMBEDDINGS,
    **SELF_ATTENTION,
    **GATED_MLP,
    **POST_NORMS,
    "encoder.layer.{i}.attention.qkv_proj.{p}": f"{LAYER}.attention.qkv.{{p}}",
    "encoder.layer.{i}.attention.o_proj.{p}": f"{LAYER}.attention.out.{{p}}",
    "encoder.layer.{i}.mlp.up_gate_proj.{p}": Move(f"{LAYER}.mlp.up.{{p}}", lambda t: torch.cat(t.chunk(2)[::-1])),
    "encoder.layer.{i}.mlp.down_proj.{p}": f"{LAYER}.mlp.down.{{p}}",
    "encoder.layer.{i}.attn_ln.{p}": f"{LAYER}.attention_norm.{{p}}",
    "encoder.layer.{i}.mlp_ln.{p}": f"{LAYER}.mlp_norm.{{p}}",
    "pooler.dense.{p}": "head.dense.{p}",
    "classifier.{p}": "head.out.{p}",
    "lm_head.dense.{p}": "head.dense.{p}",
    "lm_head.norm.{p}": "head.norm.{p}",
    "lm_head.layer_norm.{p}": "head.norm.{p}",
    "lm_head.decoder.{p}": "head.out.{p}",
}

JINA: KeyMap = {
    **EMBEDDINGS,
    **SELF_ATTENTION,
    "layers.{i}.mlp.fc1.{p}": f"{LAYER}.mlp.up.{{p}}",
    "layers.{i}.mlp.fc2.{p}": f"{LAYER}.mlp.down.{{p}}",
    **POST_NORMS,
    "emb_ln.{p}": "embed.norm.{p}",
    "encoder.layers.{i}.mixer.Wqkv.{p}": f"{LAYER}.attention.qkv.{{p}}",
    "encoder.layers.{i}.mixer.out_proj.{p}": f"{LAYER}.attention.out.{{p}}",
    "encoder.layers.{i}.mlp.fc1.{p}": f"{LAYER}.mlp.up.{{p}}",
    "encoder.layers.{i}.mlp.fc2.{p}": f"{LAYER}.mlp.down.{{p}}",
    "encoder.layers.{i}.norm1.{p}": f"{LAYER}.attention_norm.{{p}}",
    "encoder.layers.{i}.norm2.{p}": f"{LAYER}.mlp_norm.{{p}}",
    **ROBERTA_HEADS,
}

EUROBERT: KeyMap = {
    "embed_tokens.weight": "embed.words.weight",
    **SELF_ATTENTION,
    **GATED_MLP,
    "layers.{i}.input_layernorm.{p}": f"{LAYER}.attention_norm.{{p}}",
    "layers.{i}.post_attention_layernorm.{p}": f"{LAYER}.mlp_norm.{{p}}",
    "norm.{p}": "encoder.final_norm.{p}",
    "dense.{p}": "head.dense.{p}",
    "classifier.{p}": "head.out.{p}",
    "lm_head.{p}": "head.out.{p}",
}
