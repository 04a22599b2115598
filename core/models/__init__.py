"""Whole models are saved, loaded, fine-tuned and exported."""

from .hub import HubModel

__all__ = ["HubModel"]
