"""Stock families of sound models of transformers, their configs and how they prepare sounds. A new family is added
here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from core import EncoderConfig, UserError, resize_positions
from core.checkpoints.keys import KeyMap, State
from core.models.stock import activation_of, check_supported

from . import hf_keys, waveform_families
from .embeddings import spectrogram_grid
from .features import FeatureConfig
from .model import AST, ASTConfig
from .waveform import WaveformModel
from .waveform_families import Head

# --- AST --------------------------------------------------------------------------------------------------------------


def _ast(stock: Any, extractor: Any, head: Head) -> ASTConfig:
    check_mel_bins(extractor.num_mel_bins, stock.num_mel_bins)
    return ASTConfig(
        sample_rate=extractor.sampling_rate,
        n_mels=stock.num_mel_bins,
        max_frames=stock.max_length,
        mask_padding=False,
        patch_size=stock.patch_size if isinstance(stock.patch_size, int) else tuple(stock.patch_size),
        stride=(stock.frequency_stride, stock.time_stride),
        head_norm=head == "classes",
        dropout=float(stock.hidden_dropout_prob),
        features=FeatureConfig(
            kind="kaldi",
            mean=float(extractor.mean) if extractor.do_normalize else 0.0,
            std=float(extractor.std) if extractor.do_normalize else 0.5,
        ),
        encoder=EncoderConfig(
            dim=stock.hidden_size,
            depth=stock.num_hidden_layers,
            heads=stock.num_attention_heads,
            mlp_dim=stock.intermediate_size,
            activation=activation_of(stock.hidden_act),
            norm_eps=stock.layer_norm_eps,
            qkv_bias=stock.qkv_bias,
            dropout=float(stock.hidden_dropout_prob),
            attention_dropout=float(stock.attention_probs_dropout_prob),
        ),
    )


# --- Whisper's encoder ------------------------------------------------------------------------------------------------


def _whisper(stock: Any, extractor: Any, head: Head) -> ASTConfig:
    check_mel_bins(extractor.feature_size, stock.num_mel_bins)
    rate, frames = extractor.sampling_rate, 2 * stock.max_source_positions
    if extractor.nb_max_frames != frames:
        raise UserError(
            f"The feature extractor returns {extractor.nb_max_frames} frames, but the model takes {frames}: pass the "
            "model's own as extractor."
        )
    check_supported(not extractor.dither, "dither")
    check_supported(not extractor.padding_value, "padding with other values than 0 (padding_value)")
    check_supported(not getattr(extractor, "do_normalize", None), "waveforms that are normalised (do_normalize)")
    weighted = head == "classes" and stock.use_weighted_layer_sum
    check_supported(not weighted, "a weighted sum of layers (use_weighted_layer_sum)")
    return ASTConfig(
        sample_rate=rate,
        n_mels=stock.num_mel_bins,
        max_frames=frames,
        mask_padding=False,
        embedding="convolutions",
        class_token=False,
        registers=0,
        pool="mean",
        head_norm=False,
        dropout=float(stock.dropout),
        features=FeatureConfig(
            kind="whisper",
            frame_length=1000 * extractor.n_fft / rate,
            frame_shift=1000 * extractor.hop_length / rate,
            f_min=0.0,
            f_max=8000.0,
            mean=-4.0,
            std=2.0,
        ),
        encoder=EncoderConfig(
            dim=stock.d_model,
            depth=stock.encoder_layers,
            heads=stock.encoder_attention_heads,
            mlp_dim=stock.encoder_ffn_dim,
            activation=activation_of(stock.activation_function),
            norm_eps=1e-5,
            dropout=float(stock.dropout),
            attention_dropout=float(stock.attention_dropout),
        ),
    )


# --- What they share --------------------------------------------------------------------------------------------------


def check_mel_bins(given: int, wanted: int) -> None:
    if given != wanted:
        raise UserError(
            f"The feature extractor returns {given} mel bins, but the model takes {wanted}: pass the model's own as "
            "extractor."
        )


def resize(weights: State, old: ASTConfig, new: ASTConfig) -> State:
    """Weights of an AST for another number of frames or mel bins, or another stride."""
    if old.embedding == "convolutions" and (new.n_mels, new.stride) != (old.n_mels, old.stride):
        raise UserError("Whisper's convolutions take their own number of mel bins: leave out n_mels and stride.")
    key = "embed.positions.weight" if old.embedding == "convolutions" else "embed.patches.positions.weight"
    if key not in weights:
        return weights
    grids = [spectrogram_grid(c.n_mels, c.max_frames, *c.cut) for c in (old, new)]
    if old.embedding == "convolutions":  # positions are counted, not stretched
        return {**weights, key: resize_positions(weights[key], grids[0][1], grids[1][1])}
    return {**weights, key: resize_positions(weights[key], *grids, prefix=int(old.class_token) + old.registers)}


@dataclass(frozen=True)
class Family:
    """Stock models that differ in nothing but their size and their head."""

    types: tuple[str, ...]
    """In config.json (model_type)."""
    read: Callable[[Any, Any, Head], Any]
    """Our config, but for the classes, for a config and a feature extractor of transformers, and a head."""
    keys: Callable[[Any], KeyMap]
    """For a config of transformers."""
    prefix: str
    """Of the base model's weights in a model with a head."""
    extractor: str
    """Name of the class of transformers that prepares sounds."""
    heads: Mapping[str, Head] = field(default_factory=lambda: {"Model": "none", "ForAudioClassification": "classes"})
    """What names of classes of transformers end with."""
    unused: tuple[str, ...] = ()
    """What keys of weights begin with that we have no use for."""
    model: Callable[[Any], nn.Module] = AST
    """Our model for our config."""
    resize: Callable[[State, Any, Any], State] = resize
    """Weights of a model of one of our configs, for another one."""


AST_PREFIX = "audio_spectrogram_transformer."
WHISPER_HEADS: dict[str, Head] = {
    "Model": "none",
    "Encoder": "none",
    "ForConditionalGeneration": "none",
    "ForAudioClassification": "classes",
}
FAMILIES = (
    Family(("audio-spectrogram-transformer",), _ast, lambda stock: hf_keys.AST, AST_PREFIX, "ASTFeatureExtractor"),
    *(
        Family(
            (kind,),
            waveform_families.read,
            waveform_families.keys,
            prefix,
            "Wav2Vec2FeatureExtractor",
            heads=waveform_families.HEADS,
            unused=waveform_families.UNUSED,
            model=WaveformModel,
            resize=lambda weights, old, new: weights,
        )
        for kind, prefix in waveform_families.PREFIXES.items()
    ),
    Family(
        ("whisper",),
        _whisper,
        lambda stock: hf_keys.WHISPER,
        "model.",
        "WhisperFeatureExtractor",
        heads=WHISPER_HEADS,
        unused=("decoder.", "proj_out."),
    ),
)


def find_family(stock: Any, kind: str) -> tuple[Family, Head]:
    """The family and the head of a class of transformers; the base model of the config's type if no class is named."""
    given = getattr(stock, "model_type", None)
    family = next((family for family in FAMILIES if given in family.types), None)
    ends = [] if family is None else [end for end in family.heads if kind.endswith(end)]
    if family is None or (kind and not ends):
        types = ", ".join(name for family in FAMILIES for name in family.types)
        shown = kind + (f" ({given})" if given else "") if kind else f"a model of type {given!r}"
        raise UserError(f"from_hf takes sound models of transformers of type {types}, not {shown}.")
    return family, family.heads[max(ends, key=len)] if kind else "none"
