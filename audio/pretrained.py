"""Stock AST checkpoints of Hugging Face's transformers on our AST, with equal outputs."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from jaxtyping import Shaped
from torch import Tensor, nn

from core import EncoderConfig, Move, Pair, UserError, WeightsError, convert, load, resize_positions
from core.checkpoints.files import plain_state, read_state
from core.checkpoints.keys import warn_of_new_head
from core.encoder.config import Activation
from core.files import read_json
from core.models.hub import load_start, local_folder

from .embeddings import spectrogram_grid
from .features import FeatureConfig
from .model import AST, ASTConfig


def _rows(t: Tensor) -> Tensor:
    """The table of transformers has a leading axis of 1."""
    return t[0]


BODY, LAYER = "audio_spectrogram_transformer", "audio_spectrogram_transformer.layers.{i}"
KEYS = {
    f"{BODY}.embeddings.cls_token": Move("embed.patches.class_token"),
    f"{BODY}.embeddings.distillation_token": Move("embed.patches.registers"),
    f"{BODY}.embeddings.position_embeddings": Move("embed.patches.positions.weight", _rows),
    f"{BODY}.embeddings.patch_embeddings.projection.{{p}}": "embed.patches.projection.{p}",
    f"{LAYER}.layernorm_before.{{p}}": "encoder.blocks.{i}.attention_norm.{p}",
    (
        f"{LAYER}.attention.q_proj.{{p}}",
        f"{LAYER}.attention.k_proj.{{p}}",
        f"{LAYER}.attention.v_proj.{{p}}",
    ): "encoder.blocks.{i}.attention.qkv.{p}",
    f"{LAYER}.attention.o_proj.{{p}}": "encoder.blocks.{i}.attention.out.{p}",
    f"{LAYER}.layernorm_after.{{p}}": "encoder.blocks.{i}.mlp_norm.{p}",
    f"{LAYER}.mlp.fc1.{{p}}": "encoder.blocks.{i}.mlp.up.{p}",
    f"{LAYER}.mlp.fc2.{{p}}": "encoder.blocks.{i}.mlp.down.{p}",
    f"{BODY}.layernorm.{{p}}": "encoder.final_norm.{p}",
    "classifier.layernorm.{p}": "head_norm.{p}",
    "classifier.dense.{p}": "head.{p}",
}

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
ACTIVATIONS |= {"relu": "relu"}


def from_hf(
    source: str | Path | nn.Module,
    *,
    extractor: Any = None,
    max_frames: int | None = None,
    n_mels: int | None = None,
    stride: Pair | None = None,
    classes: int | None = None,
    mask_padding: bool | None = None,
    multilabel: bool | None = None,
) -> AST:
    """Our AST with the weights of transformers' ASTForAudioClassification.

    source: a model's name on the Hugging Face hub, a local directory, or the module in memory.
    extractor: the ASTFeatureExtractor of a module in memory, if it is not the stock one; otherwise it is read too.
    max_frames, n_mels, stride: the positions are interpolated in time and frequency.
    classes: a number of classes that differs from the checkpoint's gives a head initialised at random, with a warning.
    mask_padding: stock weights were trained to attend to the padding up to max_frames (False); True masks it.
    multilabel: probabilities by sigmoid, as for AudioSet; by default as the checkpoint's problem_type says.
    """
    try:
        from transformers import ASTFeatureExtractor, ASTForAudioClassification
    except ImportError:
        raise UserError("from_hf needs the transformers package: pip install transformers.") from None
    module: Any = source
    if not isinstance(source, nn.Module):
        folder = local_folder(source)
        extractor = extractor or read_extractor(folder)
        module = read_module(folder)
    if not isinstance(module, ASTForAudioClassification):
        raise UserError(f"from_hf takes transformers' ASTForAudioClassification, not {type(module).__name__}.")
    stock = hf_config(
        module.config, extractor or ASTFeatureExtractor(), cast(Any, module.classifier.dense).out_features
    )
    chosen = {
        "max_frames": max_frames,
        "n_mels": n_mels,
        "stride": stride,
        "classes": classes,
        "mask_padding": mask_padding,
        "multilabel": multilabel,
    }
    config = replace(stock, **{name: value for name, value in chosen.items() if value is not None})
    weights, fresh = resize(convert(module.state_dict(), KEYS), stock, config), ()
    if config.classes != stock.classes:
        warn_of_new_head(f"{stock.classes} classes", f"{config.classes} classes")
        config, fresh = replace(config, labels=()), ("head.",)
    model = AST(config)
    load(model, weights, fresh=fresh)
    return model.eval()


def read_module(folder: Path) -> Any:
    """The model of transformers in a directory, with all weights of its checkpoint and no others."""
    from transformers import ASTForAudioClassification

    kinds: Any = ASTForAudioClassification.config_class
    if (kind := read_json(folder / "config.json").get("model_type")) != kinds.model_type:
        raise UserError(f"{folder} is a model of type {kind!r}, not an Audio Spectrogram Transformer.")
    state = plain_state(read_state(folder), wanted=())  # without the prefixes of DDP or torch.compile
    # transformers would draw missing weights at random and leave unexpected ones out, with a warning each.
    loaded: Any = ASTForAudioClassification.from_pretrained(
        None,
        config=kinds.from_pretrained(folder),
        state_dict=state,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    module, report = loaded
    faults = [f"not in the model: {key}" for key in sorted(report["unexpected_keys"])]
    faults += [f"not in the checkpoint: {key}" for key in sorted(report["missing_keys"])]
    faults += [
        f"{key}: {tuple(there)} in the checkpoint, {tuple(wanted)} in the model"
        for key, there, wanted in sorted(report["mismatched_keys"])
    ]
    if faults:
        rest = f"; and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise WeightsError(f"The checkpoint {folder} does not fit its config.json; {'; '.join(faults[:10])}{rest}")
    return module


def read_extractor(folder: Path) -> Any:
    from transformers import ASTFeatureExtractor

    if not (folder / "preprocessor_config.json").is_file():
        raise UserError(
            f"{folder} has no preprocessor_config.json, which says how its spectrograms are made: copy it from the "
            "checkpoint that it was trained from, or pass an extractor to from_hf."
        )
    settings, _ = ASTFeatureExtractor.get_feature_extractor_dict(folder)
    kind = settings.get("feature_extractor_type", ASTFeatureExtractor.__name__)
    if kind != ASTFeatureExtractor.__name__:
        raise UserError(f"The preprocessor_config.json of {folder} is of a {kind}, not of an ASTFeatureExtractor.")
    return ASTFeatureExtractor.from_dict(settings)


def load_pretrained(source: str) -> AST:
    """A model to start from: of a run, of a directory written by save_pretrained (ours or transformers'), or of
    transformers on the hub."""
    return load_start(source, "audio", AST, from_hf, ("model_type",))


def resize(
    weights: Mapping[str, Shaped[Tensor, "..."]], old: ASTConfig, new: ASTConfig
) -> dict[str, Shaped[Tensor, "..."]]:
    """Weights of an AST for another number of frames or mel bins, or another stride."""
    grids = [spectrogram_grid(c.n_mels, c.max_frames, c.patch_size, c.stride) for c in (old, new)]
    key = "embed.patches.positions.weight"
    return {**weights, key: resize_positions(weights[key], *grids, prefix=2)}


def hf_config(config: Any, extractor: Any, classes: int) -> ASTConfig:
    """Our config for an ASTConfig and ASTFeatureExtractor of transformers, and a number of classes: transformers counts
    only those that have names."""
    if config.hidden_act not in ACTIVATIONS:
        raise UserError(f"from_hf does not support activation {config.hidden_act}.")
    if extractor.num_mel_bins != config.num_mel_bins:
        raise UserError(
            f"The feature extractor returns {extractor.num_mel_bins} mel bins, but the model takes "
            f"{config.num_mel_bins}: pass the model's own as extractor."
        )
    if config.problem_type == "regression":
        raise UserError("from_hf does not support regression (problem_type).")
    names = config.id2label or {}
    patch = config.patch_size if isinstance(config.patch_size, int) else tuple(config.patch_size)
    return ASTConfig(
        sample_rate=extractor.sampling_rate,
        n_mels=config.num_mel_bins,
        max_frames=config.max_length,
        mask_padding=False,
        patch_size=patch,
        stride=(config.frequency_stride, config.time_stride),
        classes=classes,
        labels=tuple(names.get(number, f"LABEL_{number}") for number in range(classes)),
        multilabel=config.problem_type == "multi_label_classification",
        dropout=float(config.hidden_dropout_prob),
        features=FeatureConfig(
            kind="kaldi",
            mean=float(extractor.mean) if extractor.do_normalize else 0.0,
            std=float(extractor.std) if extractor.do_normalize else 0.5,
        ),
        encoder=EncoderConfig(
            dim=config.hidden_size,
            depth=config.num_hidden_layers,
            heads=config.num_attention_heads,
            mlp_dim=config.intermediate_size,
            activation=ACTIVATIONS[config.hidden_act],
            norm_eps=config.layer_norm_eps,
            qkv_bias=config.qkv_bias,
            dropout=float(config.hidden_dropout_prob),
            attention_dropout=float(config.attention_probs_dropout_prob),
        ),
    )
