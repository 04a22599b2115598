"""Things that the kit can be given: each must get a verdict or one sentence, never a traceback or a silent pass."""

import threading
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def body(self, x, mask=None):
        return x + self.attention(x, x, x, key_padding_mask=None if mask is None else ~mask)[0]

    def forward(self, x, mask=None):
        return self.body(x, mask)


class GivesAPair(Plain):
    def forward(self, x, mask=None):
        return self.body(x, mask), None


class GivesADict(Plain):
    def forward(self, x, mask=None):
        return {"hidden": self.body(x, mask)}


class GivesAnOutput(Plain):
    def forward(self, x, mask=None):
        return SimpleNamespace(last_hidden_state=self.body(x, mask))


class GivesNothing(Plain):
    def forward(self, x, mask=None):
        self.body(x, mask)


class GivesAnArray(Plain):
    def forward(self, x, mask=None):
        return self.body(x, mask).detach().numpy()


class GivesSparse(Plain):
    def forward(self, x, mask=None):
        return self.body(x, mask).to_sparse()


class GivesWholeNumbers(Plain):
    def forward(self, x, mask=None):
        return self.body(x, mask).long()


class GivesNaN(Plain):
    def forward(self, x, mask=None):
        return self.body(x, mask) * torch.nan


class LosesAToken(Plain):
    def forward(self, x, mask=None):
        return self.body(x, mask)[:, :-1]


class Raises(Plain):
    def forward(self, x, mask=None):
        raise RuntimeError("this way not\nnor that")


class Exits(Plain):
    def forward(self, x, mask=None):
        raise SystemExit(0)


class CallsItself(Plain):
    def forward(self, x, mask=None):
        return self(x, mask)


class OnMeta(Plain):
    def __init__(self):
        super().__init__()
        self.to("meta")


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.LazyLinear(8)

    def forward(self, x):
        return self.linear(x)


class WithoutParameters(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x)


class Frozen(Plain):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)


class Prints(Plain):
    def forward(self, x, mask=None):
        print("here I am")
        return self.body(x, mask)


class WritesIntoItsInput(Plain):
    def forward(self, x, mask=None):
        return self.body(x.mul_(2), mask)


class DrawsRandomNumbers(Plain):
    def forward(self, x, mask=None):
        return self.body(x, mask) + 0.1 * torch.rand(())


class NeedsGradientsOff(Plain):
    def forward(self, x, mask=None):
        if torch.is_grad_enabled():
            raise RuntimeError("call me under torch.no_grad()")
        return self.body(x, mask)


class SwitchesGradientsOff(Plain):
    def forward(self, x, mask=None):
        torch.set_grad_enabled(False)
        return self.body(x, mask)


class ChangesTheDefault(Plain):
    def forward(self, x, mask=None):
        torch.set_default_dtype(torch.float64)
        return self.body(x, mask)


class OnlyByName(Plain):
    def forward(self, *, x, mask=None):
        return self.body(x, mask)


class OnlyFp64(Plain):
    def __init__(self):
        super().__init__()
        self.double()

    def forward(self, x, mask=None):
        if x.dtype != torch.float64:
            raise TypeError("fp64 only")
        return self.body(x, mask)


class WithALock(Plain):
    """It can't be copied."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class MaskOfAnotherKind(Plain):
    """Its mask is of no kind that the kit knows."""

    def forward(self, x, valid_tokens=None):
        return self.body(x, None if valid_tokens is None else valid_tokens["mask"])


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return self.linear(x) + x.mean(0)


def scripted():
    return torch.jit.script(Scripted())


def compiled():
    return torch.compile(Plain(), backend="eager")


def quantised():
    """Weights in eight bits; the samples of a batch share the scale of what comes in."""
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 8)), {nn.Linear})


def not_made():
    raise ValueError("there are no weights")


def makes_nothing():
    return None


with_a_lock = WithALock()
number = 3


def pair_of_attention(q, k, v):
    return F.scaled_dot_product_attention(q, k, v), None


def attention_by_name(*, q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


async def attention_later(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def attention_of_itself(q, k, v):
    return attention_of_itself(q, k, v)


def loop_that_exits(job):
    raise SystemExit(0)


def loop_of_nothing(job):
    return None
