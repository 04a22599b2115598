"""The conformance kit over every attention, encoder and model that is ours, of every modality, dense and sparse.

Run as a script (`python -P tests/test_conformance.py`), it prints the table of results that the docs contain.
torch.compile and torch.export are checked in a process of their own, where shapes are not checked: the checkers are
Python that no graph can contain.
"""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import jaxtyping
import torch

# Run as a script, it finds the examples and the helpers.
sys.path += [str(Path(__file__).parent.parent), str(Path(__file__).parent / "helpers")]

from core_subjects import ATTENTIONS, ENCODERS
from model_subjects import MODELS

from benchmarks.loop_ours import OURS
from core.testing import CHECKS, Report, Result, check, parametrize_with_checks

GRAPHS = ("compiles", "exports")
REPEATS = {"overfits-one-batch", "half-precision-error", "cost-grows-as-claimed", "dropout-is-on-in-training"}
REPEATS |= {"shared-parameters-are-shared"}
SUBJECTS = [*ATTENTIONS, *ENCODERS, *MODELS, OURS]


@parametrize_with_checks(SUBJECTS, without=GRAPHS)
def test_conforms(subject, check, monkeypatch):
    # Where a model runs a hundred times, the shapes in its signatures are left to the other checks.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", check.id in REPEATS)
    check(subject)


def test_graphs_conform():
    """torch.compile and torch.export."""
    command = [sys.executable, "-P", __file__, "graphs"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    report = Report(tuple(Result(**result) for result in json.loads(done.stdout)))
    report.raise_failures()
    assert {(result.subject, result.check) for result in report.results} == every_pair(GRAPHS)


def test_every_check_of_every_subject_has_a_status():
    """None is left out: a check that does not run is "not claimed", with the claim that is missing."""
    [mark] = test_conforms.pytestmark
    rest = {check.id for checks in CHECKS.values() for check in checks} - set(GRAPHS)
    assert {(subject.name, check.id) for subject, check in (case.values for case in mark.args[1])} == every_pair(rest)


def test_the_docs_have_the_table_of_results():
    """Print it with `python -P tests/test_conformance.py`."""
    declared = []
    for subject in SUBJECTS:
        for each in CHECKS[subject.kind]:
            known = "expected failure" if each.id in subject.expected_failures else "passed"
            status = known if subject.claimed.issuperset(each.needs) else "not claimed"
            declared.append(Result(subject=subject.name, check=each.id, status=status))
    assert table(declared) in (Path(__file__).parent.parent / "docs/conformance.md").read_text()


def every_pair(ids):
    return {(subject.name, check.id) for subject in SUBJECTS for check in CHECKS[subject.kind] if check.id in ids}


def table(results):
    """A markdown table of results for each kind of subject."""
    kinds = {subject.name: subject.kind for subject in SUBJECTS}
    order = list(kinds)
    parts = []
    for kind, checks in CHECKS.items():
        place = {check.id: number for number, check in enumerate(checks)}
        own = [result for result in results if kinds[result.subject] == kind]
        own.sort(key=lambda result: (place[result.check], order.index(result.subject)))
        parts.append(Report(tuple(own)).matrix())
    return "\n\n".join(parts)


def graph_checks():
    graphed = [subject for subject in SUBJECTS if subject.kind != "loop"]  # a training loop is not compiled as a whole
    return [result for subject in graphed for result in check(subject, GRAPHS).results]


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:] == ["graphs"]:
        print(json.dumps([asdict(result) for result in graph_checks()]))
    else:
        print(table([result for subject in SUBJECTS for result in check(subject).results]))
