"""What training changes, and what a checkpoint keeps of it: weights, their average, the optimiser, and counters."""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..errors import UserError
from .checkpoint import State
from .config import TrainConfig
from .monitor import Monitor
from .optim import ema_decay, make_optimizer
from .patience import Patience
from .processes import (
    distribute,
    load_model_state,
    load_optimizer_state,
    model_state,
    optimizer_state,
)


def _follow(decay: float, averages: Any, weights: Any, updates: Any) -> None:
    """An update of the exponential moving average of the weights."""
    get_ema_multi_avg_fn(ema_decay(decay, int(updates)))(averages, weights, updates)


class TrainingState:
    """A model in training, on this process's device, with its optimiser. samples: to train on."""

    def __init__(self, model: nn.Module, samples: int, config: TrainConfig, accelerator: Accelerator):
        self.accelerator, self.samples = accelerator, samples
        self.average = AveragedModel(model, multi_avg_fn=partial(_follow, config.ema)) if config.ema else None
        sharded = config.shard and accelerator.num_processes > 1
        self.unsharded = copy.deepcopy(model) if sharded else None
        if config.compile:
            model.compile()
        self.prepared = distribute(accelerator, model, config.shard)  # what is called: DDP's wrapper around the model
        self.model: nn.Module = accelerator.unwrap_model(self.prepared)
        if self.average is not None:
            self.average.to(accelerator.device)
            if sharded:
                distribute(accelerator, self.average.module, shard=True)
        self.raw_optimizer = make_optimizer(self.model, config)
        self.optimizer = accelerator.prepare(self.raw_optimizer)
        self.monitor = Monitor(self.model, record_calls=not config.compile)
        self.step = 0
        self.is_updating = False  # the weights are between two steps
        self.lr_factor = 1.0  # rollbacks lower it
        self.skipped_steps = 0
        self.patience = Patience(config.patience)
        self.pending_row: dict[str, Any] | None = None  # the row of a step whose evaluation a signal interrupted

    @property
    def evaluated_model(self) -> nn.Module:
        """The average of the weights where there is one."""
        return self.prepared if self.average is None else self.average.module

    def trained_model(self) -> nn.Module:
        """The whole model on the CPU, with the average of the weights where there is one."""
        return self.whole_model().cpu()

    def whole_model(self) -> nn.Module:
        """As `trained_model`, where it is: the very one that is trained, unless that is sharded."""
        model = self.model if self.average is None else self.average.module
        if self.unsharded is not None:
            load_model_state(self.unsharded, model_state(model))
            model = self.unsharded
        return model

    def capture(self) -> tuple[dict[str, Tensor], State]:
        """The weights and everything else that a checkpoint keeps. All processes must call it."""
        state: State = {
            "optimizer": optimizer_state(self.model, self.raw_optimizer),
            "samples": self.samples,
            "lr_factor": self.lr_factor,
            "skipped_steps": self.skipped_steps,
            "monitor": self.monitor.state(),
            "patience": self.patience.state(),
        }
        if self.average is not None:
            state["average"] = model_state(self.average)
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        if self.pending_row is not None:
            state["pending_row"] = self.pending_row
        return model_state(self.model), state

    def restore(self, step: int, weights: Mapping[str, Tensor], state: State) -> None:
        average = state.get("average")
        if self.average is not None and average is None:
            raise UserError("The checkpoint has no running average of the weights: leave --train.ema at 0.")
        if (samples := state.get("samples", self.samples)) != self.samples:
            raise UserError(
                f"The run began with {samples:,} training samples, and there are {self.samples:,} now: go on with the "
                "same data, or start a new run."
            )
        load_model_state(self.model, weights)
        load_optimizer_state(self.model, self.raw_optimizer, state["optimizer"])
        self.step, self.lr_factor, self.skipped_steps = step, state["lr_factor"], state["skipped_steps"]
        self.pending_row = state.get("pending_row")
        self.monitor.load(state["monitor"])
        self.patience.load(state.get("patience"))
        if self.average is not None and average is not None:
            load_model_state(self.average, average)
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
