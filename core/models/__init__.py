"""Whole models: saved and loaded, tuned from a start, exported."""

from .hub import HubModel

__all__ = ["HubModel"]
