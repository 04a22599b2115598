"""Two processes train and evaluate as one does."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from points import Rarely
from processes import run_together
from safetensors.torch import load_file
from torch import nn

from core import UserError
from core.training.processes import all_weights_used
from core.training.throughput import TIMED
from core.training.tracking import read_metrics

RUN = """
import os, signal, sys
from pathlib import Path
import torch
sys.path.append({helpers!r})
from core.training import Task, TrainConfig, fit
from core.training.processes import shut_down
from core import Classification, Contrastive, SigmoidContrastive
from points import Mixer, Pair, Points, Rarely, build, collate
import sequences

torch.set_num_threads(1)
out, resume, options = Path(sys.argv[1]), sys.argv[2] == "resume", dict(o.split("=") for o in sys.argv[3:])
out.mkdir(exist_ok=True)
stop = int(options.pop("stop", 0))
contrast = options.pop("contrast", "")
rarely = options.pop("rarely", "")
model = Pair() if contrast else Mixer() if "shard" in options else build()
if rarely:
    model = Rarely(True) if rarely == "declared" else Rarely(False, bound=9.0)  # which no point reaches
config = TrainConfig(
    batch_size=12, lr=1e-2, warmup=5, log_every=1, eval_every=5, eval_batch_size=4, save_every=5, precision="fp32",
    device="cpu", workers=0, **{{name: eval(value) for name, value in options.items()}}
)
if stop and os.environ.get("RANK", "0") == "0":  # one process gets the signal: all must stop
    from core.training import loop
    plain = loop.learning_rate
    def learning_rate(config, step):
        if step == stop - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(config, step)
    loop.learning_rate = learning_rate
objective = {{"": Classification, "softmax": Contrastive, "sigmoid": SigmoidContrastive}}[contrast]()
task = Task(model, objective, Points(50, ignore=True), Points(17, jitter=0.0), collate)
if config.tokens_per_batch:
    model = sequences.TwoReaders() if contrast else sequences.Reader()
    data = sequences.Sequences(50, ignore=True), sequences.Sequences(17, jitter=0.0)
    task = Task(model, objective, *data, sequences.collate)
def measure(model):
    figures = {{"weights": sum(p.square().sum().item() for p in model.parameters()), "chance": torch.rand(1).item()}}
    assert not model.training and not torch.is_grad_enabled()
    if torch.distributed.is_initialized():  # the same in all processes
        everywhere = [None] * 2
        torch.distributed.all_gather_object(everywhere, figures)
        assert everywhere[0] == everywhere[1]
    return figures
task.measure = measure
fit(task, config, out, resume=resume)
shut_down()
"""


def run(out: Path, processes: int, *options: str, resume: bool = False) -> None:
    script = out.parent / "run.py"
    script.write_text(RUN.format(helpers=str(Path(__file__).parents[2] / "helpers")))
    if processes == 1 and not resume:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(sys, "argv", [str(script), str(out), "new", *options])
            runpy.run_path(str(script))
        return
    how = "resume" if resume else "new"
    run_together(processes, script, [out, how, *options], err=out.parent / f"errors-{processes}")


def assert_same(out: Path, other: Path, step: int) -> None:
    rows, expected = read_metrics(out), read_metrics(other)
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    assert rows[-1]["step"] == step
    for row, wanted in zip(rows, expected, strict=True):
        for name in wanted.keys() - set(TIMED):
            # What is watched besides (gradients, updates, logits) differs by what rounding differs in sums.
            bound = 1e-6 if name == "loss" or name.startswith("test_") else 1e-4
            assert row[name] == pytest.approx(wanted[name], rel=bound, abs=bound), name
    weights, wanted = (load_file(o / "checkpoints" / f"step-{step:08d}" / "model.safetensors") for o in (out, other))
    for name in wanted:
        torch.testing.assert_close(weights[name], wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("what", [["accumulate=3"], ["accumulate=3", "contrast=softmax"], ["contrast=sigmoid"]])
def test_two_processes_are_as_one(tmp_path, what):
    """The same losses, weights and evaluation, though 17 test samples and the targets to ignore do not divide."""
    options = ["steps=20", "ema=0.9", *what]
    run(tmp_path / "one", 1, *options)
    run(tmp_path / "two", 2, *options)
    assert_same(tmp_path / "two", tmp_path / "one", 20)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_two_processes_are_as_one_where_some_weights_are_used_rarely(tmp_path, accumulate):
    """By a few samples, which one of the two processes may lack."""
    options = ["steps=20", f"accumulate={accumulate}", "rarely=declared"]
    run(tmp_path / "one", 1, *options)
    run(tmp_path / "two", 2, *options)
    assert_same(tmp_path / "two", tmp_path / "one", 20)


def test_weights_that_are_not_used_and_not_declared_are_named(tmp_path):
    sentence = (
        "UserError: extra.weight gets no gradient in a step, which several processes wait for: freeze it "
        "(requires_grad_(False)), or state skips_weights = True in the class of the model, Rarely."
    )
    with pytest.raises(AssertionError, match=re.escape(sentence)):  # the processes fail with it
        run(tmp_path / "two", 2, "steps=20", "rarely=undeclared")


def test_weights_that_only_the_last_micro_batch_does_not_use_are_named():
    """They have a gradient, that of an earlier micro-batch, but it is not added up over the processes."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(Rarely(declared=False))
        near, far = torch.zeros(2, 3), torch.full((2, 3), 2.0)
        with model.no_sync():
            model(far).sum().backward()
        with pytest.raises(UserError, match=r"^extra\.weight gets no gradient"), all_weights_used(model):
            model(near).sum().backward()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("what", [["accumulate=3"], ["accumulate=3", "contrast=softmax"], ["contrast=sigmoid"]])
def test_two_processes_with_other_numbers_of_samples_are_as_one(tmp_path, what):
    """Steps by tokens: the processes, and their micro-batches, have not as many samples."""
    options = ["steps=20", "ema=0.9", "tokens_per_batch=70", *what]
    run(tmp_path / "one", 1, *options)
    run(tmp_path / "two", 2, *options)
    assert_same(tmp_path / "two", tmp_path / "one", 20)


def test_two_processes_with_half_of_the_model_each_are_as_one(tmp_path):
    """FSDP2, with tied weights, accumulation and a running average; in between one process goes on, unsharded."""
    options = ["steps=20", "accumulate=3", "ema=0.9"]
    run(tmp_path / "one", 1, *options, "shard=False")
    for processes, steps, shard in ((2, 8, True), (1, 12, False), (2, 20, True)):
        run(tmp_path / "two", processes, *options, f"shard={shard}", f"stop={steps % 20}", resume=True)
    assert_same(tmp_path / "two", tmp_path / "one", 20)


@pytest.mark.parametrize("size", ["tokens_per_batch=None", "tokens_per_batch=50"])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, size):
    run(tmp_path / "one", 1, "steps=20", size)
    for processes, steps in ((2, 10), (1, 15), (2, 20)):
        # The schedule is that of 20 steps throughout: the run is stopped, not shortened.
        run(tmp_path / "mixed", processes, "steps=20", size, f"stop={steps % 20}", resume=True)
    assert_same(tmp_path / "mixed", tmp_path / "one", 20)
