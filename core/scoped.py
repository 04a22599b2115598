"""A setting that is valid inside a `with`, in the thread or task that enters it and nowhere else."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


@dataclass(eq=False)
class _Entry(Generic[T]):
    value: T
    open: bool = True


class _Traced(threading.local):
    """The value for torch.compile: it can read and write this, but not a ContextVar (torch 2.11)."""

    def __init__(self):
        self.value: Any = None


class Scoped(Generic[T]):
    """If several blocks are open, the one entered last counts, whatever the order in which they are closed."""

    def __init__(self, name: str):
        self._entries: ContextVar[tuple[_Entry[T], ...]] = ContextVar(name, default=())
        self._traced = _Traced()

    def get(self) -> T | None:
        """The value; None outside of all blocks."""
        if torch.compiler.is_compiling():
            return self._traced.value
        return next((entry.value for entry in reversed(self._entries.get()) if entry.open), None)

    @contextmanager
    def set(self, value: T) -> Iterator[T]:
        if torch.compiler.is_compiling():
            before, self._traced.value = self._traced.value, value
            try:
                yield value
            finally:
                self._traced.value = before
            return
        entry = _Entry(value)
        self._entries.set((*self._entries.get(), entry))
        self._traced.value = value
        try:
            yield value
        finally:
            entry.open = False  # in copies of this context, too
            self._entries.set(tuple(entry for entry in self._entries.get() if entry.open))
            self._traced.value = self.get()
