"""How good frozen features are: `python -m vision.probe EXPERIMENT --init MODEL`."""

from core.experiments import probe_command

from .train import VISION

if __name__ == "__main__":
    probe_command(VISION)
