"""Exported models: the same results without this library, whatever the batch, the length and the padding."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import tokenizers
import torch
from processes import start

from audio import AST, ASTConfig, WaveformConfig, WaveformModel
from audio.export import Arguments as AudioArguments
from audio.export import FromSamples, FromWaveforms
from audio.export import export as export_audio
from audio.features import FeatureConfig
from audio.saved import kind_of
from core import EncoderConfig, UserError, adapters
from core.adapters import LoRA, Prompt
from core.experiments import predict_command
from core.models.export import check_target
from core.sparse import Local
from text import TextConfig, TextEncoder
from text.export import Arguments as TextArguments
from text.export import export as export_text
from text.tokenizer import TokenizerConfig, train_tokenizer
from vision import ViT, ViTConfig
from vision.export import Arguments as VisionArguments
from vision.export import export as export_vision

ENCODER = EncoderConfig(dim=32, depth=1, heads=2, mlp_dim=48)
DEEP = replace(ENCODER, depth=2)
GRID = replace(ENCODER, rotary="2d", norm="rmsnorm", activation="swiglu", qk_norm=True, layer_scale=0.1)
POST = replace(ENCODER, norm_order="post", final_norm=False)
VIEW = ViTConfig(image_size=16, patch_size=4, classes=5, labels=tuple("abcde"), encoder=ENCODER)
CLIP = ASTConfig(sample_rate=8_000, n_mels=32, max_frames=64, patch_size=8, stride=5, classes=4, encoder=ENCODER)
SAMPLES = WaveformConfig(
    sample_rate=8_000,
    conv_dims=(8,) * 3,
    conv_kernels=(10, 9, 8),
    conv_strides=(5, 8, 8),
    position_kernel=8,
    position_groups=2,
    classes=4,
    encoder=POST,
)
WINDOWS = (None, Local(6, exact=True))
WORDS = TextConfig(vocab_size=300, max_length=64, classes=5, encoder=ENCODER)
MODELS = {
    "vision-cls": lambda: ViT(VIEW),
    "vision-mean": lambda: ViT(replace(VIEW, class_token=False, pool="mean", head_norm=True, encoder=GRID)),
    "vision-attention": lambda: ViT(replace(VIEW, pool="attention", positions="sincos", classes=0)),
    "vision-shared": lambda: adapters.add(ViT(replace(VIEW, encoder=replace(DEEP, shared_groups=1))), Prompt(tokens=3)),
    "vision-lora": lambda: adapters.add(ViT(VIEW), LoRA(rank=2, dora=True)),
    "audio-waves": lambda: AST(CLIP),
    "audio-mean": lambda: AST(
        replace(
            CLIP,
            pool="mean",
            positions="none",
            features=FeatureConfig(floor=40.0, centre=True, mean=0.0),
            encoder=replace(ENCODER, rotary="2d"),
        )
    ),
    "audio-fixed": lambda: AST(replace(CLIP, mask_padding=False)),
    "audio-kaldi": lambda: AST(replace(CLIP, stride=8, features=FeatureConfig(kind="kaldi"))),
    "audio-samples": lambda: WaveformModel(SAMPLES),
    "audio-samples-gated": lambda: WaveformModel(
        replace(
            SAMPLES,
            conv_norm="all",
            position_layers=2,
            position_norm=True,
            head_layers=True,
            encoder=replace(POST, distance_bias=(8, 9), distance_gate=True),
        )
    ),
    "text-learned": lambda: TextEncoder(WORDS),
    "text-mean": lambda: adapters.add(
        TextEncoder(replace(WORDS, positions="none", pool="mean", encoder=replace(ENCODER, rotary="1d"))),
        Prompt(tokens=2),
    ),
    "text-windows": lambda: TextEncoder(
        replace(WORDS, positions="none", multilabel=True, encoder=replace(DEEP, rotary="1d", patterns=WINDOWS))
    ),
    "text-bert": lambda: TextEncoder(replace(WORDS, segments=2, padding=1, encoder=POST)),
    "text-albert": lambda: TextEncoder(
        replace(WORDS, embedding_dim=16, encoder=replace(POST, depth=2, shared_groups=1))
    ),
    "text-deberta": lambda: TextEncoder(replace(WORDS, positions="none", encoder=replace(POST, disentangled=(8, 9)))),
    "text-words": lambda: TextEncoder(replace(WORDS, head="tokens", head_norm=True, head_activation="gelu")),
}
KINDS = {
    "vision": (VisionArguments, export_vision),
    "audio": (AudioArguments, export_audio),
    "text": (TextArguments, export_text),
}
ARCHIVES = ("vision-mean", "audio-mean", "text-learned")  # written by torch.export's own format as well
# In a process of its own, where shapes are not checked: the checkers are Python that no graph can hold.
SCRIPT = """
import gc, sys
from importlib import import_module
from pathlib import Path

gc.disable()
for modality in ("vision", "audio", "text"):
    import_module(modality + ".export")
gc.freeze()
gc.set_threshold(500_000)  # graphs are many objects, and most of them stay
gc.enable()
for file in map(Path, sys.argv[1:]):
    module = import_module(file.stem.partition("-")[0] + ".export")
    run = module.Arguments.__annotations__["run"].__origin__
    module.export(module.Arguments(run=run(file.stem), file=file))
gc.freeze()
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Each model, saved, and what was said of it when it was exported."""
    folder = tmp_path_factory.mktemp("exported")
    for name, make in MODELS.items():
        torch.manual_seed(0)
        model = make().eval()
        for _, adapter in adapters.modules(model):
            for parameter in adapter.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder / name)
        if name.startswith("text"):
            train_tokenizer(["a text of few words"], TokenizerConfig(vocab_size=300)).save(
                folder / name / "tokenizer.json"
            )
    files = [*(f"{name}.onnx" for name in MODELS), *(f"{name}.pt2" for name in ARCHIVES)]
    script, said, errors = (folder / name for name in ("script.py", "said", "errors"))
    script.write_text(SCRIPT)
    process = start(script, files, folder, out=said, err=errors)
    process.join()
    assert process.exitcode == 0, errors.read_text()
    return folder, said.read_text().splitlines()


def test_every_file_was_written_and_compared(exported):
    folder, said = exported
    assert len(said) == len(MODELS) + len(ARCHIVES)
    for line, name in zip(said, MODELS, strict=False):
        assert line.startswith(f"{name}.onnx: ") and "(batch, " in line
        assert float(line.partition("at most ")[2].partition(";")[0]) <= 1e-5
    assert not list(folder.glob(".*"))


def open_file(exported, name):
    return onnxruntime.InferenceSession(exported[0] / f"{name}.onnx", providers=["CPUExecutionProvider"])


def reload(exported, name):
    torch.manual_seed(1)
    kinds = {"vision": ViT, "audio": kind_of(exported[0] / name), "text": TextEncoder}
    return kinds[name.partition("-")[0]].from_run(exported[0] / name)


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("vision")])
def test_pictures(exported, name):
    session, model, images = open_file(exported, name), reload(exported, name), torch.randn(7, 3, 16, 16)
    [found] = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(images).detach(), rtol=0, atol=1e-5)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["labels"]) == list("abcde")
    assert json.loads(metadata["preprocess"])["mean"] == [0.5] and json.loads(metadata["image_size"]) == [16, 16]


@pytest.mark.parametrize("name", ["audio-waves", "audio-mean", "audio-samples", "audio-samples-gated"])
def test_a_clip_alone_or_padded(exported, name):
    session, model = open_file(exported, name), reload(exported, name)
    program, most = (FromSamples, 15) if isinstance(model, WaveformModel) else (FromWaveforms, 11)
    size, lengths = program(model).size, torch.tensor([3_000, 900, 4_321])
    clips = torch.randn(3, size(most))
    alone = torch.cat([model(clip[None, :n]) for clip, n in zip(clips, lengths.tolist(), strict=True)])
    for columns in (most - 1, most):
        given = {"waveforms": clips[:, : size(columns)].numpy(), "lengths": lengths.numpy()}
        found = torch.from_numpy(session.run(None, given)[0])
        torch.testing.assert_close(found, alone.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("text")])
def test_a_text_alone_or_padded(exported, name):
    session, model = open_file(exported, name), reload(exported, name)
    ids, mask = torch.randint(300, (4, 21)), torch.arange(21) < torch.tensor([[21], [9], [1], [14]])
    [found] = session.run(None, {"ids": ids.numpy(), "mask": mask.numpy()})
    for result, text, real in zip(torch.from_numpy(found), ids, mask, strict=True):
        alone = model(text[None, real])[0].detach()
        torch.testing.assert_close(result[: len(alone)] if "words" in name else result, alone, rtol=0, atol=1e-5)
    metadata = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert metadata["multilabel"] == (name == "text-windows")
    tokenizer = tokenizers.Tokenizer.from_file(str(exported[0] / metadata["tokenizer"]))
    inside = tokenizer.encode("a text", add_special_tokens=False).ids
    assert tokenizer.encode("a text").ids == [*metadata["before"], *inside, *metadata["after"]]


@pytest.mark.parametrize("name", ["vision-mean", "text-learned"])
def test_an_archive_is_opened_elsewhere(exported, name):
    """Where this library is not."""
    script = (
        f"import torch; program = torch.export.load({name + '.pt2'!r}).module(); "
        "inputs = torch.load('inputs.pt'); torch.save(program(*inputs), 'outputs.pt')"
    )
    model = reload(exported, name)
    inputs = (torch.randn(2, 3, 16, 16),)
    if name.startswith("text"):
        inputs = torch.randint(300, (2, 30)), torch.ones(2, 30, dtype=torch.bool)
    torch.save(inputs, exported[0] / "inputs.pt")
    subprocess.run([sys.executable, "-I", "-c", script], check=True, cwd=exported[0])
    found = torch.load(exported[0] / "outputs.pt")
    torch.testing.assert_close(found, model(*inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "run, file, words",
    [
        ("vision-cls", "model.onx", "the suffix names the format: choose .onnx (ONNX) or .pt2"),
        ("vision-cls", "none/model.onnx", "there is no directory none"),
        ("vision-none", "model.onnx", "holds no trained model"),
        ("audio-waves", "model.pt2", "The model in audio-waves cannot be loaded"),
        ("vision-sparse", "model.pt2", "attends by a pattern, Local(64)"),
        ("audio-speeds", "model.pt2", "averages clips at several speeds, which can't be exported"),
    ],
)
def test_mistakes_get_one_sentence(exported, run, file, words, monkeypatch, capsys):
    folder = exported[0]
    monkeypatch.chdir(folder)
    ViT(replace(VIEW, encoder=replace(ENCODER, patterns=Local(64)))).save_pretrained(folder / "vision-sparse")
    AST(replace(CLIP, speeds=(90,))).save_pretrained(folder / "audio-speeds")
    monkeypatch.setattr("sys.argv", ["export", run, file])
    with pytest.raises(SystemExit) as end:
        predict_command("export", *KINDS["audio" if run == "audio-speeds" else "vision"])
    error = capsys.readouterr().err
    assert end.value.code == 1 and error.startswith("error: ") and error.count("\n") == 1, error
    assert any(part in error for part in words.split("|")), error
    assert not (folder / file).exists() and not list(Path(folder).glob(".*"))


def test_an_export_replaces_no_weights_through_a_link(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "link.pt2").symlink_to("model.safetensors")
    with pytest.raises(UserError, match="the suffix names the format"):
        check_target(tmp_path / "link.pt2")
