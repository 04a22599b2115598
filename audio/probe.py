"""How good frozen features are: `python -m audio.probe EXPERIMENT --init MODEL`."""

from core.experiments import probe_command

from .train import AUDIO

if __name__ == "__main__":
    probe_command(AUDIO)
