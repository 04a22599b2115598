"""The conformance kit: checks for any attention, encoder, model or training loop, whoever wrote it.

    report = check_attention(my_attention)  # a function of q, k, v "b h n c"
    print(report)                           # a page: passed, failed, expected failure, not claimed
    report.raise_failures()

`python -m core.testing my_module:my_attention` prints the same page. docs/conformance.md describes the kit.
"""

from .claims import ATTENTION, CLAIMS, ENCODER, LOOP, MODEL
from .kit import CHECKS, check, check_attention, check_encoder, check_loop, check_model, list_of_checks
from .loop_subjects import LoopJob, LoopOutcome, LoopSubject
from .measures import Failed
from .module_subjects import EncoderSubject, ModelSubject, Positions
from .parametrize import parametrize_with_checks
from .runner import Check, Report, Result
from .subjects import AttentionSubject, Subject

__all__ = [
    "ATTENTION",
    "CHECKS",
    "CLAIMS",
    "ENCODER",
    "LOOP",
    "MODEL",
    "AttentionSubject",
    "Check",
    "EncoderSubject",
    "Failed",
    "LoopJob",
    "LoopOutcome",
    "LoopSubject",
    "ModelSubject",
    "Positions",
    "Report",
    "Result",
    "Subject",
    "check",
    "check_attention",
    "check_encoder",
    "check_loop",
    "check_model",
    "list_of_checks",
    "parametrize_with_checks",
]
