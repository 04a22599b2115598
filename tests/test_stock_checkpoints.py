"""Checkpoints of other libraries that are damaged, or not what they seem: each is refused in one sentence that names
the directory, and nothing in it is run."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import audio_peers
import protein_peers
import pytest
import text_peers
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file

import audio
import vision
from audio.pretrained import load_pretrained as load_audio
from core import UserError
from examples.protein.pretrained import from_hf as protein_from_hf
from examples.protein.pretrained import load_model
from text.pretrained import from_hf as text_from_hf
from text.pretrained import load_pretrained as load_text
from vision.pretrained import load_pretrained as load_vision

WEIGHTS, CONFIG, PREPROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
RUN = Path("was-run")


def bert(folder: Path) -> None:
    text_peers.make_peer("Bert", "ForSequenceClassification", num_labels=3).save_pretrained(folder)


def vit(folder: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def timm_vit(folder: Path) -> None:
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
    folder.mkdir()
    save_file(timm.create_model("vit_tiny_patch16_224", **sizes).state_dict(), folder / WEIGHTS)
    how = {"input_size": [3, 32, 32], "num_classes": 3, "first_conv": "patch_embed.proj", "classifier": "head"}
    settings = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "model_args": sizes, "pretrained_cfg": how}
    (folder / CONFIG).write_text(json.dumps(settings))


def ast(folder: Path) -> None:
    peer = audio_peers.make_ast()
    peer.save_pretrained(folder)
    audio_peers.ast_extractor(peer).save_pretrained(folder)


KINDS: dict[str, tuple[Callable[[Path], None], Callable[..., Any], Callable[..., Any]]] = {
    "BERT": (bert, text_from_hf, load_text),
    "ViT": (vit, vision.from_hf, load_vision),
    "timm": (timm_vit, vision.from_timm, load_vision),
    "AST": (ast, audio.from_hf, load_audio),
    "ESM-2": (lambda folder: protein_peers.make_peer().save_pretrained(folder), protein_from_hf, load_model),
    "ESM C": (lambda folder: protein_peers.make_peer("EsmcModel").save_pretrained(folder), protein_from_hf, load_model),
}
"""By kind: what makes a checkpoint, and what loads it: from Python, and for the command lines."""


class Payload:
    def __reduce__(self):
        return RUN.touch, ()


def configured(**changes: Any) -> Callable[[Path], None]:
    """Other values of a config, which timm keeps under names of its own."""
    ours = {"hidden_size": "embed_dim", "num_hidden_layers": "depth", "num_attention_heads": "num_heads"}

    def damage(folder: Path) -> None:
        settings = json.loads((folder / CONFIG).read_text())
        for name, value in changes.items():
            if "model_args" in settings:
                settings["model_args"][ours[name]] = value
            else:
                settings[name] = value
        (folder / CONFIG).write_text(json.dumps(settings))

    return damage


def weighted(change: Callable[[dict[str, torch.Tensor]], dict[str, Any]]) -> Callable[[Path], None]:
    """Other weights; change: of a dict of tensors."""

    def damage(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        save_file({key: tensor.contiguous() for key, tensor in change(state).items()}, folder / WEIGHTS)

    return damage


def pickled(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """The same, in a file that could run code when it is read."""

    def damage(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        torch.save(change(state), folder / "pytorch_model.bin")

    return damage


def indexed(parts: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "one.safetensors")
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": parts}))

    return damage


def written(name: str, content: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(content)


def cut(name: str) -> Callable[[Path], Any]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - 9)


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def one(state: dict[str, torch.Tensor]) -> str:
    """The key of a projection inside the encoder."""
    return next(key for key, tensor in state.items() if tensor.ndim == 2 and re.search(r"(layers?|blocks)\.1\.", key))


def with_one(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return weighted(lambda state: {**state, one(state): change(state[one(state)])})


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "config cut off": cut(CONFIG),
    "config is a list": written(CONFIG, "[]"),
    "config of nothing": written(CONFIG, "{}"),
    "config of another model": written(CONFIG, '{"model_type": "llama"}'),
    "config of an unknown model": written(CONFIG, '{"model_type": "x", "auto_map": {"AutoConfig": "x.Config"}}'),
    "no config": lambda folder: (folder / CONFIG).unlink(),
    "config is a pipe": lambda folder: as_pipe(folder / CONFIG),
    "negative size": configured(hidden_size=-1),
    "no size": configured(hidden_size=0),
    "huge size": configured(hidden_size=10**9),
    "size that does not fit": configured(hidden_size=12),
    "size that is a word": configured(hidden_size="wide"),
    "size that is nothing": configured(num_hidden_layers=None),
    "too many layers": configured(num_hidden_layers=3_000_000),
    "more layers than weights": configured(num_hidden_layers=5),
    "fewer layers than weights": configured(num_hidden_layers=1),
    "heads that do not divide": configured(num_attention_heads=7),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "weights cut off": cut(WEIGHTS),
    "weights that are a pointer": written(WEIGHTS, "version https://git-lfs.github.com/spec/v1\n"),
    "a tensor too much": weighted(lambda state: {**state, "more.weight": torch.ones(3)}),
    "a tensor too few": weighted(lambda state: {key: t for key, t in state.items() if key != one(state)}),
    "no tensor": weighted(lambda state: {}),
    "a tensor of another shape": with_one(lambda t: t[:, :-1]),
    "a tensor of no shape": with_one(lambda t: t[0, 0]),
    "a tensor of integers": with_one(lambda t: t.to(torch.int8)),
    "a tensor of eighths": with_one(lambda t: t.to(torch.float8_e4m3fn)),
    "a tensor of complex numbers": with_one(lambda t: t.to(torch.complex64)),
    "all of integers": weighted(lambda state: {key: t.to(torch.int8) for key, t in state.items()}),
    "a tensor of NaN": with_one(lambda t: t.where(t > 0, torch.nan)),
    "a tensor with infinity": with_one(lambda t: t.where(t < t.max(), torch.inf)),
    "code in a pickle": pickled(lambda state: Payload()),
    "code among the weights": pickled(lambda state: {**state, "more": Payload()}),
    "sparse weights": pickled(lambda state: {key: t.to_sparse() for key, t in state.items()}),
    "weights without values": pickled(lambda state: {key: t.to("meta") for key, t in state.items()}),
    "weights without names": pickled(lambda state: dict(enumerate(state.values()))),
    "an index of a missing file": indexed({"x": "two.safetensors"}),
    "an index of no files": indexed({"x": ["one.safetensors"]}),
    "preprocessing cut off": written(PREPROCESSOR, '{"do_normalize": tr'),
    "preprocessing that is a number": written(PREPROCESSOR, "5"),
    "preprocessing of another kind": written(PREPROCESSOR, '{"feature_extractor_type": 3, "size": "large"}'),
    "preprocessing of wrong values": written(PREPROCESSOR, '{"size": -5, "mean": "x", "num_mel_bins": "x"}'),
}
PREPARED = ("ViT", "AST")  # what reads a preprocessor_config.json


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for kind, (make, *_) in KINDS.items():
        make(folder / kind)
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_checkpoint_gets_one_sentence(kind, damage, checkpoints, place):
    if damage.startswith("preprocessing") and kind not in PREPARED:
        return
    shutil.copytree(checkpoints / kind, place)
    DAMAGES[damage](place)
    for load in KINDS[kind][1:]:
        with pytest.raises(UserError) as error:
            load(str(place))
        said = str(error.value)
        assert str(place) in said and "\n" not in said
    assert not RUN.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_that_may_not_be_read_gets_one_sentence(kind, checkpoints):
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "checkpoint"
        shutil.copytree(checkpoints / kind, place)
        for path in (place, place / CONFIG, place / WEIGHTS):
            mode = path.stat().st_mode
            path.chmod(0)
            user = os.geteuid()
            for load in KINDS[kind][1:]:
                if not user:  # who may read everything
                    Path(folder).chmod(0o755)
                    os.seteuid(65534)
                try:
                    with pytest.raises(UserError, match=r"ermission denied") as error:
                        load(str(place))
                finally:
                    os.seteuid(user)
                assert str(place) in str(error.value)
            path.chmod(mode)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_any_precision_are_read_in_full(kind, checkpoints, place):
    shutil.copytree(checkpoints / kind, place)
    load, state = KINDS[kind][1], load_file(place / WEIGHTS)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        found = []
        for other in (dtype, torch.float32):
            rounded = {key: tensor.to(dtype).to(other) for key, tensor in state.items()}
            save_file(rounded, place / WEIGHTS)
            found.append(load(place).state_dict())
        for key, tensor in found[0].items():
            assert tensor.dtype == torch.float32
            torch.testing.assert_close(tensor, found[1][key], rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_index_says_which_file_holds_a_tensor(kind, checkpoints, place):
    shutil.copytree(checkpoints / kind, place)
    load, state = KINDS[kind][1], load_file(place / WEIGHTS)
    expected = load(place).state_dict()
    (place / WEIGHTS).unlink()
    files = {key: f"{number % 2}.safetensors" for number, key in enumerate(state)}
    for name in set(files.values()):
        save_file({key: t if files[key] == name else -t for key, t in state.items()}, place / name)
    (place / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": files}))
    found = load(place).state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
