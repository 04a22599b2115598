"""Steps in which every class is drawn equally often, whatever its number of samples."""

from typing import Any

import numpy as np
from jaxtyping import Int64

from ..errors import UserError
from .sampling import Key, SampleStream

ROUNDS = 64  # whose orders are drawn together
OF_ROUNDS, OF_SAMPLES = 1, 2  # give the order of classes and that of samples random numbers of their own


def class_numbers(data: Any) -> Int64[np.ndarray, "n"]:
    """The class of each training sample, which a data set may state as `class_numbers`."""
    stated = getattr(data, "class_numbers", None)
    if stated is None or not all(isinstance(number, int) for number in stated) or len(set(stated)) < 2:
        raise UserError(
            "--train.class-balance needs training samples of one class each, and of two classes at least, which these "
            "data do not state (class_numbers): leave it out."
        )
    return np.asarray(stated, dtype=np.int64)


class BalancedOrder(SampleStream):
    """Steps of `batch_size` samples.

    The stream is a sequence of rounds; in each every class is drawn once, in a random order. The samples of a class
    come in permutations: each is seen once before any is seen again. The epoch of a sample counts the permutations of
    its class, so that a sample that is seen again is augmented anew.

    classes: the class of each sample. lengths: of all samples.
    """

    def __init__(self, seed: int, classes: Int64[np.ndarray, "n"], batch_size: int, lengths: np.ndarray | None = None):
        super().__init__(seed, len(classes))
        self.batch_size, self.lengths = batch_size, lengths
        self.members = [np.flatnonzero(classes == number) for number in np.unique(classes)]
        self._rounds: tuple[int, np.ndarray] = -1, np.zeros(0)
        self._samples: dict[int, tuple[int, np.ndarray]] = {}

    def start(self, step: int) -> int:
        return step * self.batch_size

    def parts(self, step: int, count: int) -> list[list[Key]]:
        keys, size = self.step(step), self.batch_size // count
        return [keys[first : first + size] for first in range(0, count * size, size)]

    def step(self, step: int) -> list[Key]:
        keys = []
        for position in range(self.start(step), self.start(step + 1)):
            number, place = divmod(position, len(self.members))
            chosen = int(self._classes(number)[place])
            epoch, offset = divmod(number, len(self.members[chosen]))
            keys.append((epoch, int(self._permuted(chosen, epoch)[offset])))
        return keys

    def _classes(self, number: int) -> Int64[np.ndarray, "classes"]:
        """The order of the classes in a round."""
        several, row = divmod(number, ROUNDS)
        if self._rounds[0] != several:
            random_state = np.random.default_rng([self.seed, several, OF_ROUNDS])
            orders = np.tile(np.arange(len(self.members)), (ROUNDS, 1))
            self._rounds = several, random_state.permuted(orders, axis=1)
        return self._rounds[1][row]

    def _permuted(self, chosen: int, epoch: int) -> Int64[np.ndarray, "samples"]:
        """The samples of a class in one epoch of theirs."""
        if self._samples.get(chosen, (-1,))[0] != epoch:
            random_state = np.random.default_rng([self.seed, epoch, chosen, OF_SAMPLES])
            self._samples[chosen] = epoch, random_state.permutation(self.members[chosen])
        return self._samples[chosen][1]
