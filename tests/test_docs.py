"""README and docs as they stand: their Python runs, what they quote is there, their commands are understood.

Only downloads are done without: timm's models get random weights, transformers' names are directories made here.
"""

import importlib.util
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import jaxtyping
import peft
import pytest
import soundfile
import timm
import torch
import transformers
from PIL import Image
from text_tokenizers import make_bert

from audio import AST
from audio.train import AUDIO, dtmf
from core.experiments import jobs, search, sweep
from core.experiments.command import _read_command, parse_experiment
from core.experiments.words import read_options, words_of
from examples.multimodal.train import MULTIMODAL
from examples.protein.train import PROTEIN
from text.train import TEXT
from vision import ViT
from vision.train import VISION, digits

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODALITIES = {modality.name: modality for modality in (VISION, AUDIO, TEXT, MULTIMODAL, PROTEIN)}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.M | re.S)


@pytest.fixture
def downloaded(tmp_path, monkeypatch):
    """The directory to run in."""
    monkeypatch.chdir(tmp_path)
    create = timm.create_model

    def random_weights(*args, **kwargs):
        """Made here, because whoever asks for a checkpoint's weights has none made."""
        module = create(*args, **kwargs | {"pretrained": False})
        for parameter in module.parameters():
            torch.Tensor.copy_(
                parameter.data, torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.02
            )
        return module

    monkeypatch.setattr(timm, "create_model", random_weights)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    bert = transformers.BertForSequenceClassification(transformers.BertConfig(**shape))
    bert.save_pretrained("bert-base-uncased")
    make_bert().save_pretrained("bert-base-uncased")
    peft.get_peft_model(bert, peft.LoraConfig(target_modules=["query", "value"])).save_pretrained("their-adapter")
    return tmp_path


def make_runs() -> None:
    """Directories of runs, with a sample each."""
    labels = tuple("0123456789")
    for kind, experiment in ((ViT, digits()), (AST, dtmf())):
        folder = Path("runs") / ("digits" if kind is ViT else "dtmf")
        kind(replace(experiment.model, classes=10, labels=labels)).save_pretrained(folder / "model")
        (folder / "samples").mkdir()
    Image.new("L", (8, 8), 128).save("runs/digits/samples/1-0.png")
    soundfile.write("runs/dtmf/samples/1.wav", torch.zeros(4000).numpy(), 8000)


def export_digits() -> None:
    """By a process of its own, where shapes are not checked."""
    subprocess.run([sys.executable, "-m", "vision.export", "runs/digits", "digits.onnx"], check=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_runs(page, downloaded, monkeypatch):
    """As one module with a file of its own, in which --help finds what is said of options."""
    torch.manual_seed(0)
    module = ModuleType("page")
    module.__file__ = str(downloaded / "page.py")
    own = [code for code in blocks(page, "python") if not code.startswith("# examples/")]
    Path(module.__file__).write_text("\n\n".join(own))
    monkeypatch.setitem(sys.modules, "page", module)
    names = vars(module) | {"images": torch.randn(1, 3, 512, 512)}
    if "runs/digits" in "".join(own):
        make_runs()
    if "digits.onnx" in "".join(own):
        export_digits()
    for number, code in enumerate(own, 1):
        # The checkers are Python that no graph can hold.
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", "export_model(" in code)
        exec(compile(code, f"{page.name}, block {number}", "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_quoted_is_there(page):
    for code in blocks(page, "python"):
        if code.startswith("# examples/"):
            path, quoted = code.split("\n", 1)
            assert quoted.strip("\n") in (ROOT / path.removeprefix("# ")).read_text(), code
    for link in re.findall(r"\]\(((?!http)[^)#]+)", page.read_text()):
        assert (page.parent / link).exists(), link


def commands() -> list[list[str]]:
    """From `-m` on."""
    found = []
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if "-m" in words:
                    found.append(words[words.index("-m") + 1 :])
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_are_understood(words):
    module, arguments = words[0], words[1:]
    package, _, program = module.rpartition(".")
    if program != "train" or package not in MODALITIES or "--help" in arguments:
        assert importlib.util.find_spec(module)
        return
    modality = MODALITIES[package]
    name, options, default = _read_command(modality, [word for word in arguments if word != "--resume"])

    def parse(options):
        return parse_experiment(modality, [name, *options])[1]

    given = [option for option in read_options(options) if option.field not in ("out", *jobs.FIELDS)]
    if search.is_search(options):
        spaces = [search.Space.of(text) for option in given if option.field == "search" for text in option.values]
        others = [option for option in given if option.field not in ("search", "trials")]
        search.check_spaces(spaces, words_of(others), parse)
    elif sweep.is_sweep(options, default):
        assert len(sweep._plan(given, default, parse)) > 1
    else:
        assert parse_experiment(modality, [name, *options])[0] == name
