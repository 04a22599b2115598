"""A run that will take hours says so soon, and what would make it shorter."""

import pytest
from points import Points, collate
from torch import nn

from core import Classification, UserError
from core.training import Task, TrainConfig, fit, step_log


class Ended(Points):
    """Ends the run at its 600th sample."""

    seen = 0

    def __getitem__(self, index):
        self.seen += 1
        if self.seen == 600:
            raise UserError("enough")
        return super().__getitem__(index)


@pytest.mark.parametrize("steps", [10**9, 60])
def test_a_run_of_hours_says_so_once(steps, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(step_log, "KNOWN_AFTER", 0.01)
    config = TrainConfig(steps=steps, batch_size=12, warmup=5, workers=0, precision="fp32", device="cpu")
    with pytest.raises(UserError, match="enough"):
        fit(Task(nn.Linear(3, 3), Classification(), Ended(60), Points(15), collate), config, tmp_path)
    said = [line for line in capsys.readouterr().out.splitlines() if "At this rate" in line]
    assert len(said) == (steps == 10**9)
    assert all("hours. Fewer steps (--train.steps), a smaller model" in line for line in said)
