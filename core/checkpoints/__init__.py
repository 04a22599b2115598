"""Weights are read from files, and loaded through key maps that account for every key."""

from .files import plain_state, read_file, read_state
from .keys import KeyMap, Move, State, WeightsError, check_keys, convert, load, unfilled

__all__ = [
    "KeyMap",
    "Move",
    "State",
    "WeightsError",
    "check_keys",
    "convert",
    "load",
    "plain_state",
    "read_file",
    "read_state",
    "unfilled",
]
