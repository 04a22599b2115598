"""Sparse attention: patterns that say who may attend to whom."""

from .patterns import Local, Pattern

__all__ = ["Local", "Pattern"]
