"""What happens when the loss or gradient of a step is not finite: halt, skip the step, or go back to a checkpoint."""

from collections.abc import Callable, Sequence

from ..errors import UserError
from ..objectives.objective import Batch, Objective
from .config import TrainConfig
from .gradients import blame_step
from .saving import Saver
from .state import TrainingState
from .step_log import StepLog

MAX_FAILURES = 5  # steps skipped in a row, or rollbacks, before a run is given up


class Divergence:
    """Acts on steps that fail, and counts them."""

    def __init__(self, config: TrainConfig, objective: Objective, state: TrainingState, saver: Saver, log: StepLog):
        self.config, self.objective, self.state = config, objective, state
        self.saver, self.log = saver, log
        self.failures = 0

    def step_succeeded(self) -> None:
        if self.config.on_divergence == "skip":
            self.failures = 0

    def step_failed(
        self,
        quantity: str,
        micro_batches: Sequence[Batch],
        samples: Sequence[Sequence[int]],
        seed: Callable[[int], None],
    ) -> bool:
        """Act as the config says; True if the run is back at a checkpoint, False if the step is to be skipped.

        quantity: what is not finite, the loss or the gradient. samples: their indices in each micro-batch. seed: sets
        the random numbers of a micro-batch.
        """
        state, policy = self.state, self.config.on_divergence
        step = state.step + 1
        cause = blame_step(state.accelerator, state.prepared, self.objective, micro_batches, samples, seed)
        problem = f"tep {step}: the {quantity} is not finite; {cause}"
        state.optimizer.zero_grad(set_to_none=True)
        self.failures += 1
        if policy == "halt" or self.failures > MAX_FAILURES:
            self.saver.save()
            raise UserError(
                f"S{problem}. The weights before it are saved: lower --train.lr, or choose --train.on-divergence skip "
                "or rollback, and go on with --resume."
            )
        factor = state.lr_factor
        if policy == "rollback" and self.saver.restore():
            state.lr_factor = factor / 2  # of what failed: the checkpoint may be older than the last rollback
            self.log.say(f"s{problem}: back to step {state.step}, the learning rate times {state.lr_factor:g}")
            return True
        self.log.say(f"s{problem}: the step is skipped")
        state.skipped_steps += 1
        return False
