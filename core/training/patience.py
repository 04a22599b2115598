"""Early stopping: how many evaluations of the validation set passed without a better score (Prechelt 1998)."""

import math

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict


@with_config(ConfigDict(strict=True))
class Waiting(TypedDict):
    """What a checkpoint keeps of it."""

    best: float
    waited: int


class Patience:
    """limit: the number of evaluations without a better score after which training stops; None: it does not."""

    def __init__(self, limit: int | None):
        self.limit = limit
        self.best, self.waited = -math.inf, 0

    def judge(self, score: float | None) -> bool:
        """Whether the score of an evaluation is the best so far; more is better, None is for one that is not finite."""
        better = score is not None and score > self.best
        self.best, self.waited = (score, 0) if better and score is not None else (self.best, self.waited + 1)
        return better

    @property
    def exhausted(self) -> bool:
        return self.limit is not None and self.waited >= self.limit

    def state(self) -> Waiting:
        return {"best": self.best, "waited": self.waited}

    def load(self, state: Waiting | None) -> None:
        """None: of a checkpoint of a run that did not count."""
        self.best, self.waited = (state["best"], state["waited"]) if state is not None else (-math.inf, 0)
