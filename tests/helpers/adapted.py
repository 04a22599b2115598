"""Small models of every modality, and adapters to put on them."""

import torch

from audio import AST, ASTConfig
from core import EncoderConfig, adapters
from core.adapters import ROLES, Bottleneck, LoRA
from core.sparse import Global, Local
from text import TextConfig, TextEncoder
from vision import ViT, ViTConfig

SPECS = {
    "lora": LoRA(rank=4),
    "lora everywhere": LoRA(rank=3, roles=ROLES, rslora=True),
    "dora": LoRA(rank=4, roles=("q", "out", "mlp_out"), dora=True),
    "serial": Bottleneck(width=8),
    "parallel": Bottleneck(width=8, parallel=True),
}
ENCODERS = {
    "dense": {},
    "sparse": {"patterns": (Local(64), Global(1) | Local(64))},
    "shared": {"shared_groups": 2},
    "checkpointed": {"checkpointing": True},
    "fewer heads of keys and values": {"heads": 4, "kv_heads": 2},
    "post-norm, gated": {"norm_order": "post", "activation": "swiglu"},
}


def vision(encoder):
    return ViT(ViTConfig(image_size=32, patch_size=4, classes=5, encoder=encoder)), (torch.randn(2, 3, 32, 32),)


def audio(encoder):
    model = AST(ASTConfig(n_mels=32, max_frames=64, patch_size=(8, 8), stride=(8, 8), classes=5, encoder=encoder))
    return model, (torch.randn(2, 8_000) * 0.1, torch.tensor([8_000, 5_000]))


def text(encoder):
    ids, mask = torch.randint(5, 50, (2, 70)), torch.arange(70) < torch.tensor([[70], [30]])
    return TextEncoder(TextConfig(vocab_size=50, max_length=70, classes=5, encoder=encoder)), (ids, mask)


MODALITIES = {"vision": vision, "audio": audio, "text": text}


def make(modality="vision", encoder="dense"):
    torch.manual_seed(0)
    config = EncoderConfig(**{"dim": 32, "depth": 4, "heads": 2, "mlp_dim": 48} | ENCODERS[encoder])
    model, inputs = MODALITIES[modality](config)
    return model.eval(), inputs


@torch.no_grad()
def disturb(model, name="default"):
    """As if it had been trained."""
    for _, adapter in adapters.modules(model, name):
        for parameter in adapter.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
