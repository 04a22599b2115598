"""The configuration of an experiment: its data, model and training, and the model that it starts from."""

from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from ..adapters import Bottleneck, LoRA, Prompt
from ..config import configclass
from ..errors import UserError
from ..objectives.distillation import DistillConfig
from ..training.config import TrainConfig
from .sizes import SizeName


@configclass
class Experiment:
    """The configuration of a run. Each modality has a subclass with types for `data` and `model`."""

    data: Any = None
    model: Any = None
    train: TrainConfig = field(default_factory=TrainConfig)
    size: Literal["auto"] | SizeName | None = None
    """The model: tiny (1 to 3 million weights), small (21) or base (85). For your own data, what is cut, masked and
    trained follows the data; auto: the size does, too. None: all is as the defaults state."""
    init: str | None = None
    """Start from a run, a directory written by save_pretrained, a stock checkpoint, or package:NAME, a Python package
    with weights. Embedding and encoder, with their shape, come from there; the head is new."""
    tune: str = "full"
    """The part of that model to train: full, head, last:N (layers), bitfit (biases), lora, adapter or prompt."""
    lora: LoRA = field(default_factory=LoRA)
    adapter: Bottleneck = field(default_factory=Bottleneck)
    prompt: Prompt = field(default_factory=Prompt)
    distill: DistillConfig = field(default_factory=DistillConfig)
    probe_start: bool = False
    """Also measure the accuracy of a linear probe of the starting model, for the report (classes only; slow)."""
    out: Path | None = None
    """Directory of the run; by default runs/<experiment>, with a number if that is taken."""
    quiet: bool = False
    """Show no progress, neither a bar nor metrics: only alarms and the result."""
    resume: bool = False
    """Resume the run in --out (by default the newest of this experiment) from its last checkpoint."""

    def __post_init__(self):
        if self.init == "":
            raise UserError("--init is empty: name a run, a directory, or a stock checkpoint, or leave it out.")
