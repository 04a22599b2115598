"""A failure explained: the smallest input found, and a script that shows it without the kit."""

from dataclasses import replace

from .module_subjects import EncoderSubject
from .runner import Check, Result
from .scripts import script_of
from .shrink import in_words, shrink
from .subjects import AttentionSubject, Subject


def explain(check: Check, subject: Subject, result: Result) -> Result:
    """The result; of a failure with the smallest input and a script, as far as they can be found."""
    if result.status != "failed" or check.id in subject.expected_failures:
        return result
    smallest = shrink(check, subject, result) if check.shrinks else subject
    shown = check(smallest)
    if isinstance(smallest, AttentionSubject | EncoderSubject) and check.id.startswith("many-tokens"):
        smallest = smallest.with_many_tokens()
    return replace(result, smallest=in_words(check, smallest), script=script_of(check, smallest, shown))
