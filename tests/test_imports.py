"""Importing a package changes nothing in the process: plots, warnings, threads, signals, environment and more."""

import subprocess
import sys

# Libraries of others, some of which do change something, come before. Each package is imported in a fork of its own.
SCRIPT = """
import os, random, signal, sys, threading, warnings
import accelerate, matplotlib, numpy, timm.models, torch, torch.utils.tensorboard
import torchaudio.compliance.kaldi
import torchaudio.transforms, torchvision.transforms.v2
matplotlib.use("svg")

def state():
    return {
        "backend": matplotlib.get_backend(),
        "figure settings": dict(matplotlib.rcParams),
        "filters": list(warnings.filters),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "dtype": torch.get_default_dtype(),
        "precision": torch.get_float32_matmul_precision(),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "hooks": (sys.excepthook, threading.excepthook, warnings.formatwarning, warnings.showwarning),
        "environment": dict(os.environ),
        "random numbers": (random.getstate(), torch.get_rng_state().tolist(), str(numpy.random.get_state())),
    }

def changed(package):
    before = state()
    __import__(package)
    after = state()
    assert "matplotlib.pyplot" not in sys.modules, "pyplot is imported"
    return [name for name in before if before[name] != after[name]]

for package in sys.argv[1:]:
    child = os.fork()
    if not child:
        print(package, *changed(package), sep=", ", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
PACKAGES = ["core", "core.experiments", "vision.train", "audio.train", "text.train"]


def test_importing_changes_nothing():
    done = subprocess.run([sys.executable, "-c", SCRIPT, *PACKAGES], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split("\n") == [*PACKAGES, ""], done.stdout + done.stderr


def test_commands_start_without_what_only_some_of_them_need():
    """Each of these takes half a second or more to import."""
    heavy = ["datasets", "pandas", "peft", "sklearn", "tensorboard", "timm", "transformers", "wandb"]
    script = f"import sys, {', '.join(PACKAGES[2:])}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "[]\n", done.stdout + done.stderr
