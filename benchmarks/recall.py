"""Recall across 4,096 tokens by sparse attention. `python -m benchmarks.recall` takes ten minutes.

The first tokens of each sequence ask for the values of keys. The last quarter holds a few pairs of key and value, one
token each, among noise (after Arora et al. 2023, section 3: multi-query associative recall). The questions are global
tokens, as for question answering in Longformer (Beltagy et al. 2020, section 5). All patterns are trained for equally
many steps; guessing gives 1 in 8.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset

from core import IGNORE, Batch, Encoder, EncoderConfig, MaskedTokens, Tokens, init_weights
from core.sparse import Global, Local, Pattern, PowersOfTwo
from core.training import Task, TrainConfig, fit
from core.training.sampling import seed_everything

LENGTH, KEYS, VALUES, NOISE = 4096, 8, 8, 4
PAIRS, COPIES, QUESTIONS = 4, 32, 16
VOCABULARY = KEYS * VALUES + KEYS + NOISE  # pairs, questions, noise
PATTERNS: dict[str, Pattern | None] = {
    "dense": None,
    "PowersOfTwo() | Local(256) | Global(16)": PowersOfTwo() | Local(256) | Global(QUESTIONS),
    "Local(256) | Global(16)": Local(256) | Global(QUESTIONS),
    "PowersOfTwo() | Local(256)": PowersOfTwo() | Local(256),
    "Local(256)": Local(256),
}


class Recall(Dataset):
    """Sequences drawn from (seed, index)."""

    def __init__(self, size: int, seed: int):
        self.size, self.seed = size, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        keys = torch.randperm(KEYS, generator=generator)[:PAIRS]
        values = torch.randint(VALUES, (PAIRS,), generator=generator)
        ids = KEYS * VALUES + KEYS + torch.randint(NOISE, (LENGTH,), generator=generator)
        places = LENGTH - 1 - torch.randperm(LENGTH // 4, generator=generator)[: PAIRS * COPIES]
        ids[places] = (keys * VALUES + values).repeat(COPIES)
        asked = torch.randint(PAIRS, (QUESTIONS,), generator=generator)
        targets = torch.full((LENGTH,), IGNORE)
        ids[:QUESTIONS], targets[:QUESTIONS] = KEYS * VALUES + keys[asked], values[asked]
        return ids, targets


class Reader(nn.Module):
    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, config.dim)
        self.head = nn.Linear(config.dim, VALUES)
        init_weights(self)
        self.encoder = Encoder(config)

    def forward(self, ids: Int[Tensor, "b n"], where: Bool[Tensor, "b n"]) -> Float[Tensor, "asked values"]:
        return self.head(self.encoder(Tokens(self.embed(ids))).x[where])


def collate(samples: list) -> Batch:
    ids, targets = (torch.stack(column) for column in zip(*samples, strict=True))
    return Batch((ids,), targets)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recall", description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    rows = []
    for name, pattern in PATTERNS.items():
        for seed in range(options.seeds):
            seed_everything(seed)
            model = Reader(EncoderConfig(dim=64, depth=3, heads=2, rotary="1d", patterns=pattern))
            train = TrainConfig(
                steps=options.steps,
                batch_size=4,
                lr=2e-3,
                warmup=options.steps // 10,
                precision="fp32",
                seed=seed,
                eval_every=options.steps,
                eval_batch_size=4,
                save_every=options.steps,
            )
            with tempfile.TemporaryDirectory() as run:
                data = Recall(100_000, seed=2 * seed), Recall(64, seed=2 * seed + 1)
                found = fit(Task(model, MaskedTokens(), *data, collate, in_memory=True), train, Path(run))
            rows.append(f"{name:<42}{found.metrics['accuracy']:>9.1%}{found.seconds:>9.0f}")
    print("\n".join([f"{'':<42}{'accuracy':>9}{'seconds':>9}", *rows]))


if __name__ == "__main__":
    main()
