"""Starting from a trained model, in every modality: what is taken over, what is trained, what is saved."""

import copy
import json
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from plain import train_plainly

from audio import AST, ASTConfig
from audio.dtmf import TrainClips
from audio.train import AUDIO
from core import EncoderConfig, UserError, adapters
from core.adapters import Bottleneck, LoRA, Prompt
from core.experiments import predict_command, probe_command
from core.experiments.probe import probe
from core.models.tuning import merge_adapters, tune
from examples.multimodal.model import ContrastiveModel, MultimodalConfig
from text import TextConfig, TextEncoder
from text.train import TEXT
from vision import ViT, ViTConfig
from vision.images import collate
from vision.predict import Arguments, predict
from vision.train import VISION

ENCODER = EncoderConfig(dim=16, depth=3, heads=2, mlp_dim=24)
MAKE = {
    "vision": lambda: ViT(
        ViTConfig(image_size=8, patch_size=4, channels=1, classes=4, head_norm=True, encoder=ENCODER)
    ),
    "audio": lambda: AST(ASTConfig(n_mels=16, max_frames=32, patch_size=8, stride=8, classes=4, encoder=ENCODER)),
    "text": lambda: TextEncoder(TextConfig(vocab_size=30, max_length=20, classes=4, encoder=ENCODER)),
}
BLOCK = "encoder.blocks."
TRAINED = {
    "full": lambda name: True,
    "head": lambda name: name.startswith("head"),
    "bitfit": lambda name: name.startswith("head") or name.endswith("bias"),
    "last:1": lambda name: name.startswith(("head", f"{BLOCK}2.", "encoder.final_norm.")),
    "lora": lambda name: name.startswith("head") or ".adapters." in name,
    "adapter": lambda name: name.startswith("head") or ".adapters." in name,
    "prompt": lambda name: name.startswith("head") or ".adapters." in name,
}
pytestmark = pytest.mark.usefixtures("elsewhere", "few_to_probe")
COMMANDS = {"vision": (VISION, "digits"), "audio": (AUDIO, "dtmf"), "text": (TEXT, "docstrings")}
SHORT = ["--train.steps", "4", "--train.batch-size", "8", "--train.eval-every", "4", "--train.warmup", "1"]
SMALL = ["--model.dim", "16", "--model.heads", "2", "--model.depth", "2", "--model.mlp-dim", "24"]


class Samples(list, torch.utils.data.Dataset):
    pass


def make(modality):
    torch.manual_seed(0)
    return MAKE[modality]().eval()


@pytest.mark.parametrize("how", TRAINED)
@pytest.mark.parametrize("modality", MAKE)
def test_what_is_trained(modality, how):
    model = tune(make(modality), how)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if TRAINED[how](name)}
    assert all(p.requires_grad for p in merge_adapters(model).parameters())


def test_the_last_layers_of_encoders_side_by_side():
    """Their blocks are in a list, whose names say nothing of the order."""
    model = ContrastiveModel(MultimodalConfig(towers=True, encoder=EncoderConfig(dim=16, depth=3, heads=2)))
    tune(model, "last:1", head=("projections",))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    blocks = {name for name in trained if ".blocks." in name}
    assert {name[: len("encoders.0.blocks.0")] for name in blocks} == {f"encoders.{n}.blocks.2" for n in range(3)}
    rest = ("projections", "similarity", *(f"encoders.{n}.final_norm" for n in range(3)))
    assert {
        name for name in trained - blocks if not name.startswith(rest)
    } == set() and "projections.0.weight" in trained


def test_a_model_without_such_parameters_is_refused():
    with pytest.raises(UserError, match="--tune head: ContrastiveModel has no such parameters to train"):
        tune(ContrastiveModel(MultimodalConfig(encoder=EncoderConfig(dim=16, depth=1, heads=2))), "head")


@pytest.mark.parametrize("how", ["lorra", "last:", "last:0", "last:4"])
def test_no_such_way(how):
    with pytest.raises(UserError, match=f"--tune {how}: (there is no such way|the encoder has 3 layers)"):
        tune(make("vision"), how)


@pytest.mark.parametrize("spec", [LoRA(rank=2), Bottleneck(width=4), Prompt(tokens=2)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("modality", MAKE)
def test_a_model_is_saved_with_its_adapters(modality, spec):
    model = adapters.add(make(modality), spec, "mine")
    with torch.no_grad():
        for _, adapter in adapters.modules(model, "mine"):
            for parameter in adapter.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained("saved")
    again = type(model).from_run("saved")
    assert adapters.names(again) == ["mine"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    merged = merge_adapters(copy.deepcopy(model))
    assert adapters.names(merged) == ([] if isinstance(spec, LoRA) else ["mine"])


def test_a_merged_adapter_is_saved_once_and_an_old_one_not_kept():
    model = adapters.add(make("vision"), LoRA(rank=2))
    with torch.no_grad():
        for _, adapter in adapters.modules(model):
            for parameter in adapter.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    images = torch.randn(2, 1, 8, 8)
    expected = model(images)
    adapters.merge(model)
    model.save_pretrained("saved")
    torch.testing.assert_close(ViT.from_run("saved")(images), expected, rtol=0, atol=1e-5)
    adapters.remove(model)
    model.save_pretrained("saved")
    assert adapters.names(ViT.from_run("saved")) == []
    torch.testing.assert_close(ViT.from_run("saved")(images), expected, rtol=0, atol=1e-5)


def test_a_refused_resume_changes_nothing(starts):
    command("vision", "digits", *SHORT, "--init", starts / "vision", "--tune", "lora", "--out", "run")
    before = Path("run/config.json").read_text()
    with pytest.raises(SystemExit):
        command("vision", "digits", "--out", "run", "--resume", "--train.steps", "6", "--lora.rank", "4")
    assert Path("run/config.json").read_text() == before
    command("vision", "digits", "--out", "run", "--resume", "--train.steps", "6")


def command(modality, *argv):
    few_clips = ["--data.repeats", "1"] if "dtmf" in argv else []
    train_plainly(COMMANDS[modality][0], [*map(str, argv), *few_clips])


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    """A short run of each modality."""
    folder = tmp_path_factory.mktemp("starts")
    for modality, (_, experiment) in COMMANDS.items():
        command(modality, experiment, *SHORT, *SMALL, "--out", folder / modality)
    return folder


@pytest.mark.parametrize("modality", COMMANDS)
def test_a_run_starts_from_a_run(modality, starts):
    command(
        modality,
        COMMANDS[modality][1],
        *SHORT,
        "--init",
        starts / modality,
        "--tune",
        "lora",
        "--out",
        "lora",
        "--probe-start",
    )
    kind = {"vision": ViT, "audio": AST, "text": TextEncoder}[modality]
    start, tuned = kind.from_run(starts / modality), kind.from_run("lora")
    assert adapters.names(tuned) == []
    changed = {name for name, weight in start.state_dict().items() if not torch.equal(tuned.state_dict()[name], weight)}
    assert {name for name in changed if not name.startswith("head")} == {
        f"{BLOCK}{layer}.attention.qkv.weight" for layer in range(2)
    }
    again = adapters.load(copy.deepcopy(start), "lora/adapter")
    adapters.merge(again)
    for name in changed - {name for name in changed if name.startswith("head")}:
        torch.testing.assert_close(again.state_dict()[name], tuned.state_dict()[name])
    summary = json.loads(Path("lora/summary.json").read_text())
    assert summary["trained_parameters"] < 0.3 * summary["parameters"]
    report = Path("lora/report.html").read_text()
    assert "trained parameters" in report and "gradients and optimiser state" in report
    assert "over a linear probe of the start" in report and 0 <= summary["linear_probe"] <= 1
    card = ModelCard.load("lora/model/README.md")
    assert card.data.library_name == "trivium" and f"starting from `{modality}`" in card.content
    assert card.data.eval_results[0].metric_value == pytest.approx(summary["metrics"]["accuracy"], abs=1e-4)


@pytest.mark.parametrize("modality", COMMANDS)
def test_frozen_features_are_probed(modality, starts, capsys, monkeypatch):
    monkeypatch.setattr(TrainClips, "__len__", lambda clips: 400)
    capsys.readouterr()
    probe_command(COMMANDS[modality][0], [COMMANDS[modality][1], "--init", str(starts / modality)])
    trained, random = capsys.readouterr().out.splitlines()
    assert str(starts / modality) in trained and "random weights: linear probe" in random
    for options, words in ((["--init", str(starts / modality)], "has no classes"), ([], "name a model with --init")):
        with pytest.raises(SystemExit):
            probe_command(TEXT if modality == "text" else COMMANDS[modality][0], ["manuals", *options])
        assert modality != "text" or words in capsys.readouterr().err


def test_the_card_tells_a_local_base_s_licence():
    peer = timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=32, depth=1, embed_dim=12)
    timm.models.save_for_hf(peer, "stock")
    Path("stock/README.md").write_text("---\nlicense: cc-by-4.0\n---\n# A base\n")
    command("vision", "digits", *SHORT, "--init", "stock", "--tune", "head", "--out", "run")
    card = ModelCard.load("run/model/README.md")
    assert card.data.license == "cc-by-4.0" and "Licence: cc-by-4.0." in card.content


def test_features_that_tell_the_class_are_worth_everything():
    torch.manual_seed(0)
    model, samples = make("vision"), Samples((torch.full((1, 8, 8), 0.25 * (i % 4)), i % 4) for i in range(80))
    assert probe(model, VISION.features, samples, samples, collate) == (1.0, 1.0)
    parts = (Samples((torch.randn(1, 8, 8), i % 4) for i in range(size)) for size in (300, 100))
    assert max(probe(model, VISION.features, *parts, collate)) < 0.5


@pytest.mark.parametrize("how", ["adapter", "prompt"])
def test_what_cannot_be_merged_is_predicted_with(how, starts, monkeypatch, capsys):
    command("vision", "digits", *SHORT, "--init", starts / "vision", "--tune", how, "--out", how)
    image = str(next(Path(how, "samples").glob("*.png")))
    monkeypatch.setattr("sys.argv", ["predict", how, image])
    predict_command("predict", Arguments, predict)
    assert "%" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command("vision", "digits", *SHORT, "--init", how, "--out", "again")
    assert "has an adapter beside its weights" in capsys.readouterr().err


def test_a_stock_model_is_started_from():
    peer = timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=32, depth=1, embed_dim=12)
    timm.models.save_for_hf(peer, "stock")
    command("vision", "digits", *SHORT, "--init", "stock", "--tune", "head", "--out", "run")
    tuned = ViT.from_run("run")
    assert tuned.config.image_size == 32 and tuned.config.classes == 10
    assert torch.equal(tuned.encoder.blocks[0].mlp.up.weight, peer.blocks[0].mlp.fc1.weight)


@pytest.mark.parametrize("modality, other", [("vision", "audio"), ("audio", "text"), ("text", "vision")])
def test_mistakes_get_one_sentence(modality, other, starts, capsys):
    experiment = COMMANDS[modality][1]
    Path("empty").mkdir()
    for options, words in (
        (["--init", starts / other], f"is a run of {other}: name one of {modality}."),
        (["--init", starts / other / "model"], "no trained model|cannot be loaded"),
        (["--init", "empty"], "empty holds no trained model"),
        (["--tune", "lora"], "--tune lora needs something to start from: name it with --init."),
        (["--init", starts / modality, "--tune", "all"], "--tune all: there is no such way to train"),
        (["--init", starts / modality, "--tune", "lora", "--lora.rank", "99"], "rank must be from 1 to 16"),
    ):
        with pytest.raises(SystemExit) as end:
            command(modality, experiment, *SHORT, *options, "--out", "none")
        error = capsys.readouterr().err
        assert end.value.code == 1 and error.startswith("error: ") and error.count("\n") == 1, error
        assert any(part in error for part in words.split("|")), error
        assert not Path("none").exists()
