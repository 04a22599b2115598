"""BERT-small (512 wide, 4 deep) against transformers with SDPA: `python -m benchmarks.bert`. Four minutes on 2 cores.

Texts of 512 tokens, in inference and training; then training on texts whose lengths spread log-uniformly from 16 to
512: ours in batches of like length, transformers' in random ones, the same texts in all.
"""

import warnings
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from core.training.processes import has_fast_bf16
from core.training.sampling import Order
from text import from_hf
from text.data import collate

from .timing import interleave, matmul_peak

BATCH, LENGTH, VOCABULARY, CLASSES = 8, 512, 30_522, 2
SPREAD = 128  # texts of the third comparison


def logits_of(model, ids, mask):
    """Of either: transformers' models return an object, and take a mask of integers."""
    if isinstance(model, transformers.PreTrainedModel):
        return model(ids, attention_mask=None if mask is None else mask.long()).logits
    return model(ids, mask)


def train_steps(model, batches, precision):
    """One step after the other."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def steps():
        for (ids, mask), targets in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = F.cross_entropy(logits_of(model, ids, mask), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return steps


def inference(model, ids):
    @torch.inference_mode()
    def run():
        logits_of(model, ids, None)

    return run


def spread_batches(lengths):
    """All texts once: in batches of like length, and in random ones."""
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(1000, VOCABULARY, (n,), generator=generator) for n in lengths]
    samples = [(ids, torch.tensor(number % CLASSES)) for number, ids in enumerate(texts)]
    orders = Order(0, SPREAD, BATCH, lengths), Order(0, SPREAD, BATCH)
    gather = partial(collate, pad=0)
    return [
        [gather([samples[index] for _, index in order.step(step)]) for step in range(SPREAD // BATCH)]
        for order in orders
    ]


def main() -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        intermediate_size=2048,
        attention_probs_dropout_prob=0.0,  # in both: on a CPU it takes attention off the fast path
        num_labels=CLASSES,
    )
    config._attn_implementation = "sdpa"
    peer = transformers.BertForSequenceClassification(config)
    ours = from_hf(peer)
    ids, targets = torch.randint(1000, VOCABULARY, (BATCH, LENGTH)), torch.randint(0, CLASSES, (BATCH,))

    peer.eval(), ours.eval()
    forward = interleave({"ours": inference(ours, ids), "peer": inference(peer, ids)}, rounds=21)
    peer.train(), ours.train()
    precisions = ["fp32", "bf16"] if has_fast_bf16("cpu") else ["fp32"]
    equal = [((ids, None), targets)]
    work = {}
    for precision in precisions:
        work[f"ours {precision}"] = train_steps(ours, equal, precision)
        work[f"peer {precision}"] = train_steps(peer, equal, precision)
    training = interleave(work, rounds=11)

    lengths = np.exp(np.random.default_rng(0).uniform(np.log(16), np.log(512), SPREAD)).astype(int).tolist()
    bucketed, mixed = spread_batches(lengths)
    work = {}
    for precision in precisions:
        work[f"ours {precision}"] = train_steps(ours, bucketed, precision)
        work[f"peer {precision}"] = train_steps(peer, mixed, precision)
    spread = interleave(work, rounds=5, warmup=1)

    # Multiply-adds * 2 of the matrix products: 4 blocks of 12 dim^2 a token and 2 dim a pair.
    dim = config.hidden_size
    work_forward = BATCH * 4 * (2 * LENGTH * 12 * dim**2 + 4 * LENGTH**2 * dim)
    peak = matmul_peak()
    print(f"BERT-small, {LENGTH} tokens, batch {BATCH}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"fp32 matrix products peak at {peak / 1e9:.0f} GFLOP/s\n")
    print(f"{'':<18}{'ours ms':>9}{'peer ms':>9}{'ratio':>8}{'quartiles':>16}{'of the limit':>14}")
    rows = [("inference fp32", forward["ours"], forward["peer"], 1)]
    rows += [(f"step {p}", training[f"ours {p}"], training[f"peer {p}"], 3) for p in precisions]
    rows += [(f"16 to 512 {p}", spread[f"ours {p}"], spread[f"peer {p}"], None) for p in precisions]
    for name, mine, theirs, passes in rows:
        middle, low, high = mine.ratio(theirs)
        limit = f"{passes * work_forward / peak / mine.median:.0%}" if passes and name.endswith("fp32") else ""
        quartiles = f"{low:.3f} - {high:.3f}"
        print(f"{name:<18}{mine.median * 1e3:>9.1f}{theirs.median * 1e3:>9.1f}{middle:>8.3f}{quartiles:>16}{limit:>14}")
    tokens = [sum(batch.inputs[0].numel() for batch in batches) for batches in (bucketed, mixed)]
    print(f"\n16 to 512: {sum(lengths):,} tokens are padded to {tokens[0]:,} (ours) and {tokens[1]:,} (peer)")


if __name__ == "__main__":
    main()
