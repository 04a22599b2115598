"""Sparse attention against dense, and against its peers: `python -m benchmarks.sparse [PART ...]`.

Parts, all of them by default (a quarter of an hour on 2 cores): kernels, models, scaling, crossover, pictures.

eta = density * dense time / sparse time is how close a kernel comes to its limit: at 1 only the pairs kept were paid
for. Dense is torch's fused attention without a mask. Everything in fp32.
"""

import argparse
import math
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from local_attention import LocalAttention
from torch import Tensor

from core import attend, attention_backend, explain, sparsify
from core.sparse import Axial, Dilated, Global, Local, Pattern, PowersOfTwo, Random, Window2d, make_plan

from .memory import forget_peak, resident
from .timing import Timing, interleave

HEADS, DIM, LENGTH = 6, 64, 16_384
PICTURES = Path(__file__).parent.parent / "docs" / "pictures"


def inputs(n: int, batch: int = 1) -> list[Tensor]:
    return [torch.randn(batch, HEADS, n, DIM) for _ in range(4)]


def step(attention: Callable, q: Tensor, k: Tensor, v: Tensor, grad: Tensor, backward: bool = True) -> Callable:
    leaves = [t.detach().requires_grad_(backward) for t in (q, k, v)]

    def run():
        with torch.set_grad_enabled(backward):
            out = attention(*leaves)
        if backward:
            torch.autograd.grad(out, leaves, grad)

    return run


def by_pattern(pattern: Pattern, grid=None, backend: str = "native") -> Callable:
    def run(q, k, v):
        with attention_backend(backend):
            return attend(q, k, v, pattern=pattern, grid=grid)

    return run


def row(name: str, timing: Timing, dense: Timing, density: float | None = None) -> None:
    middle, low, high = timing.ratio(dense)
    eta = f"{density:>9.1%}{density * middle:>7.2f}" if density else f"{'':>16}"
    print(f"{name:<42}{timing.median * 1e3:>9.0f}{middle:>9.1f}x{f'{low:.1f} - {high:.1f}':>15}{eta}", flush=True)


def header(title: str) -> None:
    print(f"\n{title}\n{'':<42}{'ms':>9}{'faster':>10}{'quartiles':>15}{'kept':>9}{'eta':>7}")


def kernels() -> None:
    patterns = {
        "Local(256)": (Local(256), None),
        "PowersOfTwo() | Global(1)": (PowersOfTwo() | Global(1), None),
        "Window2d(8), 128 x 128": (Window2d(8), (128, 128)),
    }
    local = LocalAttention(
        dim=DIM, window_size=128, causal=False, look_backward=1, look_forward=1, use_rotary_pos_emb=False
    )
    for backward in (False, True):
        data = inputs(LENGTH)
        work = {"dense": step(F.scaled_dot_product_attention, *data, backward)}
        densities = {}
        for name, (pattern, grid) in patterns.items():
            for backend in ("native", "blockwise", *(() if backward else ("flex",))):
                work[f"{name}, {backend}"] = step(by_pattern(pattern, grid, backend), *data, backward)
                densities[f"{name}, {backend}"] = make_plan(pattern, LENGTH, 0, grid).density
        work["lucidrains' local-attention, 384 keys"] = step(local, *data, backward)
        found = interleave(work, rounds=5, warmup=1)
        header(f"{LENGTH:,} tokens, {HEADS} heads of {DIM}, forward{' + backward' if backward else ''}")
        for name, timing in found.items():
            row(name, timing, found["dense"], densities.get(name))
        middle, low, high = found["Local(256), native"].ratio(found["lucidrains' local-attention, 384 keys"])
        print(f"Local(256) is {middle:.1f} ({low:.1f} - {high:.1f}) times as fast as lucidrains'")


# --- whole models ---------------------------------------------------------------------------------------------------


def ast_pair() -> tuple[Callable, Callable]:
    import transformers

    import audio

    config = transformers.ASTConfig(
        hidden_size=384, num_attention_heads=6, intermediate_size=1536, max_length=6000, attn_implementation="sdpa"
    )
    peer = transformers.ASTForAudioClassification(config)
    ours = sparsify(audio.from_hf(peer), Window2d(8))
    features = torch.randn(1, 6000, 128)

    def logits(features):
        return ours.head(ours.pooled(ours.encoder(ours.embed(features.mT))))

    return train_step(ours, lambda: logits(features)), train_step(peer, lambda: peer(features).logits)


def vit_pair() -> tuple[Callable, Callable]:
    import timm

    import vision

    peer = timm.create_model("vit_small_patch16_224", img_size=1024)
    ours = sparsify(vision.from_timm(peer), Window2d(8))
    images = torch.randn(1, 3, 1024, 1024)
    return train_step(ours, lambda: ours(images)), train_step(peer, lambda: peer(images))


def train_step(model: torch.nn.Module, logits: Callable[[], Tensor]) -> Callable:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def run():
        F.cross_entropy(logits(), torch.zeros(1, dtype=torch.long)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def modernbert_pair() -> tuple[Callable, Callable]:
    import transformers

    import text

    config = transformers.ModernBertConfig(num_hidden_layers=12, attn_implementation="sdpa")
    peer = transformers.ModernBertModel(config).eval()
    ours = text.from_hf(peer).eval()
    ids = torch.randint(5, 50_000, (1, 8192))
    with torch.inference_mode():
        expected = peer(ids).last_hidden_state
        error = (ours.encode(ids).x - expected).abs().max() / expected.abs().max()
    print(f"ModernBERT's outputs differ by {error:.1e} of the largest")

    def inference(model):
        return torch.inference_mode()(model)

    return inference(lambda: ours.encode(ids)), inference(lambda: peer(ids))


def models() -> None:
    header("Whole models, batch 1, against the peer's own dense model")
    pairs = {
        "AST-S, 60 s (7,190 tokens), training step": ast_pair,
        "ViT-S, 1024 px (4,097 tokens), step": vit_pair,
        "ModernBERT, 12 layers, 8,192, inference": modernbert_pair,
    }
    for name, make in pairs.items():
        torch.manual_seed(0)
        ours, peer = make()
        found = interleave({"ours": ours, "peer": peer}, rounds=5, warmup=1)
        row(name, found["ours"], found["peer"])


# --- time and memory against length -----------------------------------------------------------------------------------


def peak_memory(name: str, n: int) -> float:
    """Most bytes in use in a step above inputs and upstream gradient, measured in a process of its own (Linux)."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (name, n))


def _peak_memory(name: str, n: int) -> float:
    step(attention_of(name), *inputs(256))()  # loads libraries
    run = step(attention_of(name), *inputs(n))
    forget_peak()
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def attention_of(name: str) -> Callable:
    return F.scaled_dot_product_attention if name == "dense" else by_pattern(Pattern.parse(name))


def scaling() -> None:
    lengths = [4096, 8192, 16_384, 32_768, 65_536]
    names = ["dense", "Local(256)", "PowersOfTwo() | Global(1)"]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    memory: dict[str, list[float]] = {name: [] for name in names}
    print(f"\nForward + backward against length\n{'':<28}{'tokens':>9}{'ms':>9}{'ns a pair':>11}{'peak MiB':>10}")
    for n in lengths:
        data = inputs(n)
        work = {name: step(attention_of(name), *data) for name in names if name != "dense" or n <= LENGTH}
        found = interleave(work, rounds=5, warmup=1)
        for name in work:
            pairs = n**2 if name == "dense" else make_plan(Pattern.parse(name), n).pairs
            seconds[name].append(found[name].median)
            memory[name].append(peak_memory(name, n))
            values = f"{seconds[name][-1] * 1e3:>9.0f}{seconds[name][-1] / pairs * 1e9:>11.2f}"
            print(f"{name:<28}{n:>9,}{values}{memory[name][-1] / 2**20:>10.0f}", flush=True)
    draw_scaling(lengths, seconds, memory)


def draw_scaling(lengths: list[int], seconds: dict[str, list[float]], memory: dict[str, list[float]]) -> None:
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, values, unit, title in (
        (axes[0], seconds, 1.0, "seconds, forward + backward"),
        (axes[1], memory, 2.0**20, "peak memory above the inputs, MiB"),
    ):
        for (name, found), style in zip(values.items(), ("o-", "s-", "^--"), strict=True):
            axis.plot(lengths[: len(found)], [value / unit for value in found], style, label=name)
        axis.set(xlabel="tokens", title=title, xscale="log")
        axis.set_yscale("log", base=4)
        axis.set_xticks(lengths, [f"{n:,}" for n in lengths])
        axis.minorticks_off()
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    PICTURES.mkdir(parents=True, exist_ok=True)
    fig.savefig(PICTURES / "scaling.png", dpi=120)


def crossover() -> None:
    """From where on each sparse backend is faster than dense attention with the pattern's mask."""
    print("\nCrossover: times as fast as dense attention under the pattern's mask, forward + backward")
    print(f"{'':<30}kept  native  blockwise   attend takes")
    for n in (32, 128, 256, 512, 1024, 2048):
        for share in (0.1, 0.3, 0.5, 0.7, 0.9):
            pattern, data = Local(max(round(n * (1 - math.sqrt(1 - share)) * 2), 1)), inputs(n, batch=2048 // n)
            backends = ("dense", "native", "blockwise")
            found = interleave({b: step(by_pattern(pattern, backend=b), *data) for b in backends}, rounds=7)
            native, blockwise = (found[b].ratio(found["dense"])[0] for b in backends[1:])
            kept, takes = make_plan(pattern, n).density, explain(*data[:3], pattern=pattern).backend
            print(f"{n:>6} tokens, {pattern!s:<15}{kept:>5.0%}{native:>8.2f}{blockwise:>11.2f}   {takes}", flush=True)


def pictures() -> None:
    shown = [
        (Local(256), 1024),
        (Global(64) | Local(128), 1024),
        (PowersOfTwo(), 2048),
        (Dilated(512, step=3), 1024),
        (Random(3) | Local(64), 1024),
        (Window2d(8), (32, 32)),
        (Axial(), (32, 32)),
        (Axial(exact=True), (16, 16)),
    ]
    fig, axes = plt.subplots(2, 4, figsize=(12, 6.4), layout="constrained")
    for axis, (pattern, size) in zip(axes.flat, shown, strict=True):
        pattern.show(size, axis=axis)
    PICTURES.mkdir(parents=True, exist_ok=True)
    fig.savefig(PICTURES / "patterns.png", dpi=100)


PARTS = {part.__name__: part for part in (kernels, models, scaling, crossover, pictures)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sparse", description="Sparse attention, timed.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    chosen = parser.parse_args().parts or list(PARTS)
    if unknown := [part for part in chosen if part not in PARTS]:
        parser.error(f"no part is called {unknown[0]!r}; choose from {', '.join(PARTS)}")
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for part in chosen:
        PARTS[part]()


if __name__ == "__main__":
    main()
