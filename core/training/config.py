"""What a training run can be told."""

from typing import Annotated, Literal

from annotated_types import Interval
from pydantic import Strict

from ..config import BelowOne, Count, Natural, NotNegative, UpToOne, Whole, configclass
from ..errors import UserError

BatchSize = Annotated[Whole, Interval(ge=1, le=2**20)]
LearningRate = Annotated[float, Strict(), Interval(gt=0, le=100)]
Rate = Annotated[float, Strict(), Interval(ge=0, le=100)]
Seed = Annotated[Whole, Interval(ge=0, lt=2**63)]
Workers = Annotated[Whole, Interval(ge=0, le=1024)]


@configclass
class TrainConfig:
    steps: Count = 1000
    """Optimiser steps."""
    batch_size: BatchSize = 128
    """Samples per step, over all micro-batches and processes."""
    accumulate: BatchSize = 1
    """Micro-batches that a step is cut into, to save memory; the result is the same."""
    lr: LearningRate = 1e-3
    """Peak learning rate of AdamW."""
    min_lr: Rate = 0.0
    """Learning rate at the last step."""
    warmup: Natural = 100
    """Steps of linear rise to the peak; a cosine falls from there to min_lr."""
    weight_decay: Rate = 0.05
    """AdamW's, on matrices only: gains, biases, positions and class tokens have none."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    """AdamW's averaging of gradients and of their squares."""
    layer_decay: UpToOne = 1.0
    """Each layer's learning rate is this share of the next one's (0.65 - 0.9 to fine-tune)."""
    unfreeze: Natural = 0
    """Gradual unfreezing: the head trains from the start, and every so many steps the next layer below with it (Howard
    and Ruder 2018, section 3.3); 0: all from the start."""
    clip: NotNegative = 1.0
    """Largest gradient norm; 0 for no clipping."""
    label_smoothing: BelowOne = 0.0
    """Probability spread over all classes."""
    ema: BelowOne = 0.0
    """Decay of a running average of the weights, used for evaluation and prediction; 0 for none."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the hardware multiplies it fast, else fp32."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: the fastest there is."""
    shard: bool = False
    """Spread weights, gradients and optimiser state over the processes (FSDP2) rather than copy them (DDP)."""
    compile: bool = False
    """Compile the model (torch.compile): slower start, faster steps."""
    seed: Seed = 0
    """Fixes initial weights, order of data, augmentation and dropout."""
    workers: Workers | None = None
    """Processes that read data; None: one per core, or 0 for data in memory."""
    log_every: Count = 10
    """Steps between rows of metrics.jsonl, the first step's besides."""
    eval_every: Count = 250
    """Steps between evaluations."""
    eval_batch_size: BatchSize = 256
    """Samples per evaluation batch and process."""
    save_every: Count = 250
    """Steps between checkpoints."""
    keep: Count = 2
    """Newest checkpoints kept, and the best besides."""
    profile: bool = False
    """Write trace.json, what the processor did in three early steps; ui.perfetto.dev shows it."""
    on_divergence: Literal["halt", "skip", "rollback"] = "halt"
    """Where loss or gradient is NaN or inf: stop; leave out the step; or go back to a checkpoint at half the rate."""
    on_save_error: Literal["continue", "stop"] = "continue"
    """Where a checkpoint cannot be written (a full disk): train on and say so, or stop."""

    def __post_init__(self):
        if self.min_lr > self.lr:
            raise UserError(f"--train.min-lr {self.min_lr} must be at most --train.lr, which is {self.lr}.")
        if self.batch_size % self.accumulate:
            raise UserError(
                f"--train.batch-size {self.batch_size} cannot be cut into {self.accumulate} equal micro-batches: "
                "choose a --train.accumulate that divides it."
            )
