"""LoRA of rank 8 on queries and values, training steps in fp32: against PEFT's on the peer's own model, and against our
own full fine-tuning. The limit has no products for the gradients of frozen weights."""

from collections.abc import Callable, Iterator

import peft
import timm
import torch
import transformers
from torch import Tensor, nn

from core import adapters
from core.adapters import LoRA
from text import from_hf
from vision import from_timm

from .limit import interleave_with_products, operations
from .pair import Logits, train
from .row import Goal, Row, Run, versioned

RANK = 8
Made = tuple[nn.Module, nn.Module, Tensor]


def vit(tiny: bool) -> Made:
    shape = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 32} if tiny else {}
    stock = timm.create_model("vit_small_patch16_224", **shape)
    return from_timm(stock), stock, torch.randn(8, 3, *(2 * (shape.get("img_size", 224),)))


def bert(tiny: bool) -> Made:
    shape = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
    if tiny:
        shape = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 1}
    config = transformers.BertConfig(**shape, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    stock = transformers.BertForSequenceClassification(config)
    return from_hf(stock), stock, torch.randint(30_000, (8, 128))


MODELS = {"ViT-S/16, 224 px, batch 8": vit, "BERT, 12 layers 384 wide, 8 texts of 128 tokens": bert}


def model_of(name: str, way: str, tiny: bool) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    ours, stock, inputs = MODELS[name](tiny)
    if way == "full":
        return ours.train(), inputs
    if way == "LoRA":
        return adapters.add(ours, LoRA(rank=RANK)).train(), inputs
    is_vit = isinstance(stock, timm.models.VisionTransformer)
    layers, head = (["qkv"], "head") if is_vit else (["query", "value"], "classifier")
    config = peft.LoraConfig(r=RANK, lora_alpha=16, target_modules=layers, modules_to_save=[head])
    theirs = peft.get_peft_model(stock, config)
    return (theirs if is_vit else Logits(theirs)).train(), inputs


def step(name: str, way: str, tiny: bool) -> Callable[[], None]:
    return train(*model_of(name, way, tiny))


def rows(run: Run) -> Iterator[Row]:
    for name in MODELS:
        work = {way: step(name, way, run.tiny) for way in ("LoRA", "PEFT", "full")}
        found, peaks = interleave_with_products(work, run, 9)
        peers = {"PEFT": (versioned("peft"), Goal()), "full": ("our full step", Goal(ratio=1 / 0.78, memory=0.8))}
        memory = {way: run.memory((step, name, way, run.tiny)) for way in work}
        for way, (peer, goal) in peers.items():
            yield Row(
                what=name,
                work="LoRA training step, fp32",
                peer=peer,
                ours=found["LoRA"],
                theirs=found[way],
                limit=operations(work["LoRA"]) / peaks["fp32"],
                memory=memory[way] and (memory["LoRA"][0], memory[way][0]),
                goal=goal,
            )
