"""The kit finds every fault, says what it is and shows it; it finds none in correct implementations."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import attention_mutants
import module_mutants
import odd_but_right
import padding_mutants
import pytest
import stored_mutants
from mutants import CORRECT, ENCODES, GRAPHS, KNOWN_FAILURES, MUTANTS, attention, encoder

from core.testing import ATTENTION, CHECKS, check

HELPERS = Path(__file__).parents[2] / "helpers"
# A reference that is a lambda can't be imported; of the other only the kit's counter sees the operations.
WITHOUT_SCRIPT = {"encoder unlike its reference", "quadratic encoder"}
# Without their fault these have another: no dropout to be found, weights that are not shared, no such option.
OTHER_FAULTS = {"NeverDrops", "SharedIsCopied", "is_causal_leaks", "is_causal_learns_from_all"}
SMALLEST = {
    ("agrees-with-reference", "wrong_scale"): "1 sample, 1 head, 1 query, 2 keys, 1 feature",
    ("batch-changes-nothing", "head_leak"): "2 samples, 2 heads, 1 query, 2 keys, 1 feature",
    ("future-changes-nothing", "leak_at_one_position"): "1 sample, 1 head, 9 tokens, 1 feature",
    ("future-changes-nothing", "CausalLeak"): "1 sample, 2 tokens",
    ("batch-changes-nothing", "SortsTheBatch"): "2 samples, 1 token",
}
RUNNER = """
import contextlib, io, json, sys
class NoKit:
    def find_spec(self, name, path=None, target=None):
        if name == "core.testing":
            raise ImportError("the kit")
sys.meta_path.insert(0, NoKit())
found = {}
for name, script in json.load(sys.stdin).items():
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(script, name, "exec"), {"__name__": "script"})
        found[name] = "passes"
    except Exception as error:
        found[name] = type(error).__name__
json.dump(found, sys.stdout)
"""
CASES = [(name, expected) for expected, subjects in MUTANTS.items() for name in subjects]


@pytest.mark.parametrize("name", CORRECT)
def test_correct_implementations_pass_every_check(name):
    wrong = {result.check: result.message for result in check(CORRECT[name]).failed}
    assert wrong.keys() == KNOWN_FAILURES.get(name, set()), wrong


@cache
def result_of(expected, name):
    [result] = check(MUTANTS[expected][name], {expected}).results
    return result


@pytest.mark.parametrize("name, expected", CASES)
def test_each_mutant_is_caught_by_the_check_for_it(name, expected):
    result = result_of(expected, name)
    assert result.status == "failed", result
    assert result.message and "\n" not in result.message and "TypeCheckError" not in result.message


def first_failure(subject):
    """The check that the page shows first among those that fail."""
    return next((each.id for each in CHECKS[subject.kind] if each(subject).status == "failed"), "")


@pytest.mark.usefixtures("as_in_production")
def test_the_first_failure_names_the_fault():
    subjects = {(expected, name): MUTANTS[expected][name] for name, expected in CASES}
    named = {(expected, name): first_failure(subject) for (expected, name), subject in subjects.items()}
    # Some mutants are listed under several checks, each of which names their fault.
    right = [case for case, first in named.items() if case[1] in MUTANTS.get(first, ())]
    assert len(right) >= 0.9 * len(named), {case: first for case, first in named.items() if case not in right}


def test_every_check_has_a_mutant():
    of_tensors = [checks for kind, checks in CHECKS.items() if kind != "loop"]  # those of loops are in test_loops.py
    assert set(MUTANTS) == {each.id for checks in of_tensors for each in checks}


def run(scripts):
    command = [sys.executable, "-W", "ignore", "-c", RUNNER]
    done = subprocess.run(command, input=json.dumps(scripts), capture_output=True, text=True, cwd=HELPERS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def without_fault(mutant):
    """The name of a mutant in scripts, and of what it was before: of a class the one it comes from."""
    if hasattr(attention_mutants, mutant):
        right = "right_causal" if mutant.startswith("leak_") else "right"
        return f"attention_mutants.{mutant}", f"attention_mutants.{right}"
    for file in (module_mutants, padding_mutants, stored_mutants):
        if hasattr(file, mutant):
            return f"{file.__name__}.{mutant}", f"{file.__name__}.{getattr(file, mutant).__mro__[1].__name__}"
    return None


def test_scripts_show_the_fault_without_the_kit_and_pass_once_it_is_gone():
    scripts = {}
    for name, expected in CASES:
        result, names = result_of(expected, name), without_fault(name)
        assert bool(result.script) == (name not in WITHOUT_SCRIPT), (expected, name)
        assert len(result.script.splitlines()) <= 20 and "core.testing" not in result.script
        if result.script:
            scripts[f"{expected}: {name}"] = result.script
        if result.script and names and name not in OTHER_FAULTS:
            scripts[f"{expected}: {name}, right"] = result.script.replace(*names)
    assert len(scripts) > 140
    for case, error in run(scripts).items():
        expected, _, name = case.partition(": ")
        if name.endswith(", right"):
            assert error == "passes", case
        else:
            message = result_of(expected, name).message
            assert error == "AssertionError" or message.startswith(f"raises {error}:"), (case, error)


def test_inputs_are_shrunk():
    smallest = {(expected, name): result_of(expected, name).smallest for expected, name in SMALLEST}
    assert smallest == SMALLEST


SLOW = {"overfits-one-batch"}  # says nothing of how it is computed


@pytest.mark.parametrize("function", odd_but_right.ATTENTIONS, ids=lambda function: function.__name__)
def test_no_false_alarm_of_attentions_that_look_odd(function):
    failed = check(attention(function, claims=ATTENTION - GRAPHS)).failed
    assert not failed, failed[0].message


@pytest.mark.parametrize("factory", odd_but_right.ENCODERS)
def test_no_false_alarm_of_encoders_that_look_odd(factory):
    subject = encoder(factory, claims=ENCODES)
    failed = check(subject, {each.id for each in CHECKS["encoder"]} - SLOW).failed
    assert not failed, failed[0].check + failed[0].message
