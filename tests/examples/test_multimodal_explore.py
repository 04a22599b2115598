"""The explorer of the fused model: image, sound and word in one sequence, each token at its place."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from explorer_pages import ReadPage
from PIL import Image

from core import UserError, record_attention
from examples.multimodal import FusedModel
from examples.multimodal.data import BYTES
from examples.multimodal.explore import Arguments, explore, load
from examples.multimodal.model import MultimodalConfig, TextConfig
from text.tokenizer import train_tokenizer

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture
def fused():
    tokenizer = train_tokenizer(["seven"], BYTES)
    model = FusedModel(MultimodalConfig(classes=10, text=TextConfig(vocab_size=tokenizer.size)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained("fused")
    tokenizer.save(Path("fused/tokenizer.json"))
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save("digit.png")
    soundfile.write("tone.wav", np.sin(np.arange(2400) / 2), 8000)


def test_all_three_are_one_sequence(fused):
    given = {"image": Path("digit.png"), "audio": Path("tone.wav"), "text": "seven"}
    explore(Arguments(model="fused", out=Path("page.html"), **given))
    read = ReadPage(Path("page.html"))
    look = read.look()
    marks, image, of_sound, sound, words = look["parts"]
    assert marks["names"] == ["class token"] and image["grid"] == [3, 3] and image["seconds"] is None
    assert of_sound["names"] == ["audio class token", "audio register 1"] and sound["sound"] is not None
    assert "".join(piece[0] for piece in words["pieces"][1:-1]) == "␣seven"  # bytes, with a blank before them
    counts = [1, 9, 2, sound["grid"][0] * sound["grid"][1], len(words["pieces"])]
    assert look["tokens"] == sum(counts) and look["pooling"][0] == 1 and len(look["predictions"]) == 3
    # A token of the text attends to the whole sequence, and what is stored are its weights.
    weights = read.matrices(look, 0, "weights")[-1]
    assert weights[-1].min() > 0 and abs(weights.sum(axis=1) - 1).max() < 1e-3
    model, tokenizer = load("fused")
    with record_attention() as calls, torch.no_grad():
        model(ids=[torch.tensor(tokenizer.frame(tokenizer.encode(["seven"])[0]))])
    explore(Arguments(model="fused", out=Path("text.html"), text="seven"))
    alone = ReadPage(Path("text.html"))
    found = torch.from_numpy(alone.matrices(alone.look(), 0, "weights")[0])
    torch.testing.assert_close(found, calls[0].weights[0, 0], rtol=1e-3, atol=1e-6)


def test_something_must_be_given(fused):
    with pytest.raises(UserError, match="Give some of --image, --audio and --text"):
        explore(Arguments(model="fused"))
    with pytest.raises(UserError, match="The text has 103 tokens, but the model takes 64"):
        explore(Arguments(model="fused", text="a" * 100))
