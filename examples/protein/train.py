"""Learn to fold: `python -m examples.protein.train EXPERIMENT [options]`."""

from dataclasses import field

from core import IGNORE, EncoderConfig, UserError
from core.config import configclass
from core.experiments import Experiment, ExperimentTask, Modality, Panel, train_command
from core.training import TrainConfig
from core.training.loop import Fit

from .baseline import logistic_regression
from .data import HPLattice, ProteinData, collate
from .model import FoldConfig, FoldModel
from .objective import Contacts
from .plots import folds_panel, reliability_panel


@configclass
class FoldExperiment(Experiment):
    data: HPLattice = field(default_factory=HPLattice)
    model: FoldConfig = field(default_factory=FoldConfig)


def hp() -> FoldExperiment:
    """Chains of 10 to 16 residues on a square lattice, solved exactly; tested on folds that training never saw."""
    return FoldExperiment(
        model=FoldConfig(
            encoder=EncoderConfig(dim=64, depth=4, heads=4, rotary="1d", activation="swiglu", mlp_dim=128)
        ),
        train=TrainConfig(steps=1500, batch_size=128, lr=2e-3, warmup=60, ema=0.99, precision="fp32", eval_every=250),
    )


def make_task(experiment: FoldExperiment) -> ExperimentTask:
    if experiment.init is not None:
        raise UserError("A fold model starts from random weights: leave out --init.")
    data = experiment.data.read()
    objective = Contacts(data.landscapes)
    return ExperimentTask(
        model=FoldModel(experiment.model),
        objective=objective,
        **data.parts(),
        collate=collate,
        in_memory=True,
        baseline=lambda: ("logistic regression", logistic_regression(data)),
        split_note=data.note,
        plots=lambda fit: make_plots(fit, data, objective),
    )


def make_plots(fit: Fit, data: ProteinData, objective: Contacts) -> list[Panel]:
    logits, targets, length = (fit.results[name] for name in ("logits", "targets", "length"))
    correct = objective.folded(logits, targets, length)
    mistakes = (~correct).nonzero()[:, 0].tolist()[:2]
    others = correct.nonzero()[:, 0].tolist()
    shown = [*mistakes, *others[:: max(len(others) // 5, 1)][:5]]
    chains = [
        (chain.residues.numpy(), logits[row, :n, :n], chain.contacts)
        for row in shown
        for chain, n in [(data.test[row], int(length[row]))]
    ]
    row, i, j = (targets != IGNORE).nonzero(as_tuple=True)
    probabilities, contacts = logits[row, i, j].sigmoid().numpy(), targets[row, i, j].numpy() > 0.5
    return [
        folds_panel(data.landscapes, chains, fit.metrics["folded"], len(mistakes)),
        reliability_panel((j - i).numpy(), probabilities, contacts),
    ]


PROTEIN = Modality(name="examples.protein", experiments=(hp,), task=make_task)

if __name__ == "__main__":
    train_command(PROTEIN)
