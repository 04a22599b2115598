"""The kit's interface: statuses, mistakes, the page, pytest, the command line, the docs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core import UserError
from core.testing import (
    CHECKS,
    AttentionSubject,
    EncoderSubject,
    Failed,
    check,
    check_attention,
    check_encoder,
    check_model,
    list_of_checks,
    parametrize_with_checks,
)
from core.testing.__main__ import main
from core.testing.cost import cost, exponent

ROOT = Path(__file__).parents[3]
SOME = {"agrees-with-reference", "length-one", "masked-never-leaks", "bias-agrees-with-reference"}


def sdpa(q, k, v, *, mask=None):
    pairs = mask if mask is None or mask.ndim == 4 else mask[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=pairs)


def broken(q, k, v):
    raise KeyError("no\nluck")


def statuses(report):
    return {result.check: result.status for result in report.results}


def test_claims_follow_from_the_parameters_and_nothing_is_left_out():
    report = check_attention(sdpa, only=SOME)
    assert statuses(report) == {
        "agrees-with-reference": "passed",
        "bias-agrees-with-reference": "not claimed",
        "masked-never-leaks": "failed",
        "length-one": "passed",
    }
    with pytest.raises(Failed, match="sdpa: masked-never-leaks: output with nan behind the mask"):
        report.raise_failures()


def test_expected_failures_must_fail():
    expected = {"masked-never-leaks": "0 times NaN"}
    report = check_attention(sdpa, only=SOME, expected_failures=expected)
    assert statuses(report)["masked-never-leaks"] == "expected failure" and not report.failed
    [result] = check_attention(sdpa, only={"length-one"}, expected_failures={"length-one": "who knows"}).failed
    assert result.message == "passes, but was expected to fail (who knows)"


def test_a_parameter_that_claims_leave_out_is_named():
    with pytest.warns(UserWarning, match="takes mask, but `claims` does not have 'mask'"):
        check_attention(sdpa, claims={"double"}, only={"length-one"})


def test_what_is_allowed_is_boolean_and_square():
    for made in (lambda n: torch.ones(n, n), lambda n: torch.ones(n, dtype=torch.bool), lambda n: [[True]]):
        [result] = check_attention(lambda q, k, v: v, allowed=made, only={"agrees-with-reference"}).results
        assert "must be a boolean tensor 12 x 12" in result.message


def test_inputs_with_missing_values_are_left_as_they_were():
    class Gaps(nn.Linear):
        def forward(self, x):
            return super().forward(torch.cat([x.nan_to_num(0), x.isnan().to(x)], dim=-1)).mean(dim=1)

    x = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0] = torch.nan
    assert not check_model(lambda: Gaps(12, 3), (x,), only={"shapes-and-dtypes"}).failed


def test_whatever_is_raised_is_a_result_of_one_sentence():
    [result] = check_attention(broken, only={"length-one"}).results
    assert result.status == "failed" and result.message == r"raises KeyError: 'no\nluck'"


@pytest.mark.parametrize(
    "options, words",
    [
        ({"claims": {"masks"}}, "no claim 'masks'; did you mean 'mask'?"),
        ({"only": {"length-two"}}, "no check 'length-two'; did you mean 'length-one'?"),
        ({"expected_failures": {"gradchek": "?"}}, "no check 'gradchek'; did you mean 'gradcheck'?"),
        ({"claims": {"mask"}, "expected_failures": {"gradcheck": "slow"}}, "'double' is not claimed"),
    ],
)
def test_mistakes_get_one_sentence(options, words):
    with pytest.raises(UserError, match=re.escape(words)):
        check_attention(sdpa, **options)


def test_the_page():
    page = check_attention(sdpa, name="torch's", only=SOME).page()
    assert page.startswith("2 passed, 1 failed, 0 expected failure, 1 not claimed\n\n## torch's\n")
    assert "| length-one | passed | error 0 |" in page
    assert "| bias-agrees-with-reference | not claimed | it needs the claim 'bias' |" in page
    report = check_attention(sdpa, name="torch's", only={"length-one", "masked-never-leaks"})
    assert report.matrix().splitlines()[0] == "| check | torch's |"
    assert "| masked-never-leaks | **F** |" in report.matrix()


SUBJECTS = [
    AttentionSubject(sdpa, name="sdpa", claims={"mask"}, expected_failures={"masked-never-leaks": "0 times NaN"}),
    EncoderSubject(lambda: torch.nn.Linear(16, 16), name="linear", claims={"equivariant"}),
]


@parametrize_with_checks(SUBJECTS, without=["overfits-one-batch", "masked-rows-are-zero"])
def test_in_pytest(subject, check):
    if subject.name == "sdpa" and check.id == "masked-never-leaks":
        with pytest.raises(pytest.xfail.Exception, match="0 times NaN"):
            check(subject)
    elif any(each.id == check.id and set(each.needs) - subject.claimed for each in CHECKS[subject.kind]):
        with pytest.raises(pytest.skip.Exception, match="not claimed: it needs the claim"):
            check(subject)
    else:
        check(subject)


def test_pytest_names_every_check_and_subjects_need_names():
    cases = parametrize_with_checks(SUBJECTS).args[1]
    assert len(cases) == len(CHECKS["attention"]) + len(CHECKS["encoder"])
    assert cases[0].id == "sdpa-shapes-and-dtypes"
    with pytest.raises(UserError, match="several called 'sdpa'"):
        parametrize_with_checks([SUBJECTS[0]] * 2)


def test_ids_are_one_check_each():
    for checks in CHECKS.values():
        ids = [each.id for each in checks]
        assert len(set(ids)) == len(ids) and all(each.sentence.endswith(".") for each in checks)


def test_cost_is_counted():
    a, b = torch.randn(8, 16), torch.randn(16, 4)
    assert cost(lambda: a @ b) == (2 * 8 * 16 * 4, 4 * 8 * 4)
    assert cost(lambda: torch.stack([a + i for i in range(3)])) == (6 * 8 * 16, 6 * 4 * 8 * 16)
    assert cost(lambda: (a + 1).sum()) == (8 * 16 + 1, 4 * 8 * 16 + 4)
    assert exponent([1, 2, 4, 8], [3.0, 12.0, 48.0, 192.0]) == pytest.approx(2)


def test_a_module_of_tokens_alone_is_an_encoder():
    assert not check_encoder(lambda: torch.nn.Linear(16, 16), claims=set()).failed
    assert check(SUBJECTS[1], {"order-changes-nothing"}).results[0].status == "passed"


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["attentions:right", "--only", "length-one", "deterministic"], 0, "2 passed"),
        (["attentions:broken", "--only", "length-one"], 1, "| length-one | failed | raises ValueError: never |"),
        (["attentions:subject", "--only", "gradcheck"], 0, "## a subject"),
        (["attentions:layer", "--dim", "8", "--claims", "--only", "length-one"], 0, "1 passed"),
        (["attentions"], 2, "error: 'attentions' is not a name: write module:name, as in my_module:my_attention.\n"),
        (["attentions:wrong"], 2, "error: The module attentions has no wrong.\n"),
        (["nowhere:right"], 2, "error: The module nowhere can't be imported: No module named 'nowhere'.\n"),
        (["attentions:number"], 2, "error: attentions:number is neither a Subject nor a function of q, k, v,"),
        (["attentions:right", "--claims", "mast"], 2, "error: There is no claim 'mast'; did you mean 'mask'?\n"),
        (["attentions:right", "--without", "cros"], 2, "error: There is no claim 'cros'; did you mean 'cross'?\n"),
        (["attentions:square", "--only", "deterministic"], 1, "only as many queries as keys: do not claim 'cross') |"),
        (["attentions:square", "--without", "cross", "--only", "length-one"], 0, "1 passed"),
    ],
)
def test_command_line(arguments, code, words, tmp_path, monkeypatch, capsys):
    (tmp_path / "attentions.py").write_text(
        "import torch\nfrom torch.nn.functional import scaled_dot_product_attention\n"
        "from core.testing import AttentionSubject\n"
        "def right(q, k, v):\n    return scaled_dot_product_attention(q, k, v)\n"
        "def square(q, k, v):\n    return (q @ k.mT * q.shape[-1] ** -0.5 + 0 * q @ q.mT).softmax(-1) @ v\n"
        "def broken(q, k, v):\n    raise ValueError('never')\n"
        "def layer():\n    return torch.nn.Linear(8, 8)\n"
        "subject = AttentionSubject(right, name='a subject')\nnumber = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "attentions", raising=False)
    assert main(arguments) == code
    said = capsys.readouterr()
    assert words in said.out + said.err


def test_the_core_does_without_the_kit_and_the_kit_without_pytest():
    script = "import sys, core; assert 'core.testing' not in sys.modules; import core.testing; "
    script += "assert 'pytest' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True).returncode == 0


def test_the_docs_run_as_they_stand_and_list_every_check():
    page = (ROOT / "docs/conformance.md").read_text()
    assert list_of_checks() in page
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", "\n".join(blocks)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| masked-never-leaks | failed |" in done.stdout
