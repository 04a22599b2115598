"""Models of sound."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torchaudio.models import wav2vec2_model
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from audio import AST, ASTConfig
from core.testing import ModelSubject

from .images import made
from .shapes import CLASSES, DIM, HEADS, NO_DROPOUT, OURS, PROMISED, SHAPE, TINY, eager, hidden, logits

LENGTHS = torch.tensor([1600, 900])
WAVES = torch.linspace(-40, 40, 3200).sin().reshape(2, 1600)
REAL = torch.arange(1600) < LENGTHS[:, None]
LAYERS = [(8, 10, 5), (8, 3, 2), (8, 3, 2)]  # of the front end: channels, kernel, stride
FRONT = {"conv_dim": (8, 8, 8), "conv_kernel": (10, 3, 3), "conv_stride": (5, 2, 2)}
OFF = ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "layerdrop", "mask_time_prob")
WAVEFORM = {
    "vocab_size": 8,
    **SHAPE,
    **FRONT,
    **dict.fromkeys(OFF, 0.0),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
PADDING = ("masked-never-leaks", "padding-changes-nothing", "padding-changes-nothing-in-training")
GROUP = dict.fromkeys(
    PADDING, "known: the group norm of the front end is over padding, too (huggingface/transformers#21534)"
)
GROUP_TORCHAUDIO = dict.fromkeys(
    PADDING, "known: the group norm of the front end is over padding, too (pytorch/audio#2242)"
)
POSITIONS = dict.fromkeys(
    PADDING[1:], "known: the convolutions of positions see padding (huggingface/transformers#25621)"
)
BATCH_NORM = dict.fromkeys(
    PADDING[1:], "known: the batch norm of positions is of padding, too (huggingface/transformers#47739)"
)
STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}


def frames(module: nn.Module, waves: Tensor, real: Tensor) -> Tensor:
    """The mean of the real frames."""
    x = module(waves, attention_mask=real.long()).last_hidden_state
    mask = module._get_feature_vector_attention_mask(x.shape[1], real.long()).bool()
    return x.where(mask[..., None], 0).sum(1) / mask.sum(1, keepdim=True)


def eager_frames(module: nn.Module, waves: Tensor, real: Tensor) -> Tensor:
    module.set_attn_implementation("eager")
    return frames(module, waves, real)


def waveform(family: str, name: str, expected: dict[str, str] | None = None, **config: Any) -> ModelSubject:
    clean = WAVES.where(REAL, 0)
    return ModelSubject(
        partial(made, family, **{**WAVEFORM, **config}),
        (clean, REAL),
        name=f"transformers: {name}",
        call=frames,
        padded=(F.pad(clean, (0, 400)), F.pad(REAL, (0, 400))),
        altered=(WAVES, REAL),
        ways={"attn_implementation='eager'": eager_frames},
        claims=PROMISED,
        expected_failures=expected or {},
    )


def torchaudio_model(norm: str, first: bool) -> nn.Module:
    return wav2vec2_model(
        norm, LAYERS, False, DIM, 0.0, 4, 2, 2, HEADS, 0.0, 2 * DIM, 0.0, 0.0, first, 0.0, aux_num_out=None
    )


def torchaudio_frames(module: nn.Module, waves: Tensor, lengths: Tensor) -> Tensor:
    x, counts = module(waves, lengths)
    mask = torch.arange(x.shape[1]) < counts[:, None]
    return x.where(mask[..., None], 0).sum(1) / mask.sum(1, keepdim=True)


def of_torchaudio(norm: str, first: bool, name: str, expected: dict[str, str]) -> ModelSubject:
    clean = WAVES.where(REAL, 0)
    return ModelSubject(
        partial(torchaudio_model, norm, first),
        (clean, LENGTHS),
        name=f"torchaudio: {name}",
        call=torchaudio_frames,
        padded=(F.pad(clean, (0, 400)), LENGTHS),
        altered=(WAVES, LENGTHS),
        claims=PROMISED,
        expected_failures=expected,
    )


def whisper() -> nn.Module:
    sizes = {"d_model": DIM, "encoder_layers": 2, "encoder_attention_heads": HEADS, "encoder_ffn_dim": 2 * DIM}
    rest = {"num_mel_bins": 8, "max_source_positions": 16, "vocab_size": 8, "dropout": 0.0, "pad_token_id": 0}
    return WhisperEncoder(transformers.WhisperConfig(**sizes, **rest))


def our_ast() -> AST:
    return AST(ASTConfig(sample_rate=8_000, n_mels=16, max_frames=32, patch_size=8, stride=8, classes=3, encoder=TINY))


SPECTROGRAMS = torch.linspace(-2, 2, 2 * 32 * 16).sin().reshape(2, 32, 16)
AST_SIZES = {"max_length": 32, "num_mel_bins": 16, "patch_size": 8, **SHAPE, **NO_DROPOUT}
LENS = torch.tensor([2_400, 1_500])
CLIPS = torch.linspace(-40, 40, 4_800).sin().reshape(2, 2_400)
CLEAN = CLIPS.where(torch.arange(2_400) < LENS[:, None], 0)
SOUNDS = {
    "ours_ast": ModelSubject(
        our_ast,
        (CLEAN, LENS),
        name="ours: AST",
        padded=(F.pad(CLEAN, (0, 200)), LENS),
        altered=(CLIPS, LENS),
        claims=OURS - {"empty"},
    ),
    "hf_ast": ModelSubject(
        partial(made, "AST", "ForAudioClassification", num_labels=CLASSES, **AST_SIZES),
        (SPECTROGRAMS,),
        name="transformers: ASTForAudioClassification",
        call=logits,
        claims=PROMISED,
    ),
    "hf_whisper": ModelSubject(
        whisper,
        (torch.linspace(-2, 2, 2 * 8 * 32).sin().reshape(2, 8, 32),),
        name="transformers: WhisperEncoder",
        call=hidden,
        ways={"attn_implementation='eager'": eager},
        claims=PROMISED,
    ),
    "hf_wav2vec2": waveform("Wav2Vec2", "Wav2Vec2Model, group norm", GROUP),
    "hf_wav2vec2_layer": waveform("Wav2Vec2", "Wav2Vec2Model, layer norms", **STABLE),
    "hf_hubert": waveform("Hubert", "HubertModel, group norm", GROUP),
    "hf_hubert_layer": waveform("Hubert", "HubertModel, layer norms", **STABLE),
    "hf_hubert_batch": waveform(
        "Hubert", "HubertModel, conv_pos_batch_norm", BATCH_NORM, conv_pos_batch_norm=True, **STABLE
    ),
    "hf_wavlm": waveform("WavLM", "WavLMModel, layer norms", **STABLE),
    "hf_data2vec_audio": waveform("Data2VecAudio", "Data2VecAudioModel", POSITIONS, num_conv_pos_embeddings=3),
    "torchaudio_wav2vec2": of_torchaudio("group_norm", False, "Wav2Vec2Model, group norm", GROUP_TORCHAUDIO),
    "torchaudio_wav2vec2_layer": of_torchaudio("layer_norm", True, "Wav2Vec2Model, layer norms", {}),
}
