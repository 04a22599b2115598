"""Training loops with one fault each, which the kit must find; and right ones that look odd."""

import math
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from plain_loop import PlainLoop
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader


def train(kind, job):
    return kind()(job)


class MeanOfMicroBatches(PlainLoop):
    def loss(self, logits, targets, count, batches):
        return F.cross_entropy(logits, targets) / len(batches)


class SumOfMicroBatches(PlainLoop):
    def loss(self, logits, targets, count, batches):
        return F.cross_entropy(logits, targets)


class DividesByTheMicroBatchesAskedFor(PlainLoop):
    def loss(self, logits, targets, count, batches):
        return F.cross_entropy(logits, targets) / self.job.accumulate


class MeanOfSamples(PlainLoop):
    def loss(self, logits, targets, count, batches):
        losses = F.cross_entropy(logits, targets, reduction="none").sum(1) / (targets != -100).sum(1)
        return losses.sum() / sum(len(part) for _, part in batches)


class GradientIsKept(PlainLoop):
    def zero_grad(self):
        pass


class GradientOfTheLastMicroBatch(PlainLoop):
    def loss(self, logits, targets, count, batches):
        self.optimizer.zero_grad()
        return super().loss(logits, targets, count, batches)


class ClipsEachMicroBatch(PlainLoop):
    def loss(self, logits, targets, count, batches):
        loss = super().loss(logits, targets, count, batches)
        logits.register_hook(lambda gradient: gradient * min(1.0, (self.job.clip or math.inf) / gradient.norm()))
        return loss

    def clip(self):
        self.scaler.unscale_(self.optimizer)


class ClipsTheScaledGradient(PlainLoop):
    def clip(self):
        nn.utils.clip_grad_norm_(self.model.parameters(), self.job.clip or math.inf)
        self.scaler.unscale_(self.optimizer)


class NotSeeded(PlainLoop):
    def seed(self):
        pass


class SeedIsIgnored(PlainLoop):
    def seed(self):
        torch.manual_seed(0)

    def order(self, epoch):
        return torch.randperm(len(self.job.train), generator=torch.Generator().manual_seed(epoch))


class OneStepMore(PlainLoop):
    def steps(self):
        return self.job.steps + 1


class StepsOfMicroBatches(PlainLoop):
    def steps(self):
        return self.job.steps // self.job.accumulate


class DrawsWithReplacement(PlainLoop):
    def order(self, epoch):
        size = len(self.job.train)
        return torch.randint(size, (size,), generator=torch.Generator().manual_seed(self.job.seed * 1000 + epoch))


class DropsTheRest(PlainLoop):
    """Right, if "whole" is not claimed."""

    def order(self, epoch):
        order = super().order(epoch)
        return order[: len(order) // self.job.batch_size * self.job.batch_size]


class OneOrderForAllEpochs(PlainLoop):
    def order(self, epoch):
        return super().order(0)


class NotShuffled(PlainLoop):
    def order(self, epoch):
        return torch.arange(len(self.job.train))


class EvaluatesInTrainMode(PlainLoop):
    def evaluate(self):
        return self.evaluation_loss()


class StaysInEvalMode(PlainLoop):
    def evaluate(self):
        self.model.eval()
        return self.evaluation_loss()


class DropsTheLastEvaluationBatch(PlainLoop):
    def evaluation_batches(self):
        loader = DataLoader(self.job.evaluation, self.job.evaluation_batch_size, drop_last=True)
        return list(loader)


class RepeatsSamplesToFillTheLastBatch(PlainLoop):
    def evaluation_batches(self):
        size = self.job.evaluation_batch_size
        order = torch.arange(-(-len(self.job.evaluation) // size) * size) % len(self.job.evaluation)
        return [(self.job.evaluation.tokens[part], self.job.evaluation.targets[part]) for part in order.split(size)]


class MeanOfBatchMeans(PlainLoop):
    @torch.no_grad()
    def evaluation_loss(self):
        losses = [F.cross_entropy(self.model(tokens), targets) for tokens, targets in self.evaluation_batches()]
        return torch.stack(losses).mean().item()


class EvaluationDrawsRandomNumbers(PlainLoop):
    def evaluation_batches(self):
        return DataLoader(self.job.evaluation, self.job.evaluation_batch_size)


class EvaluationLeavesGradients(PlainLoop):
    def evaluation_loss(self):
        with torch.enable_grad():
            tokens, targets = self.job.evaluation.tokens, self.job.evaluation.targets
            F.cross_entropy(self.model(tokens), targets).backward()
        return super().evaluation_loss()


class TrainsOnTheEvaluationSet(PlainLoop):
    def batches_of_epoch(self):
        for batches in super().batches_of_epoch():
            tokens, targets = self.job.evaluation.tokens[:1], self.job.evaluation.targets[:1]
            yield [*batches[:-1], (torch.cat([batches[-1][0], tokens]), torch.cat([batches[-1][1], targets]))]


class Forgets(PlainLoop):
    """A part of the checkpoint is missing."""

    part = ""

    def state(self):
        return {name: value for name, value in super().state().items() if name != self.part}


class ForgetsTheOptimizer(Forgets):
    part = "optimizer"


class ForgetsTheSchedule(Forgets):
    part = "schedule"


class ForgetsTheScaler(Forgets):
    part = "scaler"


class ForgetsTheAverage(Forgets):
    part = "average"


class ForgetsTheRandomState(Forgets):
    part = "random"


class BeginsTheEpochAgain(PlainLoop):
    def state(self):
        return super().state() | {"place": (self.step, self.epoch, 0)}


class SkipsTheRestOfTheEpoch(PlainLoop):
    def load(self, state):
        super().load(state)
        self.epoch, self.batch = self.epoch + 1, 0


class CountsStepsFromResumingOn(PlainLoop):
    def load(self, state):
        super().load(state)
        self.step = 0


class LeavesTheAverageInTheModel(PlainLoop):
    def evaluate(self):
        self.model.load_state_dict(self.average.state_dict())
        return super().evaluate()


class AverageOfTheLastStepOnly(PlainLoop):
    def update(self, batches):
        super().update(batches)
        self.average.load_state_dict(self.model.state_dict())


# --- Right ones that look odd -----------------------------------------------------------------------------------------


class OneStream(PlainLoop):
    """Batches cross the end of an epoch: all are of the same size."""

    def batches_of_epoch(self):
        job = self.job
        while True:
            first, size = self.step * job.batch_size, len(job.train)
            places = range(first, first + job.batch_size)
            indices = torch.stack([self.order(place // size)[place % size] for place in places])
            parts = indices.split(job.batch_size // job.accumulate)
            yield [(job.train.tokens[part], job.train.targets[part]) for part in parts]


class WithClosure(PlainLoop):
    """The optimiser calls for the gradient itself, and has momentum."""

    @staticmethod
    def make(parameters, lr):
        return torch.optim.SGD(parameters, lr, momentum=0.9)

    def update(self, batches):
        def closure():
            self.optimizer.zero_grad(set_to_none=False)
            count = self.count(batches)
            for tokens, targets in batches:
                self.loss(self.model(tokens), targets, count, batches).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.job.clip or math.inf)

        self.optimizer.step(closure)
        self.schedule.step()
        self.follow()


class Recomputes(PlainLoop):
    """Activations are computed again in the backward pass."""

    def forward(self, tokens):
        return checkpoint(self.model, tokens, use_reentrant=False)


class SavesAtEveryStep(PlainLoop):
    def update(self, batches):
        super().update(batches)
        self.step += 1
        torch.save(self.state(), self.job.folder / "checkpoint.pt")
        self.step -= 1


class SwapsTheAverageIn(PlainLoop):
    """The average, by torch's class, is copied into the model for an evaluation, and what was there back again."""

    def make_average(self):
        return AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(self.job.ema or 0.0))

    def follow(self):
        self.average.update_parameters(self.model)

    def evaluate(self):
        if not self.job.ema:
            return super().evaluate()
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.average.module.state_dict())
        loss = super().evaluate()
        self.model.load_state_dict(before)
        return loss


# --- In several processes ---------------------------------------------------------------------------------------------


class InProcesses(PlainLoop):
    """Each process computes the gradient of its share of each batch, and they are added up."""

    def __call__(self, job):
        if "WORLD_SIZE" in os.environ:
            dist.init_process_group("gloo")
        return super().__call__(job)

    def batches_of_epoch(self):
        for batches in super().batches_of_epoch():
            self.total = self.count(batches)
            yield [self.share(batch) for batch in batches]

    def share(self, batch):
        if not dist.is_initialized():
            return batch
        return tuple(part[dist.get_rank() :: dist.get_world_size()] for part in batch)

    def loss(self, logits, targets, count, batches):
        return F.cross_entropy(logits, targets, reduction="sum") / self.total

    def clip(self):
        for parameter in self.model.parameters() if dist.is_initialized() else ():
            dist.all_reduce(parameter.grad)


class EachProcessSeesTheWholeBatch(InProcesses):
    def share(self, batch):
        return batch
