"""CLIP and SigLIP of transformers and open_clip with random weights, as directories that these libraries write."""

import gzip
import json
from pathlib import Path

import open_clip
import torch
import transformers
from open_clip.push_to_hf_hub import save_for_hf
from open_clip.tokenizer import bytes_to_unicode, default_bpe
from torch import nn
from transformers.convert_slow_tokenizer import import_protobuf

WHOLE = 49_152 - 256 - 2  # merges of CLIP's vocabulary
FEW = 900
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
WORDS = "a photo of the cat dog red green blue circle square on in and two small large".split()  # noqa: SIM905
TEXTS = ["a photo of a cat", "Two SMALL dogs, and a red circle!", "blue_square", "it's 12 o'clock"]
LENGTH = 16


def randomise(module: nn.Module) -> nn.Module:
    """Every parameter at random: zeros and ones would hide mistakes."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return module.eval()


def clip_tokenizer(merges: int = FEW) -> transformers.CLIPTokenizer:
    """CLIP's own vocabulary, or the first of its merges."""
    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")[1 : merges + 1]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(line.split()) for line in lines)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(
        {token: number for number, token in enumerate(tokens)}, [tuple(line.split()) for line in lines]
    )


def clip_config(tokenizer: transformers.CLIPTokenizer) -> transformers.CLIPConfig:
    text = {
        **SIZES,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTH,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    image = {**SIZES, "hidden_size": 48, "image_size": 32, "patch_size": 8}
    return transformers.CLIPConfig(text_config=text, vision_config=image, projection_dim=24)


def clip_folder(folder: Path) -> transformers.CLIPModel:
    tokenizer = clip_tokenizer()
    peer = randomise(transformers.CLIPModel(clip_config(tokenizer)))
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    peer.save_pretrained(folder)
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return peer


def siglip_config() -> transformers.SiglipConfig:
    text = {
        **SIZES,
        "vocab_size": 60,
        "max_position_embeddings": LENGTH,
        "projection_size": 48,
        "pad_token_id": 1,
    }
    image = {**SIZES, "hidden_size": 48, "image_size": 32, "patch_size": 8}
    return transformers.SiglipConfig(text_config=text, vision_config=image)


def siglip2_config() -> transformers.Siglip2Config:
    own = siglip_config()
    image = {**SIZES, "hidden_size": 48, "num_patches": 16, "patch_size": 8}
    return transformers.Siglip2Config(text_config=own.text_config.to_dict(), vision_config=image)


def siglip_folder(folder: Path) -> transformers.SiglipModel:
    peer = randomise(transformers.SiglipModel(siglip_config()))
    peer.save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    write_siglip_tokenizer(folder)
    return peer


def write_siglip_tokenizer(folder: Path) -> list[str]:
    """A model of sentencepiece of a few words and all letters, as SigLIP's; returns its pieces."""
    kinds = import_protobuf()
    proto = kinds.ModelProto()
    pieces = ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in WORDS), "▁", *"abcdefghijklmnopqrstuvwxyz12"]
    for number, piece in enumerate(pieces):
        kind = {0: 3, 1: 3, 2: 2}.get(number, 1)  # control, unknown, or a plain piece
        proto.pieces.add(piece=piece, score=-float(number) / len(piece), type=kind)
    proto.trainer_spec.unk_id = 2
    proto.trainer_spec.model_type = 1
    (folder / "spiece.model").write_bytes(proto.SerializeToString())
    settings = {"tokenizer_class": "SiglipTokenizer", "pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return pieces


OPEN_CLIP = {
    "ViT": {"vision_cfg": {"layers": 2, "width": 64, "head_width": 16, "patch_size": 8, "image_size": 32}},
    "ViT, quick GELU": {
        "vision_cfg": {"layers": 2, "width": 64, "head_width": 16, "patch_size": 8, "image_size": 32},
        "quick_gelu": True,
    },
    "ViT, mean, layer scale": {
        "vision_cfg": {
            "layers": 2,
            "width": 64,
            "head_width": 16,
            "patch_size": 8,
            "image_size": 32,
            "pool_type": "avg",
            "final_ln_after_pool": True,
            "no_ln_pre": True,
            "ls_init_value": 0.1,
            "mlp_ratio": 2.5,
            "norm_kwargs": {"eps": 1e-3},
        }
    },
    "timm, linear projection": {
        "vision_cfg": {
            "timm_model_name": "test_vit2",
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": 160,
        }
    },
    "timm, own projection": {
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "", "image_size": 160}
    },
    "SigLIP": {
        "embed_dim": 96,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none", "image_size": 160},
        "text_cfg": {
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"},
            "tokenizer_kwargs": {"clean": "canonicalize"},
        },
    },
}


def open_clip_folder(folder: Path, name: str) -> nn.Module:
    tokenizer = clip_tokenizer()
    own = OPEN_CLIP[name]
    text = {"width": 32, "layers": 2, "heads": 4, "context_length": LENGTH, "vocab_size": len(tokenizer)}
    config = {"embed_dim": 24, **own, "text_cfg": {**text, **own.get("text_cfg", {})}}
    given = {key: value for key, value in config.items() if key not in ("custom_text",)}
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    peer = randomise(kind(**given))
    peer.visual.image_mean, peer.visual.image_std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    save_for_hf(peer, tokenizer, config, str(folder), safe_serialization=True)
    return peer


PEERS = {
    "CLIP": lambda: randomise(transformers.CLIPModel(clip_config(clip_tokenizer()))),
    "SigLIP": lambda: randomise(transformers.SiglipModel(siglip_config())),
    "SigLIP 2 NaFlex": lambda: randomise(transformers.Siglip2Model(siglip2_config())),
}
