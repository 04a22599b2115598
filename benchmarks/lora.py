"""What LoRA costs beside full fine-tuning, and beside PEFT's: `python -m benchmarks.lora`, five minutes on 2 cores.

ViT-S/16 at 224 px in batches of 8, BERT of 12 layers and width 384 on 8 texts of 128 tokens; rank 8 on q and v. PEFT's
is on timm's and transformers' own model, whose speed differs a little from ours: the ratio of its LoRA step to its full
step stands beside.
"""

import copy
import multiprocessing
import warnings
from collections.abc import Callable

import peft
import timm
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from core import adapters
from core.adapters import LoRA
from text import from_hf
from vision import from_timm

from .memory import forget_peak, resident
from .timing import interleave

BATCH, LENGTH, RANK = 8, 128, 8
STEP_LIMIT, MEMORY_LIMIT = 0.78, 0.8


def vit() -> tuple[nn.Module, nn.Module, torch.Tensor, list[str]]:
    stock = timm.create_model("vit_small_patch16_224")
    return from_timm(stock).train(), stock.train(), torch.randn(BATCH, 3, 224, 224), ["qkv"]


def bert() -> tuple[nn.Module, nn.Module, torch.Tensor, list[str]]:
    shape = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "hidden_dropout_prob": 0.0}
    config = transformers.BertConfig(**shape, attention_probs_dropout_prob=0.0)
    stock = transformers.BertForSequenceClassification(config)
    return from_hf(stock).train(), stock.train(), torch.randint(30_000, (BATCH, LENGTH)), ["query", "value"]


def with_lora(model: nn.Module) -> nn.Module:
    return adapters.add(model, LoRA(rank=RANK))


def with_theirs(model: nn.Module, layers: list[str]) -> nn.Module:
    saved = ["head"] if hasattr(model, "head") else ["classifier"]
    config = peft.LoraConfig(r=RANK, lora_alpha=16, target_modules=layers, modules_to_save=saved)
    return peft.get_peft_model(model, config)


def step(model: nn.Module, inputs: torch.Tensor) -> Callable[[], None]:
    """A classifier's whole step, on random targets."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
    targets = torch.randint(0, 2, (len(inputs),))

    def run() -> None:
        out = model(inputs)
        F.cross_entropy(getattr(out, "logits", out), targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def made(name: str, how: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    ours, stock, inputs, layers = MODELS[name]()
    match how:
        case "full":
            return ours, inputs
        case "LoRA":
            return with_lora(ours), inputs
        case "peer full":
            return stock, inputs
        case "peer LoRA":
            return with_theirs(stock, layers), inputs


MODELS = {"ViT-S/16": vit, "BERT, 12 layers": bert}
WAYS = ("full", "LoRA", "peer full", "peer LoRA")


def peak_memory(name: str, how: str) -> float:
    """Bytes above the weights, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (name, how))


def _peak_memory(name: str, how: str) -> float:
    run = step(*made(name, how))
    before = resident("VmRSS")
    forget_peak()
    for _ in range(3):
        run()
    return resident("VmHWM") - before


def main() -> None:
    warnings.filterwarnings("ignore")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, peft {peft.__version__}; LoRA of rank {RANK}")
    for name in MODELS:
        models = {how: made(name, how) for how in WAYS}
        times = interleave({how: step(*copy.deepcopy(models[how])) for how in WAYS}, rounds=15)
        ours = models["LoRA"][0]
        trained = sum(p.numel() for n, p in ours.named_parameters() if ".adapters." in n)
        share = trained / sum(p.numel() for p in ours.parameters())
        memory = {how: peak_memory(name, how) for how in ("full", "LoRA")}
        print(f"\n{name}: {trained:,} parameters of LoRA, {share:.2%} of all (limit 1%)")
        rows = (
            (f"LoRA step over full step (limit {STEP_LIMIT})", "full", "LoRA"),
            ("the same of the peer with PEFT", "peer full", "peer LoRA"),
            ("our LoRA step over PEFT's", "peer LoRA", "LoRA"),
        )
        for label, base, way in rows:
            middle, low, high = (1 / ratio for ratio in times[way].ratio(times[base]))
            print(f"{label:<40}{middle:>7.3f}  ({high:.3f} - {low:.3f})")
        label = f"peak memory above weights (limit {MEMORY_LIMIT})"
        print(
            f"{label:<40}{memory['LoRA'] / memory['full']:>7.3f}  ({memory['LoRA'] / 2**20:.0f} of "
            f"{memory['full'] / 2**20:.0f} MiB)"
        )


if __name__ == "__main__":
    main()
