"""Audio: waveforms in, classes out, on the shared core."""

from core.startup import import_quickly

import_quickly(__name__)

from .features import FeatureConfig, Filterbank
from .model import AST, ASTConfig
from .waveform import WaveformConfig, WaveformModel

__all__ = ["AST", "ASTConfig", "FeatureConfig", "Filterbank", "WaveformConfig", "WaveformModel", "from_hf"]


def __getattr__(name):
    # transformers takes seconds to import, and only those who load its checkpoints need it.
    if name == "from_hf":
        from .hf import from_hf

        return from_hf
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
