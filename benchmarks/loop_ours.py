"""Our training loop, for the conformance kit."""

import contextlib
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import default_collate

from core.objectives import Batch
from core.private_torch import reset_accelerator
from core.testing import LOOP, LoopJob, LoopOutcome, LoopSubject
from core.training import Task, TrainConfig, fit


class EachToken:
    """A class for each token."""

    primary, lower_is_better, percent = "loss", True, False

    def count(self, batch: Batch) -> Tensor:
        return (batch.targets != -100).sum()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(*batch.inputs).float(), batch.targets, reduction="sum")

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        losses = F.cross_entropy(model(*batch.inputs), batch.targets, reduction="none")
        return {"losses": losses, "valid": batch.targets != -100}

    def metrics(self, results: Any) -> dict[str, float]:
        return {"loss": results["losses"][results["valid"]].mean().item()}


def collate(samples: list) -> Batch:
    tokens, targets = default_collate(samples)
    return Batch((tokens,), targets)


def ours(job: LoopJob) -> LoopOutcome:
    task = Task(job.model, EachToken(), job.train, job.evaluation, collate, validation=job.evaluation, in_memory=True)
    config = TrainConfig(
        steps=job.steps,
        batch_size=job.batch_size,
        accumulate=job.accumulate,
        lr=job.lr,
        warmup=3,
        clip=job.clip or 0.0,
        ema=job.ema or 0.0,
        precision="fp16" if job.scaler else "fp32",
        device=job.device,
        seed=job.seed,
        eval_every=job.evaluate_every,
        eval_batch_size=job.evaluation_batch_size,
        save_every=job.save_every,
    )
    reset_accelerator()
    with contextlib.redirect_stdout(None):
        done = fit(task, config, job.folder, resume=job.resume)
    return LoopOutcome(job.model, done.metrics["loss"], done.model)


OURS = LoopSubject(ours, name="ours: core.training.fit", claims=LOOP | {"ema", "processes"})
