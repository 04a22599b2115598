"""Steps that have each of their samples several times, augmented differently (Hoffer et al. 2020, section 3)."""

from .sampling import Key, SampleStream


class RepeatedOrder(SampleStream):
    """The samples of another order, each so many times side by side; each time has an epoch number of its own."""

    def __init__(self, order: SampleStream, times: int):
        super().__init__(order.seed, times * order.size)
        self.order, self.times, self.lengths = order, times, order.lengths

    def start(self, step: int) -> int:
        return self.times * self.order.start(step)

    def parts(self, step: int, count: int) -> list[list[Key]]:
        return [self._repeated(part) for part in self.order.parts(step, count)]

    def step(self, step: int) -> list[Key]:
        return self._repeated(self.order.step(step))

    def _repeated(self, keys: list[Key]) -> list[Key]:
        times = range(self.times)
        return [(self.times * epoch + time, index) for epoch, index in keys for time in times]
