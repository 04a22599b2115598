"""The checks of a training loop. Each function is one: its name is the id, its docstring says what must hold.

Those of interrupted runs are in loop_resuming.py, those of several processes in loop_processes.py.
"""

import itertools
from collections import Counter
from typing import Any

import torch

from .loop_measures import (
    OTHER,
    PARTS,
    epochs_of,
    flat,
    model_of,
    of_all_parts,
    of_fewer_parts,
    right_gradients,
    same,
    same_weights,
)
from .loop_processes import processes_change_nothing
from .loop_records import FIRST_OF_EVALUATION
from .loop_resuming import (
    average_goes_on_after_resuming,
    rate_goes_on_after_resuming,
    resumed_amid_accumulation_equals_uninterrupted,
    resumed_equals_uninterrupted,
    samples_go_on_after_resuming,
    scaler_goes_on_after_resuming,
)
from .loop_subjects import BATCH, STEPS, TRAINING_SAMPLES, LoopSubject
from .measures import Figures, difference, require
from .runner import Check

SMALL_NORM = 0.02  # below that of every gradient


def does_as_many_steps_as_asked(subject: LoopSubject) -> Figures:
    """The weights are updated as often as asked, over several epochs, with accumulation and without."""
    for accumulate in (1, PARTS):
        found = len(subject.run(accumulate=accumulate).steps)
        require(found == STEPS, f"asked for {STEPS} updates, it does {found} (micro-batches of each: {accumulate})")
    return {}


def gradients_are_of_their_own_samples(subject: LoopSubject) -> Figures:
    """The gradient of an update is that of the mean loss of its samples, and nothing is left of the update before."""
    return right_gradients(subject.run(dropout=0.0, even=True))


def accumulation_equals_the_big_batch(subject: LoopSubject) -> Figures:
    """Micro-batches with equal numbers of targets give the gradient of the big batch."""
    return right_gradients(subject.run(dropout=0.0, even=True, accumulate=PARTS), of_all_parts)


def short_accumulation_is_a_mean_too(subject: LoopSubject) -> Figures:
    """An update with fewer micro-batches, at the end of an epoch, has the gradient of the mean over its own samples."""
    return right_gradients(subject.run(dropout=0.0, even=True, accumulate=PARTS), of_fewer_parts)


def targets_weigh_the_same(subject: LoopSubject) -> Figures:
    """Where micro-batches have unequal numbers of valid targets, each target has the same weight in the gradient."""
    right_gradients(subject.run(dropout=0.0))
    return right_gradients(subject.run(dropout=0.0, accumulate=PARTS), of_all_parts)


def clipping_is_of_the_whole_gradient(subject: LoopSubject) -> Figures:
    """The gradient of the whole update is scaled down to the norm asked for, without the scale of fp16."""
    run = subject.run(dropout=0.0, even=True, accumulate=PARTS, clip=SMALL_NORM)
    figures = right_gradients(run, of_all_parts, SMALL_NORM)
    if "scaler" in subject.claimed:
        norms = [float(flat(step.gradient).norm()) for step in subject.run(clip=SMALL_NORM, scaler=True).steps]
        wrong = max((abs(norm / SMALL_NORM - 1) for norm in norms), default=1.0)
        require(wrong < 0.01, f"in fp16 norms are {norms[0]:.3g}, not {SMALL_NORM}: is the gradient unscaled first?")
    return figures


def same_seed_same_run(subject: LoopSubject) -> Figures:
    """The same seed gives the same samples and weights, to the bit on a CPU, whatever the random state was before."""
    first, second = subject.run(), subject.run(again=1)
    require(first.samples == second.samples, "the samples come in another order the second time")
    return same_weights(second.weights, first.weights, "the weights of the second run are")


def another_seed_another_run(subject: LoopSubject) -> Figures:
    """Another seed gives another order of the samples, if they are shuffled, and other weights."""
    first, other = subject.run(), subject.run(seed=1)
    require("shuffle" not in subject.claimed or first.samples != other.samples, "seed 1 has the order of seed 0")
    equal = all(torch.equal(first.weights[name], other.weights[name]) for name in first.weights)
    require(not equal, "seed 1 gives the weights of seed 0")
    return {}


def epochs_see_each_sample_once(subject: LoopSubject) -> Figures:
    """In each epoch each sample is trained on once; less than a batch may be left out if "whole" is not claimed."""
    for accumulate in (1, PARTS):
        epochs = epochs_of(subject.run(accumulate=accumulate), (BATCH, BATCH // accumulate))
        for number, epoch in enumerate(epochs, 1):
            twice = [sample for sample, count in Counter(epoch).items() if count > 1]
            require(not twice, f"sample {min(twice, default=0)} comes more than once in epoch {number}")
        size = len(epochs[0])
        message = f"an epoch has {size} of {TRAINING_SAMPLES} samples: do not claim 'whole' if the rest is left out"
        require("whole" not in subject.claimed or size == TRAINING_SAMPLES, message)
    return {"samples": float(size)}


def epochs_are_shuffled_anew(subject: LoopSubject) -> Figures:
    """Each epoch has another order, and none that of the data set."""
    epochs = [epoch for epoch in epochs_of(subject.run(), (BATCH,)) if len(epoch) > BATCH]
    require(len(epochs) > 1, "there is only one epoch")
    for number, pair in enumerate(itertools.pairwise(epochs), 1):
        size = min(map(len, pair))
        require(pair[0][:size] != pair[1][:size], f"epochs {number} and {number + 1} have the same order")
    require(all(epoch != sorted(epoch) for epoch in epochs), "the order is that of the data set")
    return {}


def evaluation_counts_each_sample_once(subject: LoopSubject) -> Figures:
    """The evaluation after the last step sees each sample, also those of the uneven last batch, equally often."""
    run = subject.run()
    seen = Counter(s for each in run.passes if each.evaluates and each.step == len(run.steps) for s in each.samples)
    require(seen, "nothing is evaluated after the last step")
    wanted = range(FIRST_OF_EVALUATION, FIRST_OF_EVALUATION + len(run.evaluation))
    counts = [seen[sample] for sample in wanted]
    missing = f"{counts.count(0)} of {len(counts)} samples are not evaluated"
    require(min(counts), f"{missing}: does the loader drop the last batch?" if min(counts) == 0 else "")
    require(len({*counts}) == 1, f"some samples count {max(counts)} times, others {min(counts)}")
    return {}


def evaluation_is_the_mean_over_targets(subject: LoopSubject) -> Figures:
    """The loss of the evaluation set is the mean over all its valid targets, not the mean of the means of batches."""
    run = subject.run()
    require(run.loss is not None, "it gives no loss: LoopOutcome(model, loss)")
    found = torch.tensor(run.loss, device="cpu")
    size = len(run.evaluation)
    indices = [FIRST_OF_EVALUATION + i for i in range(size)]
    model = model_of(run.weights)
    with torch.no_grad():
        expected = run.evaluation.loss(model, indices)
        batches = torch.stack([run.evaluation.loss(model, indices[i : i + 3]) for i in range(0, size, 3)])
    error = difference(found, expected)
    weighted = {
        "the mean of the means of batches": batches.mean(),
        "the mean of the means of batches, weighted by samples": (batches * torch.tensor([3, 3, 1])).sum() / 7,
        "the sum of the means of batches": batches.sum(),
    }
    kind = next((f": it is {name}" for name, value in weighted.items() if difference(found, value) < 1e-5), "")
    require(error < 1e-5, f"the loss is {run.loss:.6f}, not {expected:.6f}{kind}", error=error)
    return {"error": error}


def evaluation_changes_nothing(subject: LoopSubject) -> Figures:
    """Training is the same, to the bit on a CPU, however often it is evaluated: weights, order and random state.

    Without the claim "isolated" evaluation may draw from the random state of training.
    """
    options: dict[str, Any] = {} if "isolated" in subject.claimed else {"dropout": 0.0}
    often, once = subject.run(evaluate_every=2, **options), subject.run(**options)
    require(any(p.evaluates and p.step == 2 for p in often.passes), "nothing is evaluated after 2 steps, as was asked")
    pairs = list(zip(often.steps, once.steps, strict=True))
    if "isolated" not in subject.claimed:  # the next epoch may have another order
        pairs = list(itertools.takewhile(lambda pair: pair[0].samples == pair[1].samples, pairs))
        require(len(pairs) > 2, "with evaluations the samples of step 3 are others")
    for number, (found, expected) in enumerate(pairs, 1):
        for what, other in OTHER.items():
            cause = (
                "does it change the model?" if what == "weights" else "does it draw random numbers, as a loader does?"
            )
            require(same(found, expected, what), f"with evaluations, step {number} has {other}: {cause}")
    return {"updates": float(len(pairs))}


def evaluates_without_dropout(subject: LoopSubject) -> Figures:
    """The model is in eval mode whenever a sample of the evaluation set is seen."""
    passes = [each for each in subject.run(evaluate_every=2).passes if each.evaluates]
    require(passes, "nothing is evaluated")
    require(not any(each.dropout for each in passes), "the model is evaluated with dropout: call model.eval() before")
    return {}


def trains_with_dropout(subject: LoopSubject) -> Figures:
    """The model is in train mode at every training step, also after an evaluation."""
    wrong = [each.step for each in subject.run(evaluate_every=2).passes if each.learns and not each.dropout]
    require(not wrong, f"step {min(wrong, default=0) + 1} is without dropout: call model.train() after an evaluation")
    return {}


def evaluation_set_is_not_trained_on(subject: LoopSubject) -> Figures:
    """No sample of the evaluation set has an influence on a gradient."""
    run = subject.run(evaluate_every=2)
    wrong = [s for samples in run.samples for s in samples if s >= FIRST_OF_EVALUATION]
    require(not wrong, f"{len(wrong)} times a sample of the evaluation set is trained on")
    return {}


def average_changes_nothing(subject: LoopSubject) -> Figures:
    """With an average of the weights, which differs from them, training is the same to the bit on a CPU."""
    with_average = subject.run(ema=0.9, evaluate_every=2)
    require(with_average.average is not None, "it gives no average: LoopOutcome(model, loss, average)")
    average, without = with_average.average or {}, subject.run(evaluate_every=2)
    same = same_weights(with_average.weights, without.weights, "with an average the weights are")
    equal = all(torch.equal(average[name], value) for name, value in with_average.weights.items())
    require(not equal, "the average is the weights of the last step")
    return same


LOOP_CHECKS = (
    Check(does_as_many_steps_as_asked),
    Check(gradients_are_of_their_own_samples),
    Check(accumulation_equals_the_big_batch),
    Check(short_accumulation_is_a_mean_too),
    Check(targets_weigh_the_same, needs=("targets",)),
    Check(clipping_is_of_the_whole_gradient, needs=("clip",)),
    Check(same_seed_same_run),
    Check(another_seed_another_run),
    Check(epochs_see_each_sample_once),
    Check(epochs_are_shuffled_anew, needs=("shuffle",)),
    Check(trains_with_dropout),
    Check(evaluates_without_dropout, needs=("evaluation",)),
    Check(evaluation_counts_each_sample_once, needs=("evaluation",)),
    Check(evaluation_is_the_mean_over_targets, needs=("evaluation",)),
    Check(evaluation_changes_nothing, needs=("evaluation",)),
    Check(evaluation_set_is_not_trained_on),
    Check(samples_go_on_after_resuming, needs=("resume",)),
    Check(rate_goes_on_after_resuming, needs=("resume", "schedule")),
    Check(resumed_equals_uninterrupted, needs=("resume",)),
    Check(resumed_amid_accumulation_equals_uninterrupted, needs=("resume",)),
    Check(average_changes_nothing, needs=("ema",)),
    Check(average_goes_on_after_resuming, needs=("ema", "resume")),
    Check(scaler_goes_on_after_resuming, needs=("scaler", "resume")),
    Check(processes_change_nothing, needs=("processes",)),
)
