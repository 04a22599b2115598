"""Training loops, each as its library's documentation writes it, for the conformance kit; beside them, ours.

What is expected to fail says why: known upstream, or not promised.
"""

from typing import Any

import lightning
import torch
import torch.nn.functional as F
import transformers
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from core.private_torch import reset_accelerator
from core.testing import LOOP, LoopJob, LoopOutcome, LoopSubject

from .loop_ours import OURS

# --- transformers -----------------------------------------------------------------------------------------------------


class ForTrainer(nn.Module):
    """Trainer calls a model with the names that its collator gives, and takes logits from what it returns."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.model(tokens)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def total_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """As compute_loss_func: "the number of items in the entire accumulated batch" is what it divides by."""
    if num_items_in_batch is None:
        return F.cross_entropy(outputs["logits"], labels)
    return F.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch


def named(samples: list) -> dict[str, Tensor]:
    return dict(zip(("tokens", "labels"), default_collate(samples), strict=True))


def trainer(job: LoopJob) -> LoopOutcome:
    reset_accelerator()
    arguments = transformers.TrainingArguments(
        output_dir=str(job.folder),
        max_steps=job.steps,
        per_device_train_batch_size=job.batch_size // job.accumulate,
        per_device_eval_batch_size=job.evaluation_batch_size,
        gradient_accumulation_steps=job.accumulate,
        learning_rate=job.lr,
        max_grad_norm=job.clip or 0.0,
        seed=job.seed,
        eval_strategy="steps",
        eval_steps=job.evaluate_every,
        save_strategy="steps",
        save_steps=job.save_every,
        remove_unused_columns=False,
        use_cpu=job.device == "cpu",
        report_to="none",
        disable_tqdm=True,
    )
    engine = transformers.Trainer(
        ForTrainer(job.model), arguments, named, job.train, job.evaluation, compute_loss_func=total_loss
    )
    engine.remove_callback(transformers.PrinterCallback)
    engine.train(resume_from_checkpoint=job.resume)
    return LoopOutcome(job.model, engine.evaluate()["eval_loss"])


# --- Lightning --------------------------------------------------------------------------------------------------------


class ForLightning(lightning.LightningModule):
    def __init__(self, job: LoopJob):
        super().__init__()
        self.model, self.job = job.model, job

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        tokens, targets = batch
        return F.cross_entropy(self.model(tokens), targets)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        tokens, targets = batch
        self.log("loss", F.cross_entropy(self.model(tokens), targets))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), self.job.lr)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, self.job.steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def lightning_trainer(job: LoopJob) -> LoopOutcome:
    lightning.seed_everything(job.seed, verbose=False)
    engine = lightning.Trainer(
        accelerator="cpu" if job.device == "cpu" else "auto",
        devices=1,
        max_steps=job.steps,
        accumulate_grad_batches=job.accumulate,
        gradient_clip_val=job.clip,
        check_val_every_n_epoch=None,
        val_check_interval=job.evaluate_every * job.accumulate,
        callbacks=[ModelCheckpoint(job.folder, every_n_train_steps=job.save_every, save_last=True)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    training = DataLoader(job.train, job.batch_size // job.accumulate, shuffle=True)
    evaluation = DataLoader(job.evaluation, job.evaluation_batch_size)
    model = ForLightning(job)
    engine.fit(model, training, evaluation, ckpt_path="last" if job.resume else None)
    return LoopOutcome(model, engine.validate(model, evaluation, verbose=False)[0]["loss"])


# --- Accelerate -------------------------------------------------------------------------------------------------------


class Progress:
    """Where a run is, which accelerator.save_state saves, too: register_for_checkpointing."""

    def __init__(self):
        self.step = self.epoch = self.batch = 0

    def state_dict(self) -> dict[str, int]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, int]) -> None:
        vars(self).update(state)


def accelerate_loop(job: LoopJob, seedable: bool = False) -> LoopOutcome:
    """As the guides of gradient accumulation and of checkpoints write it; seedable: with the sampler made for that."""
    reset_accelerator()
    set_seed(job.seed)
    accelerator = Accelerator(
        cpu=job.device == "cpu",
        gradient_accumulation_steps=job.accumulate,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=seedable),
    )
    optimizer = torch.optim.AdamW(job.model.parameters(), job.lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, job.steps)
    training = DataLoader(job.train, job.batch_size // job.accumulate // accelerator.num_processes, shuffle=True)
    evaluation = DataLoader(job.evaluation, job.evaluation_batch_size)
    model, optimizer, training, evaluation, schedule = accelerator.prepare(
        job.model, optimizer, training, evaluation, schedule
    )
    done = Progress()
    accelerator.register_for_checkpointing(done)
    if job.resume:
        accelerator.load_state(str(max(job.folder.glob("step_*"))))
    while done.step < job.steps:
        training.set_epoch(done.epoch)
        model.train()
        for tokens, targets in accelerator.skip_first_batches(training, done.batch) if done.batch else training:
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(tokens), targets))
                if accelerator.sync_gradients and job.clip:
                    accelerator.clip_grad_norm_(model.parameters(), job.clip)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            done.batch += 1
            if not accelerator.sync_gradients:
                continue
            done.step += 1
            if done.step % job.evaluate_every == 0:
                evaluated(accelerator, model, evaluation)
                model.train()
            if done.step % job.save_every == 0:
                accelerator.save_state(str(job.folder / f"step_{done.step}"))
            if done.step == job.steps:
                break
        done.epoch, done.batch = done.epoch + 1, 0
    return LoopOutcome(model, evaluated(accelerator, model, evaluation))


@torch.no_grad()
def evaluated(accelerator: Accelerator, model: nn.Module, evaluation: DataLoader) -> float:
    model.eval()
    losses = []
    for tokens, targets in evaluation:
        each = F.cross_entropy(model(tokens), targets, reduction="none")
        each, targets = accelerator.gather_for_metrics((each, targets))
        losses.append(each[targets != -100])
    return torch.cat(losses).mean().item()


def accelerate_seedable(job: LoopJob) -> LoopOutcome:
    return accelerate_loop(job, seedable=True)


# --- All of them ------------------------------------------------------------------------------------------------------

NOBODY_PROMISES = {"isolated"}  # the iterator of a DataLoader draws a random number, by design (pytorch/pytorch#11062)
ANEW = "not promised: it warns that a loader begins the epoch anew (Lightning-AI/pytorch-lightning#18780)"
ORDER = "known: the order is drawn anew (huggingface/accelerate#2016); use_seedable_sampler keeps it"
DRAWN = "found here: docs/findings/accelerate-resumed-dropout.md"
SHORT = "a loss is always divided by the number of micro-batches asked for"
LOOPS = {
    "ours_fit": OURS,
    "hf_trainer": LoopSubject(
        trainer,
        name="transformers: Trainer",
        claims=LOOP - NOBODY_PROMISES,
        expected_failures={
            "evaluation-is-the-mean-over-targets": "known: batches weigh by samples (huggingface/transformers#39241)"
        },
    ),
    "lightning": LoopSubject(
        lightning_trainer,
        name="Lightning",
        claims=LOOP - NOBODY_PROMISES - {"targets"},
        expected_failures={
            "short-accumulation-is-a-mean-too": f"known: {SHORT} (Lightning-AI/pytorch-lightning#19987)",
            "evaluation-is-the-mean-over-targets": "not promised: self.log weighs by samples, or by batch_size=",
            "samples-go-on-after-resuming": ANEW,
            "resumed-equals-uninterrupted": ANEW,
            "resumed-amid-accumulation-equals-uninterrupted": ANEW,
        },
    ),
    "accelerate": LoopSubject(
        accelerate_loop,
        name="Accelerate",
        claims=LOOP - NOBODY_PROMISES - {"targets"},
        expected_failures={
            "short-accumulation-is-a-mean-too": "found here: docs/findings/accelerate-short-accumulation.md",
            "samples-go-on-after-resuming": ORDER,
            "resumed-equals-uninterrupted": ORDER,
            "resumed-amid-accumulation-equals-uninterrupted": ORDER,
        },
    ),
    "accelerate_seedable": LoopSubject(
        accelerate_seedable,
        name="Accelerate, use_seedable_sampler",
        claims=LOOP - NOBODY_PROMISES - {"targets"},
        expected_failures={
            "short-accumulation-is-a-mean-too": "found here: docs/findings/accelerate-short-accumulation.md",
            "resumed-equals-uninterrupted": DRAWN,
            "resumed-amid-accumulation-equals-uninterrupted": DRAWN,
        },
    ),
}
