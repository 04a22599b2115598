"""Sparse attention: patterns that say who may attend to whom, and kernels that compute no more than that."""

from .pattern import KINDS, Pattern
from .patterns import Axial, Causal, Dilated, Global, Local, PowersOfTwo, Random, Window2d
from .plan import Plan, make_plan

__all__ = [
    "KINDS",
    "Axial",
    "Causal",
    "Dilated",
    "Global",
    "Local",
    "Pattern",
    "Plan",
    "PowersOfTwo",
    "Random",
    "Window2d",
    "make_plan",
]
