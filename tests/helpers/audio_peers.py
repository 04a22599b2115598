"""Sound models of other libraries with random weights, and clips for them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers.models.whisper import modeling_whisper as whisper

SECONDS = (1.3, 2.0, 0.4)
AST = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "max_length": 204,
    "num_labels": 7,
}


def randomised(model: nn.Module) -> Any:
    """Zeros and ones would hide mistakes."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def make_ast(kind: str = "ForAudioClassification", **changes: Any) -> Any:
    torch.manual_seed(0)
    return randomised(getattr(transformers, f"AST{kind}")(transformers.ASTConfig(**{**AST, **changes})))


def ast_extractor(peer: nn.Module, **changes: Any) -> Any:
    config: Any = peer.config
    return transformers.ASTFeatureExtractor(num_mel_bins=config.num_mel_bins, max_length=config.max_length, **changes)


WAVEFORMS = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "conv_dim": (24,) * 7,
    "num_conv_pos_embedding_groups": 4,
    "num_conv_pos_embeddings": 16,
    "classifier_proj_size": 20,
    "num_labels": 5,
}
STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}


def make_waveform(family: str, kind: str = "Model", **changes: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**WAVEFORMS, **changes})
    return randomised(getattr(transformers, f"{family}{kind}")(config))


def make_wavlm(kind: str = "Model", **changes: Any) -> Any:
    return make_waveform("WavLM", kind, **{"num_buckets": 32, "max_bucket_distance": 50, **changes})


def make_data2vec(kind: str = "Model", **changes: Any) -> Any:
    return make_waveform("Data2VecAudio", kind, **{"num_conv_pos_embeddings": 3, **changes})


WHISPER = {
    "vocab_size": 50,
    "d_model": 48,
    "encoder_layers": 3,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 96,
    "decoder_layers": 1,
    "decoder_attention_heads": 3,
    "decoder_ffn_dim": 96,
    "max_source_positions": 150,
    "num_mel_bins": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "num_labels": 5,
}


def make_whisper(kind: str = "Model", **changes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.WhisperConfig(**{**WHISPER, **changes})
    return randomised(getattr(whisper, f"Whisper{kind}")(config))


def whisper_extractor(peer: nn.Module, **changes: Any) -> Any:
    """Of clips of 3 seconds."""
    config: Any = peer.config
    seconds = config.max_source_positions // 50
    return transformers.WhisperFeatureExtractor(config.num_mel_bins, chunk_length=seconds, **changes)


def clips(seconds: tuple[float, ...] = SECONDS, rate: int = 16_000) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [0.1 * torch.randn(int(s * rate), generator=generator) for s in seconds]


def padded(clips: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips as a batch, whose padding must not be looked at, and their lengths."""
    lengths = torch.tensor([len(clip) for clip in clips])
    return pad_sequence(clips, batch_first=True, padding_value=torch.nan), lengths


def inputs(extractor: Any, clips: list[torch.Tensor]) -> torch.Tensor:
    """What the extractor of transformers makes of clips."""
    made = extractor([clip.numpy() for clip in clips], sampling_rate=extractor.sampling_rate, return_tensors="pt")
    return made[extractor.model_input_names[0]]


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest, as a share of the largest output."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


PEERS: dict[str, Callable[[], nn.Module]] = {
    "AST": make_ast,
    "Whisper": make_whisper,
    "wav2vec 2.0": partial(make_waveform, "Wav2Vec2"),
    "HuBERT": partial(make_waveform, "Hubert"),
    "WavLM": make_wavlm,
    "data2vec-audio": make_data2vec,
}
