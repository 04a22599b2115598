"""A run's checkpoints: when they cannot be written, which one a run continues from, and what an error leaves behind."""

import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from accelerate.utils import gather_object

from ..errors import UserError
from ..files import reason
from .checkpoint import Damaged, best_whole, load_checkpoint, newest_whole, save_checkpoint
from .config import TrainConfig
from .processes import any_process
from .state import TrainingState
from .step_log import StepLog


class Saver:
    """Saves the state of a run, and restores it.

    run_id: is written into the checkpoints. begin: is called after each of them.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: Path,
        state: TrainingState,
        log: StepLog,
        run_id: str,
        begin: Callable[[], None],
    ):
        self.config, self.run, self.state, self.log = config, run, state, log
        self.run_id, self.begin = run_id, begin
        self.folder = run / "checkpoints"
        self.saved_step = 0  # of the newest checkpoint

    def save(self, score: float | None = None) -> None:
        """Write a checkpoint, or do as the config says if it cannot be written.

        score: of the validation set, more is better.
        """
        problem = ""
        try:
            self._write(score)
        except OSError as error:
            problem = f"{error.filename or self.run} cannot be written: {reason(error)}"
        if any_process(self.state.accelerator, bool(problem)):
            last = self.state.step == self.config.steps or self.state.patience.exhausted
            if self.config.on_save_error == "stop" or last:
                raise UserError(f"{problem or 'A checkpoint cannot be written'}. Make room, and go on with --resume.")
            self.log.say(f"{problem}: training goes on without it.")

    def _write(self, score: float | None = None) -> None:
        weights, saved = self.state.capture()
        if self.state.accelerator.is_main_process:
            self.log.flush()
            save_checkpoint(self.folder, self.state.step, weights, saved, self.config.keep, score, self.run_id)
            self.begin()
        self.saved_step = self.state.step

    def restore(self) -> bool:
        """Return to the newest checkpoint that is whole; False if there is none."""
        path, damages = newest_whole(self.folder, self.run_id)
        for damage in damages:
            warnings.warn(f"{damage}: going on from the checkpoint before it.", stacklevel=2)
        return self._restore(path)

    def restore_best(self) -> int:
        """After the last step, return to the checkpoint with the best score; the step that it was saved at.

        The weights stay as they are if no checkpoint has a score.
        """
        self._restore(best_whole(self.folder, self.run_id))
        return self.state.step

    def _restore(self, path: Path | None) -> bool:
        accelerator = self.state.accelerator
        if accelerator.num_processes > 1 and len(set(gather_object([str(path)]))) > 1:
            raise UserError(f"Not all processes see the same checkpoints: {self.run} must be on a shared disk.")
        if path is None:
            return False
        try:
            self.state.restore(*load_checkpoint(path))
        except Damaged as damage:
            raise UserError(f"{damage}.") from None
        self.saved_step = self.state.step
        return True

    def rescue(self) -> None:
        """Before an error ends the run, save the steps since the last checkpoint."""
        state = self.state
        if state.unsharded is not None or state.is_updating:  # a sharded model is saved by all processes together
            return
        if state.step > self.saved_step and state.accelerator.is_main_process:
            with suppress(Exception):  # the error that ends the run is more important
                self._write()
