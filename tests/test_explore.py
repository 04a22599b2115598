"""The explore commands: which models and inputs they take, where the tokens are, and what they refuse."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import timm
import torch
import transformers
from explorer_pages import ReadPage
from PIL import Image

import audio.explore
import audio.looks
import text.explore
import text.looks
import vision.explore
import vision.looks
from audio import AST, WaveformModel
from core.experiments import predict_command
from core.explore import Piece
from text import TextEncoder
from text.tokenizer import TokenizerConfig, train_tokenizer
from vision import ViT

pytestmark = pytest.mark.usefixtures("elsewhere")
ENCODER = {"dim": 16, "depth": 2, "heads": 2, "mlp_dim": 32}


@pytest.fixture
def files():
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save("photo.png")
    soundfile.write("clip.wav", np.sin(np.arange(4000) / 3), 8000)
    ViT({"image_size": 16, "patch_size": 4, "classes": 2, "encoder": ENCODER}).save_pretrained("vit")
    ViT({"image_size": 16, "patch_size": 8, "classes": 0, "encoder": ENCODER}).save_pretrained("coarse")
    sound = {"sample_rate": 8000, "n_mels": 24, "max_frames": 60, "patch_size": 8, "stride": 8, "classes": 2}
    AST({**sound, "encoder": ENCODER}).save_pretrained("ast")
    tokenizer = train_tokenizer(["one word and another"] * 3, TokenizerConfig(vocab_size=100))
    TextEncoder({"vocab_size": tokenizer.size, "max_length": 12, "encoder": ENCODER}).save_pretrained("bert")
    tokenizer.save(Path("bert/tokenizer.json"))


def explored(monkeypatch, capsys, package, *argv, code=0):
    """The page, or the sentence that the command ended with."""
    monkeypatch.setattr("sys.argv", ["explore", *map(str, argv)])
    before = {*Path().iterdir()}
    if not code:
        predict_command("explore", package.explore.Arguments, package.explore.explore)
        said = capsys.readouterr().out
        return ReadPage(Path(said.split(": open it")[0]))
    with pytest.raises(SystemExit) as exit:
        predict_command("explore", package.explore.Arguments, package.explore.explore)
    captured = capsys.readouterr()
    assert exit.value.code == code and captured.out == "" and captured.err.count("\n") == 1
    assert {*Path().iterdir()} == before
    return captured.err


@pytest.mark.parametrize(
    "package, argv, words",
    [
        (vision, ["vit"], "Name at least one image file"),
        (vision, ["vit", "missing.png"], "no image missing.png"),
        (vision, ["nowhere/x", "photo.png"], "There is no directory nowhere/x"),
        (
            vision,
            ["vit", "photo.png", "--target", "2"],
            "--target 2 is no class of the model: name one, or a number from 0 to 1",
        ),
        (vision, ["coarse", "photo.png", "--target", "2"], "--target 2: no model predicts classes"),
        (vision, ["vit", "photo.png", "--layers", "3"], "--layers 3 is more than the 2 layers"),
        (vision, ["vit", "photo.png", "--pattern", "Near(3)"], "is not a pattern"),
        (vision, ["vit", "photo.png", "--out", "photo.png/x.html"], "cannot hold the output"),
        (audio, ["ast"], "Name at least one audio file"),
        (audio, ["ast", "photo.png"], "photo.png"),
        (text, ["bert"], "Give at least one text"),
        (text, ["bert", " ".join(["word"] * 20)], "has 22 tokens, but the model takes 12: shorten it"),
        (text, ["bert", "missing.txt"], "There is no text file missing.txt"),
    ],
)
def test_a_mistake_is_one_sentence(files, monkeypatch, capsys, package, argv, words):
    assert words in explored(monkeypatch, capsys, package, *argv, code=1)


def test_pages_are_named_after_the_first_input_and_overwrite_nothing(files, monkeypatch, capsys):
    explored(monkeypatch, capsys, vision, "vit", "photo.png")
    first = Path("photo.html").read_bytes()
    page = explored(monkeypatch, capsys, vision, "vit", "photo.png", "photo.png", "--layers", "2")
    assert Path("photo.html").read_bytes() == first and Path("photo-2.html").exists()
    assert len(page.content["samples"]) == 2 and [each["number"] for each in page.look()["layers"]] == [2]


def test_two_models_of_other_patches_beside_each_other(files, monkeypatch, capsys):
    page = explored(monkeypatch, capsys, vision, "vit", "photo.png", "--against", "coarse", "--target", "1")
    first, second = page.look(0, 0), page.look(0, 1)
    assert (first["name"], second["name"]) == ("vit", "coarse") and first["target"] == "class 1"
    assert (first["tokens"], second["tokens"]) == (17, 5) and "relevance" not in second["layers"][0]


def test_a_pattern_for_all_modalities(files, monkeypatch, capsys):
    for package, model, given in ((vision, "vit", "photo.png"), (audio, "ast", "clip.wav"), (text, "bert", "one word")):
        page = explored(monkeypatch, capsys, package, model, given, "--pattern", "Local(1, exact=True)")
        dense, sparse = page.look(0, 0), page.look(0, 1)
        assert sparse["name"] == f"{model}, Local(1, exact=True)" and "forbidden" not in dense["layers"][0]
        assert page.forbidden(sparse, 0).any()


def test_stock_models_are_taken_by_name_or_directory(files, monkeypatch, capsys):
    create = timm.create_model

    def of_random_weights(*args, **kwargs):
        module = create(*args, **kwargs | {"pretrained": False})
        for parameter in module.parameters():
            torch.Tensor.copy_(parameter.data, 0.02 * torch.randn(parameter.shape))
        return module

    monkeypatch.setattr(timm, "create_model", of_random_weights)
    page = explored(monkeypatch, capsys, vision, "test_vit.r160_in1k", "photo.png")
    assert page.look()["tokens"] == 101 and page.look()["name"] == "test_vit.r160_in1k"
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=4
    )
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained("theirs")
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained("theirs")
    assert explored(monkeypatch, capsys, vision, "theirs", "photo.png").look()["tokens"] == 17


def test_tokens_of_a_spectrogram_are_where_their_frames_are():
    """A click in silence: the token that holds it is the one whose stretch of time does."""
    sound = {"sample_rate": 8000, "n_mels": 24, "max_frames": 200, "patch_size": (24, 4), "stride": (24, 4)}
    model = AST({**sound, "classes": 2, "encoder": ENCODER}).eval()
    clip = torch.zeros(8000)
    clip[4000:4010] = 1  # at half a second
    *_, picture = audio.looks.parts(model, clip)
    (start, end), patches = picture.seconds, model.patches(clip[None])[0]
    loudest = int(patches.amax(dim=1).argmax())
    centre = start + (picture.origin[1] + loudest * picture.step[1]) * (end - start)
    assert abs(centre - 0.5) < 0.03 and picture.grid[0] * picture.grid[1] == len(patches)


def test_frequencies_go_upwards():
    """A low and a high tone: the row of patches that is loudest says the frequency of the tone."""
    sound = {"sample_rate": 8000, "n_mels": 32, "max_frames": 98, "patch_size": 8, "stride": 8, "classes": 2}
    model = AST({**sound, "encoder": ENCODER}).eval()
    for hertz in (300, 1000, 3000):
        clip = torch.sin(torch.arange(8000) * 2 * torch.pi * hertz / 8000)
        *_, picture = audio.looks.parts(model, clip)
        rows, columns = picture.grid
        loudest = int(model.patches(clip[None])[0].mean(dim=1).reshape(rows, columns).mean(dim=1).argmax())
        low, high = picture.names[loudest].removesuffix(" Hz").split("–")
        assert float(low) <= hertz <= float(high)
        shown = np.asarray(Image.open(io.BytesIO(picture.image)).convert("L")).mean(axis=1)
        place = picture.origin[0] + loudest * picture.step[0]
        assert abs(shown.argmax() / len(shown) - place) < 0.15


def test_models_of_waveforms_and_of_convolutions():
    waveform = WaveformModel(
        {"conv_dims": (8, 8), "conv_kernels": (10, 4), "conv_strides": (5, 4), "position_kernel": 4,
         "position_groups": 2, "encoder": {**ENCODER, "norm_order": "post"}}
    ).eval()  # fmt: skip
    clip = torch.randn(8000)
    look = audio.looks.look_at("waveform", waveform, clip)
    (picture,) = look.parts
    assert picture.grid == (1, look.tokens) and not look.gradients
    start, end = picture.seconds
    last = start + (picture.origin[1] + (look.tokens - 1) * picture.step[1]) * (end - start)
    assert 0.48 < last < 0.5


def test_pieces_of_a_text_know_their_letters():
    tokenizer = train_tokenizer(["un believ able words"] * 3, TokenizerConfig(vocab_size=60))
    model = TextEncoder({"vocab_size": tokenizer.size, "max_length": 64, "encoder": ENCODER}).eval()
    written = "Words:  unbelievable"
    look = text.looks.look_at("model", model, tokenizer, [written])
    first, *pieces, last = look.parts[0].pieces
    assert first == Piece("[CLS]", 0, 0) and last == Piece("[SEP]", 0, 0)
    assert all(written[piece.start : piece.end] == piece.text for piece in pieces)
    assert "".join(("" if piece.joined else " ") + piece.text for piece in pieces) == " Words: unbelievable"


def test_a_filled_up_text_and_one_of_a_pair():
    tokenizer = train_tokenizer(["one word and another"] * 3, TokenizerConfig(vocab_size=100))
    settings = {"vocab_size": tokenizer.size, "max_length": 12, "encoder": ENCODER}
    filled = TextEncoder({**settings, "filler": tokenizer.pad}).eval()
    look = text.looks.look_at("filled", filled, tokenizer, ["one word"])
    assert look.tokens == 12 and look.parts[0].pieces[-1].text == "[PAD]"
    pair = TextEncoder({**settings, "segments": 2}).eval()
    look = text.looks.look_at("pair", pair, tokenizer, ["one word", "another"])
    assert [piece.text for piece in look.parts[0].pieces] == ["[CLS]", "one", "word", "[SEP]", "another", "[SEP]"]
    assert look.parts[0].pieces[4].start == len("one word") + 1
