"""The options of training."""

from typing import Annotated, Literal

from annotated_types import Interval
from pydantic import Strict

from ..config import BelowOne, Count, Natural, NotNegative, UpToOne, Whole, configclass
from ..errors import UserError

BatchSize = Annotated[Whole, Interval(ge=1, le=2**20)]
LearningRate = Annotated[float, Strict(), Interval(gt=0, le=100)]
Rate = Annotated[float, Strict(), Interval(ge=0, le=100)]
Seed = Annotated[Whole, Interval(ge=0, lt=2**63)]
Device = Literal["auto", "cpu", "cuda", "mps"]
Workers = Annotated[Whole, Interval(ge=0, le=1024)]
TrackerName = Literal["wandb", "mlflow", "trackio"]


@configclass
class TrainConfig:
    steps: Count = 1000
    """Optimiser steps."""
    batch_size: BatchSize = 128
    """Samples per step, in all micro-batches and processes together."""
    tokens_per_batch: Count | None = None
    """Most tokens per step, for samples that differ in length: a step takes samples until one more would exceed them;
    batch_size is then not used."""
    repeats: BatchSize = 1
    """How many times a step has each of its samples, augmented differently (repeated augmentation: Hoffer et al. 2020);
    all of them count in batch_size."""
    accumulate: BatchSize = 1
    """Micro-batches per step: more of them save memory, with the same result."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: Muon (Jordan et al. 2024) for the matrices of the encoder's layers, with steps of the size of AdamW's, and
    AdamW for all else."""
    lr: LearningRate = 1e-3
    """Peak learning rate."""
    min_lr: Rate = 0.0
    """Learning rate at the last step."""
    warmup: Natural = 100
    """Steps in which the learning rate rises linearly to its peak; then it follows the schedule down to min_lr."""
    schedule: Literal["cosine", "linear", "wsd"] = "cosine"
    """How the learning rate falls; wsd (warm-up, stable, decay): it stays at its peak, and falls linearly in the
    cool-down."""
    cooldown: UpToOne = 0.2
    """Share of the steps after the warm-up in which the learning rate falls, with the schedule wsd."""
    weight_decay: Rate = 0.05
    """Weight decay, on matrices only: gains, biases, positions and class tokens do not decay."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    """Decay rates of AdamW's averages of the gradients and of their squares."""
    layer_decay: UpToOne = 1.0
    """Ratio of a layer's learning rate to that of the next layer (0.65 to 0.9 for fine-tuning)."""
    unfreeze: Natural = 0
    """Gradual unfreezing (Howard and Ruder 2018, section 3.3): what follows the encoder is trained from the start, and
    after every so many steps one more layer, the last one first. 0 trains all layers from the start."""
    clip: NotNegative = 1.0
    """Largest norm of the gradient, to which it is clipped; 0 for no clipping."""
    class_loss: Literal["ce", "bce"] = "ce"
    """Loss of classes: the cross-entropy of the softmax, or (bce) the binary cross-entropies of each class against all
    others, also with mixup and label smoothing (Wightman et al. 2021)."""
    class_balance: Literal["none", "weights", "sampling"] = "none"
    """Against classes of unequal size: weights weighs the loss of a sample by the inverse of its class's number of
    training samples; sampling draws each class equally often."""
    label_smoothing: BelowOne = 0.0
    """Label smoothing: the probability that is spread over all classes."""
    ema: BelowOne = 0.0
    """Decay of the exponential moving average of the weights, which is evaluated and saved; 0 for none. It rises to
    this over the first steps: (1 + step) / (10 + step) at most."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the arithmetic; auto: bf16 on hardware that supports it, else fp32."""
    device: Device = "auto"
    """Device; auto: the fastest that is available."""
    shard: bool = False
    """Shard weights, gradients and optimiser state over the processes (FSDP2); otherwise each has a copy (DDP)."""
    compile: bool = False
    """Compile the model with torch.compile: a slower start, faster steps."""
    bucket_lengths: bool = False
    """Put samples with like numbers of tokens into the same batch, which then has less padding; data without padding
    have no use for it."""
    seed: Seed = 0
    """Determines the initial weights, the order of the data, augmentation and dropout."""
    workers: Workers | None = None
    """Processes that load data; None: one per core, or 0 for data in memory."""
    log_every: Count = 10
    """Steps between rows of metrics.jsonl; the first step has a row as well."""
    track: tuple[TrackerName, ...] = ()
    """Trackers that get the same metrics: wandb (Weights & Biases), mlflow, trackio. Their own variables of the
    environment (WANDB_MODE, MLFLOW_TRACKING_URI, ...) say where they are."""
    eval_every: Count = 250
    """Steps between evaluations of the validation set; the test set is evaluated once, at the end."""
    patience: Count | None = None
    """Early stopping: training ends after so many evaluations without a better primary metric on the validation set,
    and what is tested and saved is the best checkpoint, not the last. None: it does not end early."""
    eval_batch_size: BatchSize | None = None
    """Samples per evaluation batch and process; None: twice as many as training takes at a time, which need no more
    memory."""
    save_every: Count = 250
    """Steps between checkpoints."""
    keep: Count = 2
    """How many of the newest checkpoints are kept, besides the best on the validation set."""
    profile: bool = False
    """Write trace.json, a trace of three early steps, which ui.perfetto.dev displays."""
    on_divergence: Literal["halt", "skip", "rollback"] = "halt"
    """If the loss or the gradient is NaN or infinite: halt; skip the step; or roll back to a checkpoint and halve the
    learning rate."""
    on_save_error: Literal["continue", "stop"] = "continue"
    """If a checkpoint cannot be written (a full disk): continue with a message, or stop."""

    def __post_init__(self):
        if self.optimizer == "muon" and self.shard:
            raise UserError("--train.optimizer muon needs whole matrices, which --train.shard cuts: leave one out.")
        if self.min_lr > self.lr:
            raise UserError(f"--train.min-lr {self.min_lr} must be at most --train.lr, which is {self.lr}.")
        if self.tokens_per_batch is not None and self.bucket_lengths:
            raise UserError(
                "--train.bucket-lengths has no effect beside --train.tokens-per-batch: leave one of them out."
            )
        if self.tokens_per_batch is not None and self.repeats > 1:
            raise UserError("--train.repeats does not go with --train.tokens-per-batch: leave one of them out.")
        if self.class_balance == "sampling" and (self.tokens_per_batch is not None or self.bucket_lengths):
            other = "bucket-lengths" if self.bucket_lengths else "tokens-per-batch"
            raise UserError(
                f"--train.class-balance sampling does not go with --train.{other}: leave one of them out, or choose "
                "--train.class-balance weights."
            )
        if self.tokens_per_batch is None and self.batch_size % self.accumulate:
            raise UserError(
                f"--train.batch-size {self.batch_size} cannot be cut into {self.accumulate} equal micro-batches: "
                "choose a --train.accumulate that divides it."
            )
