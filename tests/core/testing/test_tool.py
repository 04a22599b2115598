"""The kit as a tool: with torch alone, in pytest by an option, and as a command with files for other programs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from processes import start

ROOT = Path(__file__).parents[3]
MINE = """
import torch
from torch import nn
import torch.nn.functional as F

def attention(q, k, v, attn_mask=None):
    return F.scaled_dot_product_attention(q, k, v, attn_mask)

def causal(q, k, v, is_causal=False):
    n = q.shape[2]
    return F.scaled_dot_product_attention(q, k, v, torch.ones(n, n).tril(1).bool() if is_causal else None)

class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)

    def forward(self, x, lengths):
        return self.layer(x, src_key_padding_mask=torch.arange(x.shape[1]) > lengths[:, None])

class Graph(nn.Linear):
    def forward(self, nodes, edges):
        return super().forward(nodes[edges])

def graph():
    return Graph(4, 4)
"""
# What is installed, but not needed: as if it were not.
BLOCKED = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {blocked} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
OTHERS = (
    "vision audio text torchvision torchaudio timm transformers accelerate einops pydantic annotated_types yaml tyro "
    "safetensors huggingface_hub tokenizers soundfile sklearn scipy matplotlib jinja2 tensorboard tqdm psutil PIL "
    "pytest"
)


@pytest.fixture(autouse=True)
def folder(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def python(folder, *arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def kit(folder, *arguments):
    """`python -m core.testing`: its exit status, and what it prints."""
    out, err = folder / "out", folder / "err"
    process = start("core.testing", arguments, folder, out=out, err=err)
    process.join()
    return process.exitcode, out.read_text(), err.read_text()


def test_torch_alone_is_enough(folder):
    script = BLOCKED.format(blocked=set(OTHERS.split())) + (
        "from core.testing.__main__ import main\n"
        "status = main(['mine:attention'])\n"
        "assert not [name for name in sys.modules if name.startswith(('core.attention', 'core.encoder', 'core.api'))]\n"
        "sys.exit(status)"
    )
    done = python(folder, "-c", script)
    assert done.returncode == 1, done.stderr  # 0 times NaN is NaN
    assert "passed, 1 failed" in done.stdout and "| masked-never-leaks | failed |" in done.stdout


def test_files_for_other_programs_and_the_exit_status(folder):
    arguments = ("-m", "core.testing", "mine:causal", "--json", "out.json", "--junit", "out.xml", "--only")
    done = python(folder, *arguments, "is-causal-agrees-with-reference", "length-one", "scale-agrees-with-reference")
    assert done.returncode == 1, done.stderr
    results = {r["check"]: r for r in json.loads((folder / "out.json").read_text())["results"]}
    assert [r["status"] for r in results.values()] == ["passed", "not claimed", "failed"]
    failure = results["is-causal-agrees-with-reference"]
    assert failure["smallest"] == "1 sample, 1 head, 2 tokens, 1 feature" and failure["figures"]["error"] > 0
    for text in (done.stdout, (folder / "out.xml").read_text()):
        assert failure["message"] in text and failure["smallest"] in text
    assert failure["script"] in done.stdout
    [suite] = ElementTree.parse(folder / "out.xml").getroot()
    assert {key: suite.get(key) for key in ("name", "tests", "failures", "skipped")} == {
        "name": "mine:causal",
        "tests": "3",
        "failures": "1",
        "skipped": "1",
    }
    [found] = suite.iter("failure")
    assert found.text is not None and failure["script"] in found.text
    script = python(folder, "-c", failure["script"])
    assert script.returncode == 1 and "Tensor-likes are not close" in script.stderr
    assert python(folder, *arguments, "length-one").returncode == 0


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["mine:graph"], "error: mine:graph is called as forward(nodes, edges), which is no signature that"),
        (["mine:attention", "--json", "nowhere/out.json"], "error: nowhere/out.json can't be written: there is no"),
        (["mine:attention", "--device", "nowhere"], "error: There is no device 'nowhere' here"),
        (["mine:attention", "--dtype", "int8"], "invalid choice: 'int8'"),
        ([], "the following arguments are required: target"),
    ],
)
def test_wrong_use_has_its_own_status(folder, arguments, words):
    status, _, said = kit(folder, *arguments)
    assert status == 2 and words in said and "Traceback" not in said


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_other_dtypes(folder, dtype):
    _, said, _ = kit(folder, "mine:attention", "--dtype", dtype, "--without", "compile", "export")
    assert ", 1 failed" in said and "| gradcheck | not claimed |" in said, said


def in_pytest(folder, *arguments):
    options = "-p core.pytest_plugin -p no:xdist -p no:cacheprovider -p no:jaxtyping --rootdir ."
    return python(folder, "-m", "pytest", *options.split(), "-c", os.devnull, *arguments)


def test_an_option_of_pytest_makes_a_test_of_each_check(folder):
    done = in_pytest(folder, "--conform", "mine:Encoder", "--conform", "mine:causal", "-k", "padding or causal", "-v")
    assert done.returncode == 1, done.stderr
    assert "mine:causal::is-causal-agrees-with-reference FAILED" in done.stdout
    assert "mine:Encoder::padding-changes-nothing FAILED" in done.stdout
    assert "mine:Encoder::padding-comes-out-as-zero SKIPPED" in done.stdout
    assert "The smallest input found: 1 sample, 1 token." in done.stdout and "module = mine.Encoder()" in done.stdout
    assert in_pytest(folder, "--conform", "mine:causal", "-k", "length-one").returncode == 0
    wrong = in_pytest(folder, "--conform", "mine:nothing")
    assert wrong.returncode == 4 and "ERROR: The module mine has no nothing." in wrong.stderr + wrong.stdout


def test_three_lines_in_a_test_file(folder):
    (folder / "test_mine.py").write_text(
        "from core.testing import parametrize_with_checks\nfrom mine import Encoder\n\n"
        "@parametrize_with_checks([Encoder])\ndef test_conforms(subject, check):\n    check(subject)\n"
    )
    done = in_pytest(folder, "test_mine.py", "-k", "length-one or length-zero")
    assert "1 failed, 1 skipped" in done.stdout and "module = mine.Encoder()" in done.stdout, done.stdout
