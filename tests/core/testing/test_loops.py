"""The checks of training loops find every fault and name it; they find none in right loops, however written."""

from functools import partial

import loop_mutants as loops
import pytest
from plain_loop import PlainLoop

from core.testing import LOOP, LoopSubject, check

ALL = LOOP | {"ema"}
CLAIMS = ALL | {"scaler"}  # fp16 is slow on CPUs
PROCESSES = "processes-change-nothing"
RIGHT = {
    "plain": (PlainLoop, CLAIMS),
    "one stream": (loops.OneStream, ALL),
    "drops the rest": (loops.DropsTheRest, ALL - {"whole"}),
    "closure": (loops.WithClosure, ALL),
    "recomputes": (loops.Recomputes, ALL),
    "saves at every step": (loops.SavesAtEveryStep, ALL),
    "swaps the average in": (loops.SwapsTheAverageIn, ALL),
}
MUTANTS = {
    "does-as-many-steps-as-asked": [loops.OneStepMore, loops.StepsOfMicroBatches],
    "gradients-are-of-their-own-samples": [loops.GradientIsKept],
    "accumulation-equals-the-big-batch": [loops.SumOfMicroBatches, loops.GradientOfTheLastMicroBatch],
    "short-accumulation-is-a-mean-too": [loops.DividesByTheMicroBatchesAskedFor],
    "targets-weigh-the-same": [loops.MeanOfMicroBatches, loops.MeanOfSamples],
    "clipping-is-of-the-whole-gradient": [loops.ClipsEachMicroBatch, loops.ClipsTheScaledGradient],
    "same-seed-same-run": [loops.NotSeeded],
    "another-seed-another-run": [loops.SeedIsIgnored],
    "epochs-see-each-sample-once": [loops.DrawsWithReplacement, loops.DropsTheRest],
    "epochs-are-shuffled-anew": [loops.OneOrderForAllEpochs, loops.NotShuffled],
    "trains-with-dropout": [loops.StaysInEvalMode],
    "evaluates-without-dropout": [loops.EvaluatesInTrainMode],
    "evaluation-counts-each-sample-once": [
        loops.DropsTheLastEvaluationBatch,
        loops.RepeatsSamplesToFillTheLastBatch,
    ],
    "evaluation-is-the-mean-over-targets": [loops.MeanOfBatchMeans],
    "evaluation-changes-nothing": [loops.EvaluationDrawsRandomNumbers],
    "evaluation-set-is-not-trained-on": [loops.TrainsOnTheEvaluationSet, loops.EvaluationLeavesGradients],
    "samples-go-on-after-resuming": [
        loops.BeginsTheEpochAgain,
        loops.SkipsTheRestOfTheEpoch,
        loops.CountsStepsFromResumingOn,
    ],
    "rate-goes-on-after-resuming": [loops.ForgetsTheSchedule],
    "resumed-equals-uninterrupted": [loops.ForgetsTheOptimizer, loops.ForgetsTheRandomState],
    "average-changes-nothing": [loops.LeavesTheAverageInTheModel, loops.AverageOfTheLastStepOnly],
    "average-goes-on-after-resuming": [loops.ForgetsTheAverage],
    "scaler-goes-on-after-resuming": [loops.ForgetsTheScaler],
}
WITHOUT_SCRIPT = {loops.ForgetsTheScaler, loops.ClipsTheScaledGradient}  # they are so in fp16 alone
PAIRS = [(name, mutant) for name, mutants in MUTANTS.items() for mutant in mutants]


@pytest.mark.parametrize("name", RIGHT)
def test_right_loops_pass(name):
    loop, claims = RIGHT[name]
    check(LoopSubject(loop(), name=name, claims=claims)).raise_failures()


@pytest.mark.parametrize("name, mutant", PAIRS, ids=[mutant.__name__ for _, mutant in PAIRS])
def test_every_fault_is_found(name, mutant):
    [result] = check(LoopSubject(partial(loops.train, mutant), claims=CLAIMS), only=[name]).results
    assert result.status == "failed" and "raises" not in result.message, result
    assert bool(result.script) == (mutant not in WITHOUT_SCRIPT)
    assert len(result.script.splitlines()) <= 20 and "core.testing" not in result.script
    if result.script:
        exec(result.script.replace(mutant.__name__, "PlainLoop"), names := {"__name__": "script"})
        names["hook"].remove()


def test_processes_train_as_one_does():
    """A right loop, and one whose processes see the same samples; each is started in two processes."""
    found = {}
    for loop in (loops.InProcesses, loops.EachProcessSeesTheWholeBatch):
        [found[loop]] = check(LoopSubject(loop(), claims={"evaluation", "processes"}), only=[PROCESSES]).results
    assert found[loops.InProcesses].status == "passed", found[loops.InProcesses].message
    message = found[loops.EachProcessSeesTheWholeBatch].message
    assert message.startswith("the samples of step 1 are [3, 3, 4, 4,") and "in one process [10, 4, 15," in message
