"""What a loop is given to train, which records what the loop does: samples seen, and each update of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import Dataset

from .measures import Failed

TOKENS, CLASSES, WIDTH = 5, 3, 8
FIRST_OF_EVALUATION = 64  # samples from here on are those of the evaluation set
VOCABULARY = 96
MOST_STEPS = 100  # far more than are asked for
IGNORE = -100  # a target that is not valid (torch's own convention)

Weights = dict[str, Tensor]


class Killed(BaseException):
    """The process is killed here; no loop catches it as an error."""


class Samples(Dataset):
    """Samples of token ids, each with a target. The first id is the index of the sample; targets of -100 are ignored.

    even: all samples have equal numbers of valid targets.
    """

    def __init__(self, first: int, count: int, even: bool = False):
        generator = torch.Generator().manual_seed(first)
        index = torch.arange(count, device="cpu")
        made = {"size": (count, TOKENS), "generator": generator, "device": "cpu"}
        self.tokens = torch.randint(VOCABULARY, **made)
        self.tokens[:, 0] = index + first
        self.targets = torch.randint(CLASSES, **made)
        self.valid = torch.full((count,), 3, device="cpu") if even else 1 + 2 * index % TOKENS
        self.targets[torch.arange(TOKENS, device="cpu") >= self.valid[:, None]] = IGNORE
        self.first = first

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> tuple[Int[Tensor, "t"], Int[Tensor, "t"]]:
        return self.tokens[index], self.targets[index]

    def loss(self, model: "Recorded", indices: list[int]) -> Tensor:
        """The mean cross entropy of the valid targets of samples, as often as they are named."""
        rows = torch.tensor(indices, device="cpu") - self.first
        return F.cross_entropy(model.logits(self.tokens[rows]), self.targets[rows])


@dataclass
class Pass:
    """A forward pass: the samples, whether dropout was on, how many updates were done before, and whether a backward
    pass followed."""

    samples: list[int]
    dropout: bool
    step: int
    learns: bool = False

    @property
    def evaluates(self) -> bool:
        return self.samples[0] >= FIRST_OF_EVALUATION


@dataclass
class Step:
    """An update: the samples of each micro-batch whose gradients were computed since the last one, the learning rates,
    and the weights and gradients it starts from."""

    samples: list[list[int]]
    rates: tuple[float, ...]
    weights: Weights
    gradient: Weights

    @property
    def all_samples(self) -> list[int]:
        return [sample for micro_batch in self.samples for sample in micro_batch]


@dataclass(eq=False)
class Record:
    """What a loop did. kill: the updates done, and the micro-batches of the next one, after which it is killed."""

    kill: tuple[int, int] | None = None
    passes: list[Pass] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    micro_batches: list[list[int]] = field(default_factory=list)
    model: "Recorded | None" = None

    def __deepcopy__(self, memo: Any) -> "Record":
        return self  # a copy of the model, as for an average, is recorded in the same place

    def saw(self, model: "Recorded", samples: list[int], logits: Tensor) -> None:
        """Record a forward pass, and that its backward pass will say which samples have a gradient."""
        each = Pass(samples, model.dropout.training, len(self.steps))
        self.passes.append(each)
        if not logits.requires_grad:
            return
        self.model = model
        if model.training and self.kill == (len(self.steps), len(self.micro_batches)):
            raise Killed
        logits.register_hook(lambda gradient: self._learned(each, gradient))

    def _learned(self, each: Pass, gradient: Tensor) -> None:
        each.learns = True
        learned = gradient.flatten(1).any(dim=1).tolist()
        self.micro_batches.append([sample for sample, one in zip(each.samples, learned, strict=True) if one])

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, each update of the model by an optimiser of torch is recorded."""
        handle = register_optimizer_step_pre_hook(self._before)
        try:
            yield
        finally:
            handle.remove()

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, options: Any) -> Any:
        closure = options.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._add(optimizer)
            return None

        def with_record() -> Any:  # a closure computes the gradient
            loss = closure()
            self._add(optimizer)
            return loss

        return args[:1], {**options, "closure": with_record}

    def _add(self, optimizer: torch.optim.Optimizer) -> None:
        if self.model is None:
            return
        named = dict(self.model.named_parameters())
        updated = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if updated.isdisjoint(map(id, named.values())):
            return
        if len(self.steps) == MOST_STEPS:
            raise Failed(f"it does not end after {MOST_STEPS} updates")
        gradients = {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in named.items()}
        rates = tuple(float(group["lr"]) for group in optimizer.param_groups)
        self.steps.append(Step(self.micro_batches, rates, on_cpu(named), on_cpu(gradients)))
        self.micro_batches = []


class Recorded(nn.Module):
    """A small classifier of tokens with dropout: token ids "b t" to logits "b c t", as F.cross_entropy takes them.

    stretch: the logits are so much larger, and so are the gradients.
    """

    def __init__(self, record: Record, dropout: float, stretch: float = 1.0):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.stretch, self.record = stretch, record

    def forward(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b c t"]:
        logits = self.logits(tokens)
        self.record.saw(self, tokens[:, 0].tolist(), logits)
        return logits

    def logits(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b c t"]:
        """As a call, but nothing is recorded."""
        x = self.embed(tokens) + self.embed(tokens[:, :1])
        return self.stretch * self.head(self.dropout(F.gelu(self.hidden(x)))).mT


def on_cpu(tensors: dict[str, Any]) -> Weights:
    """Copies of tensors."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def recorded(module: nn.Module) -> Recorded:
    """The kit's own model in a module."""
    return next(each for each in module.modules() if isinstance(each, Recorded))
