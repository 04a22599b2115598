"""Proteins: a new domain, built only from what `core` exports."""

from .model import FoldConfig, FoldModel

__all__ = ["FoldConfig", "FoldModel"]
