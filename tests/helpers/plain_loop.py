"""A plain training loop that does all that the conformance kit asks, in parts that a mutant can replace one by one."""

import copy
import math

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from core.testing import LoopOutcome


class PlainLoop:
    def __call__(self, job):
        return type(self)().train(job)

    def train(self, job):
        self.job, self.model, self.step = job, job.model, 0
        self.seed()
        self.optimizer = self.make(self.model.parameters(), job.lr)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 - step / job.steps)
        self.scaler = torch.amp.GradScaler(job.device, enabled=job.scaler)
        self.average = self.make_average()
        self.epoch, self.batch = 0, 0
        if job.resume:
            self.load(torch.load(job.folder / "checkpoint.pt"))
        self.model.train()
        while self.step < self.steps():
            for batches in self.batches_of_epoch():
                self.update(batches)
                self.step += 1
                if self.step % job.evaluate_every == 0:
                    self.evaluate()
                if self.step % job.save_every == 0:
                    torch.save(self.state(), job.folder / "checkpoint.pt")
                if self.step == self.steps():
                    break
        return LoopOutcome(self.model, self.evaluate(), self.average)

    make = staticmethod(torch.optim.AdamW)

    def make_average(self):
        return copy.deepcopy(self.model)

    def follow(self):
        """The average follows the weights."""
        with torch.no_grad():
            for mean, weight in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(weight, 1 - (self.job.ema or 0.0))

    def steps(self):
        return self.job.steps

    def seed(self):
        torch.manual_seed(self.job.seed)

    # --- data ---------------------------------------------------------------------------------------------------------

    def order(self, epoch):
        return torch.randperm(
            len(self.job.train), generator=torch.Generator().manual_seed(1000 * self.job.seed + epoch)
        )

    def batches_of_epoch(self):
        """The rest of the epoch, in lists of micro-batches."""
        job, order = self.job, self.order(self.epoch)
        for batch in order.split(job.batch_size)[self.batch :]:
            self.batch += 1
            if self.batch * job.batch_size >= len(order):
                self.epoch, self.batch = self.epoch + 1, 0
            parts = batch.split(job.batch_size // job.accumulate)
            yield [(job.train.tokens[part], job.train.targets[part]) for part in parts]

    # --- an update ----------------------------------------------------------------------------------------------------

    def update(self, batches):
        count = self.count(batches)
        for tokens, targets in batches:
            with torch.autocast("cpu", torch.float16, enabled=self.job.scaler):
                logits = self.forward(tokens)
            self.scaler.scale(self.loss(logits.float(), targets, count, batches)).backward()
        self.clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.zero_grad()
        self.follow()

    def forward(self, tokens):
        return self.model(tokens)

    def count(self, batches):
        return sum((targets != -100).sum() for _, targets in batches)

    def loss(self, logits, targets, count, batches):
        return F.cross_entropy(logits, targets, reduction="sum") / count

    def clip(self):
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.job.clip or math.inf)

    def zero_grad(self):
        self.optimizer.zero_grad()

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def evaluate(self):
        self.model.eval()
        loss = self.evaluation_loss()
        self.model.train()
        return loss

    def evaluation_batches(self):
        """A generator of its own: the iterator of a DataLoader draws a number."""
        return DataLoader(self.job.evaluation, self.job.evaluation_batch_size, generator=torch.Generator())

    @torch.no_grad()
    def evaluation_loss(self):
        total = count = 0
        for tokens, targets in self.evaluation_batches():
            total += F.cross_entropy(self.model(tokens), targets, reduction="sum").item()
            count += (targets != -100).sum().item()
        return total / count

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def state(self):
        parts = ("model", "optimizer", "schedule", "scaler", "average")
        state = {name: getattr(self, name).state_dict() for name in parts}
        return state | {"place": (self.step, self.epoch, self.batch), "random": torch.get_rng_state()}

    def load(self, state):
        for name in ("model", "optimizer", "schedule", "scaler", "average"):
            if name in state:
                getattr(self, name).load_state_dict(state[name])
        self.step, self.epoch, self.batch = state["place"]
        if "random" in state:
            torch.set_rng_state(state["random"])
