"""The kit's functions: they take a subject, run its checks and return a report."""

import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import UserError
from .attention import ATTENTION_CHECKS
from .claims import BY_PARAMETER, unknown
from .encoders import ENCODER_CHECKS
from .explain import explain
from .loop_subjects import LoopJob, LoopOutcome, LoopSubject
from .loops import LOOP_CHECKS
from .models import MODEL_CHECKS
from .module_subjects import EncoderSubject, ModelSubject
from .recognise import subject_of
from .runner import Check, Report, check_expectations
from .subjects import AttentionSubject
from .written import parameters

# In this order: a fault that a check finds makes later ones fail, too. The first failure is the one to look at.
CHECKS: dict[str, tuple[Check, ...]] = {
    "attention": ATTENTION_CHECKS,
    "encoder": ENCODER_CHECKS,
    "model": MODEL_CHECKS,
    "loop": LOOP_CHECKS,
}


def check_attention(attention: Callable[..., Tensor], *, only: Collection[str] | None = None, **options: Any) -> Report:
    """Run the checks of an attention over a function of q, k, v "b h n c"; options: those of AttentionSubject.

    only: ids of the checks to run; all if None.
    """
    subject = AttentionSubject(attention, **_named(attention, options))
    for name in parameters(attention) if subject.claims is not None and subject.recognised is None else ():
        if name in BY_PARAMETER and not BY_PARAMETER[name] & subject.claimed:
            warnings.warn(
                f"check_attention: {subject} takes {name}, but `claims` does not have {name!r}, so that nothing checks "
                "it: add it, as in claims=ATTENTION | {'mask', 'pairs'}.",
                stacklevel=2,
            )
    return check(subject, only)


def check_encoder(factory: Callable[[], nn.Module], *, only: Collection[str] | None = None, **options: Any) -> Report:
    """Run the checks of an encoder over the module that `factory()` makes; options: those of EncoderSubject."""
    return check(EncoderSubject(factory, **_named(factory, options)), only)


def check_model(
    factory: Callable[[], nn.Module], batch: Sequence[Any], *, only: Collection[str] | None = None, **options: Any
) -> Report:
    """Run the checks of a model over what `factory()` makes, called on `batch`; options: those of ModelSubject."""
    return check(ModelSubject(factory, batch, **_named(factory, options)), only)


def check_loop(
    train: Callable[[LoopJob], LoopOutcome], *, only: Collection[str] | None = None, **options: Any
) -> Report:
    """Run the checks of a training loop over train(job); options: those of LoopSubject."""
    return check(LoopSubject(train, **_named(train, options)), only)


def check(target: Any, only: Collection[str] | None = None, **options: Any) -> Report:
    """Run the checks of a subject, or of what one is made of: an attention, a module, a function that makes one, a
    training loop.

    How it is called is found by its signature (`subject_of`). options: those of all subjects (`Subject`).
    """
    subject = subject_of(target, **options)
    checks = CHECKS[subject.kind]
    known = {each.id for each in checks}
    for name in only or ():
        if name not in known:
            raise UserError(unknown("check", name, known))
    check_expectations(subject, checks)
    chosen = [each for each in checks if only is None or each.id in only]
    return Report(tuple(explain(each, subject, each(subject)) for each in chosen))


def list_of_checks() -> str:
    """A markdown table of all checks: of what, which claim each needs, and what must hold."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for kind, checks in CHECKS.items():
        for each in checks:
            rows.setdefault((each.id, each.sentence, ", ".join(each.needs)), []).append(kind)
    lines = ["| check | of | needs the claim | what must hold |", "|---|---|---|---|"]
    for (name, sentence, needs), kinds in rows.items():
        lines.append(f"| `{name}` | {', '.join(kinds)} | {needs} | {sentence} |")
    return "\n".join(lines)


def _named(function: Callable, options: dict[str, Any]) -> dict[str, Any]:
    return {"name": getattr(function, "__name__", type(function).__name__), **options}
