"""BERT-small (512 wide, 4 deep) against transformers' with SDPA, of the same weights.

Texts of equal length; then texts whose lengths spread log-uniformly from 16 to 512, the same in both: ours in batches
of like length, transformers' in random ones padded to the longest. Those have their limit without any padding.
Dropout is on the hidden states alone, but in one row on attention weights too, as BERT is usually trained: it takes
torch's attention on a CPU off its fast path.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from core.training.sampling import Order
from text import from_hf
from text.datasets import collate_padded

from .limit import interleave_with_products, operations
from .pair import Logits, Pair, compare, train_on
from .row import Goal, Row, Run, versioned

VOCABULARY, CLASSES = 30_522, 2


class Masked(nn.Module):
    """transformers' BERT as ours is called: the mask boolean, or none."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.model(ids, attention_mask=None if mask is None else mask.long()).logits


def bert(tiny: bool, attention_dropout: float = 0.0) -> BertForSequenceClassification:
    shape = {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 2048}
    if tiny:
        shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(
        **shape,
        attention_probs_dropout_prob=attention_dropout,
        num_labels=CLASSES,
        attn_implementation="sdpa",
    )
    return BertForSequenceClassification(config)


def pair(tiny: bool, batch: int = 8, attention_dropout: float = 0.0) -> Pair:
    length, peer = 16 if tiny else 512, bert(tiny, attention_dropout)
    dropout = f", attention dropout {attention_dropout}" if attention_dropout else ""
    return Pair(
        what=f"BERT-small, {length} tokens, batch {batch}{dropout}",
        peer=versioned("transformers"),
        ours=from_hf(peer),
        theirs=Logits(peer),
        inputs=torch.randint(1000, VOCABULARY, (batch, length)),
    )


def spread_batches(lengths: list[int], batch: int) -> list[list]:
    """All texts once: in batches of like length, in random ones, and each alone."""
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(1000, VOCABULARY, (n,), generator=generator) for n in lengths]
    samples = [(ids, torch.tensor(number % CLASSES)) for number, ids in enumerate(texts)]
    orders = Order(0, len(texts), batch, lengths, bucket=True), Order(0, len(texts), batch)
    gather = partial(collate_padded, pad=0)
    batches = [
        [gather([samples[index] for _, index in order.step(step)]) for step in range(len(texts) // batch)]
        for order in orders
    ]
    return [*batches, [((ids[None],), target[None]) for ids, target in samples]]


def of_spread_lengths(run: Run) -> Iterator[Row]:
    torch.manual_seed(0)
    count, batch = (4, 2) if run.tiny else (128, 8)
    stock = bert(run.tiny)
    ours, theirs = from_hf(stock).train(), Masked(stock).train()
    lengths = np.exp(np.random.default_rng(0).uniform(np.log(16), np.log(512), count)).astype(int).tolist()
    bucketed, mixed, alone = spread_batches(lengths, batch)
    work = {}
    for precision in run.precisions:
        work[f"ours {precision}"] = train_on(ours, bucketed, precision)
        work[f"theirs {precision}"] = train_on(theirs, mixed, precision)
    needed = operations(train_on(ours, alone))
    found, peaks = interleave_with_products(work, run, 5, run.precisions)
    padded = [sum(batch[0][0].numel() for batch in batches) for batches in (bucketed, mixed)]
    for p in run.precisions:
        yield Row(
            what=f"BERT-small, {count} texts of 16 to 512 tokens",
            work=f"training on {sum(lengths):,} tokens, padded to {padded[0]:,} (ours) and {padded[1]:,}, {p}",
            peer=versioned("transformers"),
            ours=found[f"ours {p}"],
            theirs=found[f"theirs {p}"],
            limit=needed / peaks[p],
            goal=Goal(ratio=1.8),
        )


def rows(run: Run) -> Iterator[Row]:
    yield from compare(pair, run, inference=15, training=11)
    with_dropout = partial(pair, attention_dropout=0.1)
    yield from compare(with_dropout, run, training=7, precisions=["fp32"], goals={"training step, fp32": 1.5})
    yield from of_spread_lengths(run)
