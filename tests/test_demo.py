"""The demos: what they answer, and in a real browser uploading, recording, typing, and what is said of mistakes."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from browser import browsing, until
from PIL import Image

import audio.demo
import examples.multimodal.demo
import text.demo
import vision.demo
from audio import AST
from core import UserError
from core.experiments.demo import DemoArguments, answers, served
from examples.multimodal import FusedModel
from examples.multimodal.data import BYTES
from examples.multimodal.model import MultimodalConfig, TextConfig
from text import TextEncoder
from text.tokenizer import TokenizerConfig, train_tokenizer
from vision import ViT

AXE = Path(__file__).parent.parent / "node_modules/axe-core/axe.min.js"
OF_GRADIO = "label-content-name-mismatch"
ENCODER = {"dim": 16, "depth": 2, "heads": 2, "mlp_dim": 32}
LABELS = ("cat", "dog", "elk")
needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="Gradio is not installed: pip install gradio")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models of random weights, and files for them."""
    made = tmp_path_factory.mktemp("demo")
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["one word and another"] * 3, TokenizerConfig(vocab_size=100))
    bytes_alone = train_tokenizer(["seven"], BYTES)
    image = {"image_size": 16, "patch_size": 4, "encoder": ENCODER}
    sound = {"sample_rate": 8000, "n_mels": 24, "max_frames": 400, "patch_size": 8, "stride": 8, "classes": 2}
    words = {"vocab_size": tokenizer.size, "max_length": 12, "encoder": ENCODER}
    models = {
        "vit": ViT({**image, "classes": 3, "labels": LABELS}),
        "vectors": ViT({**image, "classes": 0}),
        "ast": AST({**sound, "mask_padding": True, "encoder": ENCODER}),
        "bert": TextEncoder({**words, "classes": 3, "labels": LABELS}),
        "masks": TextEncoder({**words, "head": "tokens"}),
        "fused": FusedModel(MultimodalConfig(classes=10, text=TextConfig(vocab_size=bytes_alone.size))),
    }
    for name, model in models.items():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(made / name)
    for name in ("bert", "masks"):
        tokenizer.save(made / name / "tokenizer.json")
    bytes_alone.save(made / "fused/tokenizer.json")
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(made / "photo.png")
    (made / "broken.png").write_bytes((made / "photo.png").read_bytes()[:60])
    soundfile.write(made / "clip.wav", np.sin(np.arange(8000) / 3), 8000)
    soundfile.write(made / "tone.wav", np.sin(np.arange(2400) / 2), 8000)
    soundfile.write(made / "empty.wav", np.zeros(0), 8000)
    return made


def demo_of(package, folder, model, **options):
    arguments = package.demo.Arguments(model=str(folder / model), **options)
    return arguments, package.demo.demo(arguments)


# --- what is answered, without a browser ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "package, model, values",
    [
        (vision, "vit", ["photo.png"]),
        (audio, "ast", ["clip.wav"]),
        (text, "bert", ["one word"]),
        (examples.multimodal, "fused", ["photo.png", "tone.wav", "seven"]),
        (examples.multimodal, "fused", [None, None, "seven"]),
    ],
)
def test_an_answer_is_what_the_model_predicts_and_then_its_attention(folder, package, model, values):
    _, demo = demo_of(package, folder, model)
    given = [str(folder / value) if value in ("photo.png", "clip.wav", "tone.wav") else value for value in values]
    (first, no_problem, no_page), (shown, problem, page) = answers(demo, "mine", given)
    assert first == shown and (no_problem, no_page, problem) == ("", "", "")
    sample = demo.predictor.read(demo.given(*given))
    with torch.no_grad():
        (expected,) = demo.predictor.compute([sample])
    labels = getattr(demo.predictor.model.config, "labels", ()) or [str(number) for number in range(len(expected))]
    best = expected.topk(len(shown)).indices.tolist()
    assert list(shown) == [labels[number] for number in best] and len(shown) == min(3, len(expected))
    torch.testing.assert_close(torch.tensor([*shown.values()]), expected[best], rtol=1e-5, atol=1e-7)
    # The page shows the same prediction, of the same weights.
    name, probability = next(iter(shown.items()))
    assert f'"{name} {probability:.1%}"' in page and page.startswith("<!doctype html>")


def test_what_is_no_class_is_shown_in_words(folder):
    _, demo = demo_of(vision, folder, "vectors")
    (shown, *_), _ = answers(demo, "mine", [str(folder / "photo.png")])
    assert shown.startswith('{"vector": [') and shown.count(",") == 15
    _, demo = demo_of(text, folder, "masks", top=2)
    *_, (shown, problem, page) = answers(demo, "mine", ["one [MASK]"])
    assert shown.count("%") == 2 and not problem and "one" in page


@pytest.mark.parametrize(
    "package, model, values, sentence",
    [
        (vision, "vit", [None], "Give an image first."),
        (vision, "vit", ["broken.png"], "broken.png"),
        (audio, "ast", [None], "Give a sound first."),
        (audio, "ast", ["empty.wav"], "empty.wav"),
        (text, "bert", [" \n"], "Text is empty: type something first."),
        (text, "bert", ["word " * 20], "The text has 22 tokens, but the model takes 12: shorten it."),
        (text, "masks", ["one word"], "Put [MASK] into the text, in the place of a word that is to be predicted."),
        (examples.multimodal, "fused", [None, None, " "], "Give an image, a sound or a text first."),
        (examples.multimodal, "fused", [None, None, "seven " * 20], "The text has 123 tokens, but the model takes 64"),
    ],
)
def test_a_mistake_is_one_sentence(folder, package, model, values, sentence):
    _, demo = demo_of(package, folder, model)
    given = [str(folder / value) if str(value).endswith((".png", ".wav")) else value for value in values]
    ((shown, problem, page),) = answers(demo, "mine", given)
    assert sentence in problem and shown is None and page == ""
    assert problem.count(". ") == 0 and problem.endswith(".") and "--" not in problem


def test_options_are_checked(folder, monkeypatch):
    with pytest.raises(UserError, match="--top 4 is more than the 3 classes"):
        demo_of(vision, folder, "vit", top=4)
    with pytest.raises(UserError, match="port"):
        demo_of(vision, folder, "vit", port=65536)
    monkeypatch.setattr("core.experiments.demo.find_spec", lambda name: None)
    with pytest.raises(UserError, match="The demo needs the package gradio: pip install gradio"):
        with served(*demo_of(vision, folder, "vit")):
            pass


# --- in the browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    with browsing("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream") as found:
        yield found


CONNECTED = []  # to which addresses this process has connected


@pytest.fixture(scope="module", autouse=True)
def watched():
    def note(event, arguments):
        if event == "socket.connect" and isinstance(arguments[1], tuple):
            CONNECTED.append(arguments[1][0])
        elif event == "socket.getaddrinfo":
            CONNECTED.append(str(arguments[0]))

    sys.addaudithook(note)


@contextmanager
def page_of(browser, package, folder, model, width=1400, dark=False, **options):
    """A demo's page, which loads nothing from elsewhere; nor does its server connect to anything else."""
    CONNECTED.clear()
    with served(*demo_of(package, folder, model, **options)) as address:
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            permissions=["microphone"],
        )
        page, errors = context.new_page(), []
        own = address, address.replace("http", "ws"), "data:", "blob:"
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(own) else errors.append(request.url))
        page.goto(address)
        page.get_by_role("button", name="Predict").wait_for()
        yield page
        context.close()
        assert errors == []
    assert {*CONNECTED} <= {"127.0.0.1", "localhost"}, CONNECTED


def explorer(page):
    """The explorer's page in the demo's, when it is drawn."""
    page.locator("iframe").wait_for()
    frame = page.locator("iframe").element_handle().content_frame()
    until(frame, "document.body?.dataset.drawn > 0 && !explorer.waiting && !explorer.drawing")
    return frame


def problem(page):
    alert = page.get_by_role("alert").filter(visible=True)
    alert.wait_for()
    return alert.inner_text()


def serious_faults(page):
    """What axe-core finds, if it is there, but for a fault of Gradio's own buttons for sounds."""
    if not AXE.exists():
        return []
    page.evaluate(AXE.read_text())
    faults = page.evaluate("axe.run().then(found => found.violations.map(each => [each.impact, each.id]))")
    return [name for impact, name in faults if impact in ("serious", "critical") and name != OF_GRADIO]


@needs_gradio
@pytest.mark.parametrize("width, dark", [(1400, False), (400, True)])
def test_an_image_is_uploaded(browser, folder, width, dark):
    with page_of(browser, vision, folder, "vit", width, dark) as page:
        page.locator("input[type=file]").set_input_files(folder / "photo.png")
        frame = explorer(page)
        shown = page.get_by_test_id("label-output-value").inner_text()
        assert frame.locator(".predictions, body").first.inner_text().count(f"{shown} ") >= 1
        assert frame.locator("h1").inner_text() == "Attention of vit in photo.png"
        picture = frame.locator(".picture").first
        box = picture.bounding_box()
        picture.click(position={"x": box["width"] * 0.9, "y": box["height"] * 0.1})
        until(frame, "!explorer.waiting && !explorer.drawing")
        assert frame.locator("h3").first.inner_text() == "Row 1, column 4 attends to:"
        # Only the whole page scrolls, and not to the side.
        assert frame.evaluate("document.documentElement.scrollHeight <= innerHeight + 1")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        background = page.evaluate(
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
        )
        assert (max(background) < 64) if dark else (min(background) > 192)
        page.locator("input[type=file]").set_input_files(folder / "broken.png")
        said = problem(page)
        assert "broken.png" in said and "/" not in said and said.endswith(".")
        assert page.locator("iframe").count() == 0 and page.get_by_test_id("label-output-value").count() == 0
        assert serious_faults(page) == []


@needs_gradio
def test_a_sound_is_uploaded_or_recorded(browser, folder):
    with page_of(browser, audio, folder, "ast") as page:
        page.locator("input[type=file]").set_input_files(folder / "clip.wav")
        frame = explorer(page)
        assert frame.locator("h1").inner_text() == "Attention of ast in clip.wav"
        assert serious_faults(page) == []
        page.get_by_label("Clear").first.click()
        page.get_by_role("button", name="Predict").click()
        assert problem(page) == "Give a sound first."
        assert serious_faults(page) == []
        page.get_by_label("Record audio").click()
        page.get_by_role("button", name="Record", exact=True).click()
        page.wait_for_timeout(1000)
        page.get_by_role("button", name="Stop").first.click()
        frame = explorer(page)
        assert frame.locator("h1").inner_text().startswith("Attention of ast in audio")


@needs_gradio
def test_a_text_is_typed(browser, folder):
    with page_of(browser, text, folder, "bert") as page:
        page.get_by_role("button", name="Predict").click()
        assert problem(page) == "Text is empty: type something first."
        page.get_by_label("Text").fill("one {{x}}")
        page.get_by_role("button", name="Predict").click()
        frame = explorer(page)
        assert "one{{x}}" in "".join(frame.locator(".words").first.inner_text().split())
        assert page.get_by_role("alert").filter(visible=True).count() == 0


@needs_gradio
def test_all_three_are_given(browser, folder):
    with page_of(browser, examples.multimodal, folder, "fused") as page:
        page.get_by_label("Text").fill("seven")
        page.locator("input[type=file]").first.set_input_files(folder / "photo.png")
        titles = page.frame_locator("iframe").get_by_role("heading", name="Attention of fused in photo.png + ")
        titles.wait_for()
        page.locator("input[type=file]").last.set_input_files(folder / "tone.wav")
        page.frame_locator("iframe").get_by_text("+ tone.wav + “seven”").first.wait_for()


# --- on the command line ----------------------------------------------------------------------------------------------


@needs_gradio
def test_it_is_served_to_this_machine_alone_until_it_is_ended(folder, tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "vision.demo", str(folder / "vit"), "--port", str(port)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(tmp_path)}, **streams)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said == f"http://127.0.0.1:{port}/ shows what vit predicts: open it in a browser. Ctrl-C ends it.\n"
        socket.create_connection(("127.0.0.1", port), 5).close()
        with pytest.raises(OSError):  # of another address of this machine
            socket.create_connection(("127.0.0.2", port), 5)
        taken = subprocess.run(command, capture_output=True, text=True)
        assert taken.returncode == 1 and taken.stdout == "" and taken.stderr.count("\n") == 1
        assert f"The demo cannot be served at 127.0.0.1, port {port}" in taken.stderr
    finally:
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "", "") and not any(tmp_path.iterdir())


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_defaults_are_this_machine_alone():
    assert DemoArguments(model="x").host == "127.0.0.1"
