"""Batches of samples of different sizes, without a padded token, against batches padded to the largest.

Every row trains a model on the same samples in the same random order, forward and backward; optimiser steps included.
The limit has no padding either. On CUDA there are more samples, so that kernels take longer than their launches;
attention in bf16 is torch's flash attention for sequences of various lengths there, in fp32 it is padded.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import ASTConfig, ASTForAudioClassification

from audio import from_hf as audio_from_hf
from core import Encoder, EncoderConfig, Tokens, pool
from core.attention.packing import Packing, Place
from core.objectives import MaskedAutoencoder, MaskedConfig
from text import from_hf as text_from_hf
from vision import ViT, ViTConfig, from_timm

from .bert import CLASSES, VOCABULARY, Masked, bert, spread_batches
from .limit import interleave_with_products, operations
from .memory import peak_memory
from .pair import Logits, train_on
from .ragged_peers import FromFrames, Loss, NaFlex, PaddedAutoencoder, naflex_batch
from .row import Goal, Row, Run, versioned
from .timing import Timing

Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Ours beside several peers, on the same samples. Each makes its work for a precision."""

    what: str
    work: str
    ours: Callable[[str], Work]
    peers: dict[str, tuple[Callable[[str], Work], Goal]]
    rounds: int = 5


def rows(run: Run) -> Iterator[Row]:
    for make in (texts, short_texts, images, clips, *([masked_images] if run.device == "cpu" else [])):
        torch.manual_seed(0)
        yield from measured(run, make)
    if run.device == "cpu":
        yield from growth(run)


def measured(run: Run, make: Callable[[Run], Comparison]) -> Iterator[Row]:
    """A row for each peer, in every precision. All are interleaved in one run."""
    compared = make(run)
    works = {("ours", p): compared.ours(p) for p in run.precisions}
    works |= {(peer, p): peers_work(p) for peer, (peers_work, _) in compared.peers.items() for p in run.precisions}
    needed = operations(compared.ours("fp32"))
    found, peaks = interleave_with_products(works, run, compared.rounds, run.precisions)
    memory = {}
    if run.device == "cpu" and not run.tiny:
        memory = {name: peak_memory(_alone, make, name) for name in ("ours", *compared.peers)}
    for precision in run.precisions:
        for peer, (_, goal) in compared.peers.items():
            yield Row(
                what=compared.what,
                work=f"{compared.work}, {precision}",
                peer=peer,
                ours=found["ours", precision],
                theirs=found[peer, precision],
                limit=needed / peaks[precision],
                memory=(memory["ours"], memory[peer]) if memory and precision == "fp32" else None,
                goal=goal if run.device == "cpu" else Goal(),
            )


def _alone(make: Callable[[Run], Comparison], name: str) -> Work:
    """For memory: the work of one side, in fp32."""
    torch.manual_seed(0)
    compared = make(Run(bf16=False))
    return (compared.ours if name == "ours" else compared.peers[name][0])("fp32")


# --- Texts ------------------------------------------------------------------------------------------------------------


def packed(batch: tuple, device: str) -> tuple:
    """A padded batch of texts as a packed row."""
    (ids, mask), targets = batch
    lengths = mask.sum(dim=1).tolist()
    row = ids[mask][None].to(device)
    return (row, Packing.of([Place(n) for n in lengths])), targets.to(device)


def moved(batches: Sequence[tuple], device: str) -> list[tuple]:
    return [(tuple(t.to(device) for t in inputs), targets.to(device)) for inputs, targets in batches]


def texts(run: Run) -> Comparison:
    """The texts of the group bert, but in random order."""
    count, batch = (4, 2) if run.tiny else (1024, 128) if run.device == "cuda" else (128, 8)
    stock = bert(run.tiny).to(run.device)
    ours, theirs = text_from_hf(stock).to(run.device).train(), Masked(stock).train()
    lengths = np.exp(np.random.default_rng(0).uniform(np.log(16), np.log(512), count)).astype(int).tolist()
    bucketed, mixed, _ = spread_batches(lengths, batch)
    rows_of_tokens = [packed(each, run.device) for each in mixed]
    bucketed, mixed = (moved(batches, run.device) for batches in (bucketed, mixed))
    return Comparison(
        what=f"BERT-small, {count} texts of 16 to 512 tokens",
        work=f"training on {sum(lengths):,} tokens, {batch} texts a step",
        ours=lambda p: train_on(ours, rows_of_tokens, p),
        peers={
            versioned("transformers"): (lambda p: train_on(theirs, mixed, p), Goal(ratio=2.35)),
            "ours, padded, in batches of like length": (lambda p: train_on(ours, bucketed, p), Goal(ratio=1.0)),
        },
    )


def short_texts(run: Run) -> Comparison:
    """The worst case for packing: padding is cheap, and there are many sequences."""
    count = 8 if run.tiny else 8192 if run.device == "cuda" else 512
    ours = text_from_hf(bert(run.tiny)).to(run.device).train()
    generator = np.random.default_rng(0)
    lengths = generator.integers(8, 33, count).tolist()
    ids = torch.from_numpy(generator.integers(1000, VOCABULARY, (count, max(lengths))))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    padded = (ids * mask, mask), torch.arange(count) % CLASSES
    row = packed(padded, run.device)
    return Comparison(
        what=f"BERT-small, {count} texts of 8 to 32 tokens",
        work=f"training step on {sum(lengths):,} tokens",
        ours=lambda p: train_on(ours, [row], p),
        peers={"ours, padded": (lambda p: train_on(ours, moved([padded], run.device), p), Goal(ratio=1.0))},
    )


# --- Images -----------------------------------------------------------------------------------------------------------


def mixed_images(run: Run, count: int, patch: int = 16) -> list[Float[Tensor, "3 h w"]]:
    """Images of 64 to 384 pixels a side, aspect 1:2 to 2:1, in whole patches."""
    generator = np.random.default_rng(0)
    low, high = (32, 64) if run.tiny else (64, 384)
    images = []
    while len(images) < count:
        rows, columns = (
            int(side) // patch * patch for side in np.exp(generator.uniform(np.log(low), np.log(high + 1), 2))
        )
        if max(rows, columns) <= 2 * min(rows, columns):
            images.append(torch.from_numpy(generator.standard_normal((3, rows, columns), np.float32)))
    return images


def images(run: Run) -> Comparison:
    count = 4 if run.tiny else 256 if run.device == "cuda" else 64
    name = "vit_tiny_patch16_224" if run.tiny else "vit_small_patch16_384"
    sizes = mixed_images(run, count)
    tall, wide = (max(image.shape[axis] for image in sizes) for axis in (1, 2))
    torch.manual_seed(0)
    stock = timm.create_model(name, num_classes=10, img_size=(tall, wide)).to(run.device).train()
    shape = {"embed_dim": stock.embed_dim, "depth": len(stock.blocks), "num_heads": stock.blocks[0].attn.num_heads}
    naflex = timm.create_model("naflexvit_base_patch16_gap", num_classes=10, **shape).to(run.device).train()
    ours = from_timm(stock).to(run.device).train()
    targets = torch.arange(count) % 10
    listed = [(([image.to(run.device) for image in sizes],), targets.to(run.device))]
    padded = moved([(naflex_batch(sizes), targets)], run.device)
    resized = torch.stack([F.interpolate(image[None], (tall, wide), mode="bilinear")[0] for image in sizes])
    return Comparison(
        what=f"ViT-S/16, {count} images of 64 to 384 pixels a side",
        work=f"training step on {sum(image[0].numel() // 256 for image in sizes):,} patches",
        ours=lambda p: train_on(ours, listed, p),
        peers={
            f"NaFlexVit, {versioned('timm')}, padded": (lambda p: train_on(NaFlex(naflex), padded, p), Goal(ratio=1.3)),
            f"ViT, {versioned('timm')}, resized to {tall} x {wide}": (
                lambda p: train_on(stock, moved([((resized,), targets)], run.device), p),
                Goal(ratio=2.0),
            ),
        },
        rounds=3,
    )


# --- Clips ------------------------------------------------------------------------------------------------------------


def clips(run: Run) -> Comparison:
    count = 4 if run.tiny else 64 if run.device == "cuda" else 16
    longest = 64 if run.tiny else 1024
    shape = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "max_length": longest}
    if run.tiny:
        shape |= {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    stock = ASTForAudioClassification(ASTConfig(**shape, num_labels=10, attn_implementation="sdpa")).to(run.device)
    ours = FromFrames(audio_from_hf(stock)).to(run.device).train()
    generator = np.random.default_rng(0)
    seconds = np.exp(generator.uniform(np.log(1), np.log(10), count))
    frames = torch.from_numpy((seconds * longest / 10.24).astype(np.int64))
    found = [torch.from_numpy(generator.standard_normal((128, int(n)), np.float32)) for n in frames]
    targets = (torch.arange(count) % 10).to(run.device)
    row = torch.cat(found, dim=1).to(run.device)
    padded = torch.stack(
        [F.pad(each, (0, max(map(len, (each.T for each in found))) - each.shape[1])) for each in found]
    )
    full = torch.stack([F.pad(each, (0, longest - each.shape[1])).T for each in found])
    return Comparison(
        what=f"AST-S, {count} clips of 1 to 10 s",
        work=f"training step on {seconds.sum():.0f} s",
        ours=lambda p: train_on(ours, [((row, frames), targets)], p),
        peers={
            f"{versioned('transformers')}, padded to 10.24 s": (
                lambda p: train_on(Logits(stock.train()), [((full.to(run.device),), targets)], p),
                Goal(ratio=2.5),
            ),
            "ours, padded to the longest": (
                lambda p: train_on(ours, [((padded.to(run.device), frames.to(run.device)), targets)], p),
                Goal(ratio=1.25),
            ),
        },
        rounds=3,
    )


# --- Masked autoencoding ----------------------------------------------------------------------------------------------


def masked_images(run: Run) -> Comparison:
    count = 4 if run.tiny else 64
    sizes = mixed_images(run, count)
    encoder = EncoderConfig(dim=32, depth=1, heads=2) if run.tiny else EncoderConfig(dim=384, depth=12, heads=6)
    config = MaskedConfig(ratio=0.75, dim=32 if run.tiny else 192, depth=1 if run.tiny else 4, heads=2)
    noise = torch.rand(count, 24, 24)

    def step(kind: type[MaskedAutoencoder]) -> Callable[[str], Work]:
        torch.manual_seed(0)
        model = kind(ViT(ViTConfig(image_size=384, classes=0, encoder=encoder)), config, 768).train()
        return lambda p: train_on(Loss(model), [((sizes, noise), torch.zeros(1, dtype=torch.long))], p)

    return Comparison(
        what=f"MAE of ViT-S/16, {count} images of 64 to 384 pixels a side",
        work="training step, 3 of 4 patches masked",
        ours=step(MaskedAutoencoder),
        peers={"ours, padded to the largest": (step(PaddedAutoencoder), Goal(ratio=1.15))},
        rounds=3,
    )


# --- Growth -----------------------------------------------------------------------------------------------------------


def growth(run: Run) -> Iterator[Row]:
    """Twice as many sequences of the same lengths take twice the time."""
    config = EncoderConfig(dim=32, depth=1, heads=2) if run.tiny else EncoderConfig(dim=384, depth=6, heads=6)
    model = Encoder(config).train()
    lengths = [10, 20] if run.tiny else [16, 100, 333, 50, 200, 77, 150, 98] * 4

    def step(copies: int) -> Work:
        places = [Place(n) for n in lengths] * copies
        tokens = Tokens(torch.randn(1, sum(lengths) * copies, config.dim), packing=Packing.of(places))
        return lambda: pool(model(tokens), "mean").square().mean().backward()

    found, _ = interleave_with_products({copies: step(copies) for copies in (1, 2, 4)}, run, 7)
    for copies in (2, 4):
        yield Row(
            what=f"Encoder of ViT-S's width, {sum(lengths):,} tokens in {len(lengths)} sequences",
            work=f"forward and backward pass; {copies} times as many, by their number",
            peer="ours, once as many",
            ours=Timing(tuple(seconds / copies for seconds in found[copies].rounds)),
            theirs=found[1],
            goal=Goal(ratio=0.9),
        )
