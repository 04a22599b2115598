"""A setting that holds inside a `with`, in the thread or task that it is made in and nowhere else."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


@dataclass(eq=False)
class _Entry(Generic[T]):
    value: T
    open: bool = True


class _Traced(threading.local):
    """What torch.compile sees: it can read and write this, and not a ContextVar (torch 2.11)."""

    def __init__(self):
        self.value = None


class Scoped(Generic[T]):
    """Of several blocks that are open the one entered last counts, in whatever order they are left."""

    def __init__(self, name: str):
        self._entries: ContextVar[tuple[_Entry[T], ...]] = ContextVar(name, default=())
        self._traced = _Traced()

    def get(self) -> T | None:
        """The value; None outside."""
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
            entry.open = False  # for whoever has copied this context, too
            self._entries.set(tuple(entry for entry in self._entries.get() if entry.open))
            self._traced.value = self.get()
