"""The settings of an experiment: its data, its model, its training, and what it starts from."""

from dataclasses import field
from pathlib import Path
from typing import Any

from ..adapters import Bottleneck, LoRA, Prompt
from ..config import configclass
from ..errors import UserError
from ..training.config import TrainConfig


@configclass
class Experiment:
    """Everything a run is made from; each modality adds its `data` and types its `model`."""

    data: Any = None
    model: Any = None
    train: TrainConfig = field(default_factory=TrainConfig)
    init: str | None = None
    """Start from a run, a directory written by save_pretrained, or a stock checkpoint: its embedding and encoder,
    whatever --model says of their shape; the head starts afresh."""
    tune: str = "full"
    """What of it to train: full, head, last:N (layers), bitfit (biases), lora, adapter or prompt."""
    lora: LoRA = field(default_factory=LoRA)
    adapter: Bottleneck = field(default_factory=Bottleneck)
    prompt: Prompt = field(default_factory=Prompt)
    probe_start: bool = False
    """Also measure what a linear probe of the start is worth, for the report (classes; it takes a while)."""
    out: Path | None = None
    """Directory of the run; runs/<experiment>, numbered if taken, by default."""
    resume: bool = False
    """Go on with the run in --out (by default the newest of this experiment) from its last checkpoint."""

    def __post_init__(self):
        if self.init == "":
            raise UserError("--init is empty: name a run, a directory, or a stock checkpoint, or leave it out.")
