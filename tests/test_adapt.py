"""`adapt`, the command that learns from unlabelled files, in each modality: from random weights, a checkpoint, by LoRA,
resumed bit for bit, and alike on any number of processes."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from plain import train_plainly
from processes import run_together
from safetensors.torch import load_file

from audio import AST
from audio.train import AUDIO
from core import adapters
from core.experiments import train_command
from core.training import loop
from core.training.tracking import read_metrics
from text import TextEncoder
from text.train import TEXT
from vision import ViT, ViTConfig
from vision.train import VISION

SMALL = ["--model.dim", "16", "--model.heads", "2", "--model.depth", "2"]
SHORT = ["--train.steps", "6", "--train.batch-size", "8", "--train.eval-every", "3", "--train.warmup", "2"]
SHORT += ["--train.save-every", "3", "--train.log-every", "1", "--train.workers", "0", "--train.precision", "fp32"]
MODELS = {
    "vision": ["--model.image-size", "12", "--model.patch-size", "3"],
    "audio": ["--model.sample-rate", "8000", "--model.n-mels", "16", "--model.max-frames", "64"]
    + ["--model.patch-size", "8", "--model.stride", "8"],
    "text": ["--model.max-length", "24", "--model.encoder.dropout", "0"],
}
VOCABULARY = ["--data.tokenizer.vocab-size", "120"]
MODALITIES = {"vision": VISION, "audio": AUDIO, "text": TEXT}
KINDS = {"vision": ViT, "audio": AST, "text": TextEncoder}
OTHERS = {  # options of the models that people start from
    "vision": {
        "like DINOv3": ["--model.rotary", "2d", "--model.rotary-unit", "--model.positions", "none"]
        + ["--model.registers", "2", "--model.layer-scale", "0.1"],
    },
    "audio": {"like EAT": ["--model.positions", "sincos"]},
    "text": {
        "like ModernBERT": ["--model.rotary", "1d", "--model.positions", "none", "--model.activation", "geglu"]
        + ["--model.patterns", "Local(4, exact=True)", "None"],
    },
}
CASES = [(name, "plain", []) for name in MODALITIES]
CASES += [(name, kind, options) for name, kinds in OTHERS.items() for kind, options in kinds.items()]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Unlabelled files of each modality, and labelled ones to probe with."""
    root, random = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    for number in range(40):
        label = number % 2
        folder = root / "vision" / "ab"[label]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 120, (12, 12, 3)) + 120 * label
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        folder = root / "audio" / "ab"[label]
        folder.mkdir(parents=True, exist_ok=True)
        time = np.arange(2_000 + 80 * number) / 8_000
        wave = np.sin(2 * np.pi * (500 + 700 * label) * time) * 0.3 + random.normal(0, 0.05, len(time))
        soundfile.write(folder / f"{number}.wav", wave, 8_000)
    words = [["red", "blue", "green"], ["one", "two", "three"]]
    texts = [" ".join(random.choice(words[number % 2], 4 + number % 9)) for number in range(60)]
    (root / "text").mkdir()
    (root / "text" / "lines.txt").write_text("\n".join(texts))
    rows = [f"{text},{'ab'[number % 2]}" for number, text in enumerate(texts)]
    (root / "text" / "labelled.csv").write_text("\n".join(["text,label", *rows]))
    return root


def adapt(name: str, files: Path, out: Path, *options: str, model: bool = True, train=train_plainly) -> Path:
    path = files / name / ("lines.txt" if name == "text" else "")
    shape = [*MODELS[name], *SMALL] if model else []
    if name == "text" and model and "--distill.teacher" not in options:  # which brings its tokenizer
        shape += VOCABULARY
    arguments = ["adapt", "--data.path", str(path), *SHORT, *shape, "--out", str(out), *options]
    train(MODALITIES[name], arguments)
    return out


@pytest.fixture(scope="module")
def plain_runs(files, tmp_path_factory):
    """The run of each modality without further options, to start from and to compare with; these draw their plots."""
    folder = tmp_path_factory.mktemp("plain")
    return {name: adapt(name, files, folder / name, train=train_command) for name in MODALITIES}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def assert_equal(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def stopped_and_resumed(name: str, files: Path, out: Path, *options: str, monkeypatch) -> Path:
    """A run that gets a signal in the middle, and then goes on."""
    plain = loop.learning_rate

    def stopping(config, step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(config, step)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "learning_rate", stopping)
        with pytest.raises(SystemExit):
            adapt(name, files, out, *options)
    return adapt(name, files, out, *options, "--resume")


@pytest.mark.parametrize("name, kind, options", CASES, ids=[f"{name}, {kind}" for name, kind, _ in CASES])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(name, kind, options, files, plain_runs, tmp_path, monkeypatch):
    whole = adapt(name, files, tmp_path / "whole", *options) if options else plain_runs[name]
    parts = stopped_and_resumed(name, files, tmp_path / "parts", *options, monkeypatch=monkeypatch)
    assert_equal(weights(whole), weights(parts))
    states = [load_file(run / "checkpoints" / "step-00000006" / "model.safetensors") for run in (whole, parts)]
    assert any(key.startswith("teacher.") for key in states[0])
    assert_equal(*states)
    losses = [[row.get("loss") for row in read_metrics(run)] for run in (whole, parts)]
    assert losses[0] == losses[1] and all(np.isfinite(losses[0]))
    KINDS[name].from_run(whole)


@pytest.mark.parametrize("name", MODALITIES)
def test_micro_batches_and_processes_add_up_to_the_whole_batch(name, files, plain_runs, tmp_path):
    """Two processes: of images by torch's launcher, as a user starts it."""
    whole = weights(plain_runs[name])
    cut = weights(adapt(name, files, tmp_path / "cut", "--train.accumulate", "4"))
    path = files / name / ("lines.txt" if name == "text" else "")
    words = ["adapt", "--data.path", str(path), *SHORT, *MODELS[name], *SMALL]
    words += ["--train.device", "cpu", "--out", str(tmp_path / "two")]
    if name == "vision":
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        done = subprocess.run([*command, "-m", "vision.train", *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    else:
        run_together(2, f"{name}.train", words, err=tmp_path / "errors")
    for other in (cut, weights(tmp_path / "two")):
        for key, tensor in whole.items():
            if not key.endswith("qkv.bias"):  # the gradient of a key's bias is nothing but rounding error
                torch.testing.assert_close(other[key], tensor, rtol=0, atol=1e-6, msg=key)


@pytest.mark.parametrize("how", ["adapter", "prompt"])
def test_what_would_stay_beside_the_weights_is_refused(how, files, plain_runs, tmp_path, capsys):
    with pytest.raises(SystemExit):
        adapt("vision", files, tmp_path / "run", "--init", str(plain_runs["vision"]), "--tune", how, model=False)
    assert f"error: --tune {how} stays beside the model's weights" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", MODALITIES)
@pytest.mark.parametrize("how", ["lora", "last:1"])
def test_a_part_of_a_checkpoint_is_adapted_and_then_fine_tuned(name, how, files, plain_runs, tmp_path):
    start = plain_runs[name]
    run = adapt(name, files, tmp_path / "run", "--init", str(start), "--tune", how, model=False)
    before, after = weights(start), weights(run)
    changed = {key for key, tensor in before.items() if not torch.equal(tensor, after[key])}
    expected = {key for key in before if "blocks.1" in key or "final_norm" in key}
    assert before.keys() == after.keys()
    if how == "lora":
        assert changed and all(key.endswith("weight") and ".attention." in key for key in changed)
        model = KINDS[name].from_run(start)
        loaded = adapters.load(model, run / "adapter")
        adapters.merge(loaded)
        adapters.remove(loaded)
        found = loaded.state_dict()
        for key in changed:
            torch.testing.assert_close(found[key], after[key])
    else:
        assert changed and changed <= expected
    state = load_file(run / "checkpoints" / "step-00000006" / "model.safetensors")
    teacher = sum(tensor.numel() for key, tensor in state.items() if key.startswith("teacher."))
    assert 0 < teacher < 0.7 * sum(tensor.numel() for tensor in after.values())
    labelled = files / name / ("labelled.csv" if name == "text" else "")
    other = ["manifest" if name == "text" else "folder", "--data.path", str(labelled), *SHORT]
    other += ["--model.freq-mask", "0", "--model.time-mask", "0"] if name == "audio" else []
    train_plainly(MODALITIES[name], [*other, "--init", str(run), "--out", str(tmp_path / "tuned")])
    assert json.loads((tmp_path / "tuned" / "summary.json").read_text())["steps"] == 6


@pytest.mark.parametrize("name", MODALITIES)
def test_it_is_probed_while_it_runs(name, files, plain_runs, tmp_path):
    labelled = files / name / ("labelled.csv" if name == "text" else "")
    run = adapt(name, files, tmp_path / "run", "--probe.path", str(labelled))
    rows = [row for row in read_metrics(run) if "probe_linear" in row]
    assert [row["step"] for row in rows] == [0, 3, 6]
    assert all(0.4 < row["probe_linear"] <= 1 and 0 <= row["probe_neighbours"] <= 1 for row in rows)
    assert_equal(weights(run), weights(plain_runs[name]))


@pytest.mark.parametrize("name", MODALITIES)
def test_the_tokens_of_a_teacher_are_learnt(name, files, plain_runs, tmp_path, monkeypatch, capsys):
    """By a narrower model, cut in micro-batches or resumed, with the same result; a text model takes its tokenizer."""
    teacher = ["--distill.teacher", str(plain_runs[name]), "--model.dim", "8"]
    whole = adapt(name, files, tmp_path / "whole", *teacher)
    tokens = [row["validation_tokens"] for row in read_metrics(whole) if "validation_tokens" in row]
    assert tokens[-1] < tokens[0]
    assert KINDS[name].from_run(whole).config.encoder.dim == 8
    if name == "text":
        assert (whole / "tokenizer.json").read_text() == (plain_runs[name] / "tokenizer.json").read_text()
    cut = weights(adapt(name, files, tmp_path / "cut", *teacher, "--train.accumulate", "4"))
    for key, tensor in weights(whole).items():
        if not key.endswith("qkv.bias"):
            torch.testing.assert_close(cut[key], tensor, rtol=0, atol=1e-6, msg=key)
    parts = stopped_and_resumed(name, files, tmp_path / "parts", *teacher, monkeypatch=monkeypatch)
    assert_equal(weights(parts), weights(whole))
    capsys.readouterr()
    for option, said in (("--latent.ratio", "leave out the options --latent."), ("--distill.weight", "leave them out")):
        with pytest.raises(SystemExit):
            adapt(name, files, tmp_path / "none", *teacher, option, "0.3")
        assert said in capsys.readouterr().err
        assert not (tmp_path / "none").exists()


def test_a_sharded_teacher_is_refused(files, tmp_path, capsys):
    with pytest.raises(SystemExit):
        adapt("vision", files, tmp_path / "run", "--train.shard")
    assert "--train.shard cuts weights into parts, which a teacher cannot follow" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_masked_autoencoder_is_trained_by_lora_from_a_model_with_rotary_positions(files, tmp_path):
    config = ViTConfig(image_size=12, patch_size=3, positions="none", classes=0)
    small = replace(config.encoder, dim=16, depth=2, heads=2, rotary="2d", rotary_unit=True)
    ViT(replace(config, encoder=small)).save_pretrained(tmp_path / "start")
    arguments = ["folder", "--data.path", str(files / "vision"), *SHORT, "--init", str(tmp_path / "start")]
    arguments += ["--masked.ratio", "0.75", "--tune", "lora", "--out", str(tmp_path / "run")]
    train_command(VISION, arguments)
    before = load_file(tmp_path / "start" / "model.safetensors")
    changed = {key for key, tensor in weights(tmp_path / "run").items() if not torch.equal(tensor, before[key])}
    assert changed and all(".attention." in key for key in changed)
