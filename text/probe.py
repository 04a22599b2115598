"""How good frozen features are: `python -m text.probe EXPERIMENT --init MODEL`."""

from core.experiments import probe_command

from .train import TEXT

if __name__ == "__main__":
    probe_command(TEXT)
