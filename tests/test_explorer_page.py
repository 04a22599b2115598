"""The explorer's page in a real browser: pointing, choosing, playing, from the keyboard, on a phone, in the dark."""

from pathlib import Path

import pytest
import torch
from browser import browsing, opened, settled, until

import audio.looks
import text.looks
import vision.looks
from audio import AST
from core import record_attention
from core.explore import Sample, write_page
from core.sparse import Window2d
from text import TextEncoder
from text.tokenizer import TokenizerConfig, train_tokenizer
from vision import ViT

AXE = Path(__file__).parent.parent / "node_modules/axe-core/axe.min.js"
KINDS = ("image", "pattern", "sound", "text")
ENCODER = {"dim": 16, "depth": 3, "heads": 2, "mlp_dim": 32}
SENTENCE = "The explorer shows unbelievable things."


@pytest.fixture(scope="module")
def browser():
    with browsing() as found:
        yield found


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    image = {"image_size": 24, "patch_size": 4, "channels": 1, "classes": 3, "labels": ("cat", "dog", "elk")}
    sound = {"sample_rate": 8000, "n_mels": 24, "max_frames": 120, "patch_size": 8, "stride": 8, "classes": 2}
    found = {
        "image": ViT({**image, "encoder": ENCODER}),
        "sound": AST({**sound, "mask_padding": True, "encoder": ENCODER}),
        "text": TextEncoder({"vocab_size": 200, "max_length": 64, "encoder": ENCODER}),
    }
    for model in found.values():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        model.eval()
    found["pattern"] = ViT({**image, "encoder": {**ENCODER, "patterns": Window2d(1, exact=True)}}).eval()
    found["pattern"].load_state_dict(found["image"].state_dict())
    return found


@pytest.fixture(scope="module")
def pages(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    image = torch.rand(1, 24, 24, generator=torch.Generator().manual_seed(1))
    clip = 0.5 * torch.sin(torch.arange(8000) * 0.4)
    tokenizer = train_tokenizer([SENTENCE] * 3, TokenizerConfig(vocab_size=200))
    dense = vision.looks.look_at("dense", models["image"], image)
    looks = {
        "image": [dense],
        "pattern": [dense, vision.looks.look_at("sparse", models["pattern"], image)],
        "sound": [audio.looks.look_at("sound", models["sound"], clip)],
        "text": [text.looks.look_at("text", models["text"], tokenizer, [SENTENCE])],
    }
    for name, each in looks.items():
        write_page(folder / f"{name}.html", f"Attention in a {name}", [Sample("one", each), Sample("two", each)])
    return folder


def title(page, number=0):
    return page.locator("h3").nth(number).inner_text()


def centre_of(page, row, column, panel=0):
    """Where a patch of a grid of 6 x 6 is on the screen."""
    box = page.locator(".picture").nth(panel).bounding_box()
    return box["x"] + box["width"] * (column - 0.5) / 6, box["y"] + box["height"] * (row - 0.5) / 6


def test_pointing_shows_a_patch_and_a_click_keeps_it(browser, pages):
    with opened(browser, pages / "image.html") as page:
        assert title(page) == "The output is pooled from:" and "Nothing" in page.locator(".none").inner_text()
        page.mouse.move(*centre_of(page, 2, 5))
        settled(page)
        assert title(page) == "Row 2, column 5 attends to:" and title(page, 1) == "What attends to row 2, column 5:"
        page.mouse.move(5, 5)
        settled(page)
        assert title(page) == "The output is pooled from:"
        page.mouse.click(*centre_of(page, 6, 1, panel=1))
        page.mouse.move(5, 5)
        settled(page)
        assert title(page) == "Row 6, column 1 attends to:"
        assert "Row 6, column 1 attends to: " in page.locator("#said").inner_text()
        page.locator(".mark", has_text="class token").first.click()
        settled(page)
        assert title(page) == "Class token attends to:"


@pytest.mark.parametrize("head", [0, 1, "mean"])
def test_what_is_shown_is_the_models_own_softmax(browser, pages, models, head):
    image = torch.rand(1, 24, 24, generator=torch.Generator().manual_seed(1))
    with record_attention() as calls, torch.no_grad():
        models["image"](image[None])
    q, k = calls[1].q.double(), calls[1].k.double()
    weights = (q @ k.mT / 8**0.5).softmax(dim=-1)[0]
    weights = weights.mean(dim=0) if head == "mean" else weights[head]
    with opened(browser, pages / "image.html") as page:
        page.locator("#layer").fill("1")
        page.locator("#head").select_option(str(head))
        page.mouse.click(*centre_of(page, 1, 3))
        settled(page)
        row, column = page.evaluate(
            """async () => {
                const {look, shown} = explorer.views[0], {layer, kind, head} = explorer.settings;
                const matrix = await look.matrix(layer, kind, head);
                return [[...look.row(matrix, shown)], [...matrix.column(shown)]];
            }"""
        )
        shown = page.locator(".strongest").nth(0).locator("li").first.inner_text()
    for found, wanted in ((row, weights[3]), (column, weights[:, 3])):
        torch.testing.assert_close(torch.tensor(found).double(), wanted, rtol=2**-11 + 1e-5, atol=1e-7)
    best = int(weights[3].argmax())
    name = "Class token" if best == 0 else f"Row {(best - 1) // 6 + 1}, column {(best - 1) % 6 + 1}"
    assert shown.split("\n")[0] == name


def test_layers_heads_and_ways_to_look_are_chosen(browser, pages):
    with opened(browser, pages / "image.html") as page:
        page.get_by_text("all up to it (rollout)").click()
        settled(page)
        assert title(page) == "What has reached the output:" and page.locator("#head").is_disabled()
        assert page.locator("#layer-value").inner_text() == "1 to 3 of 3"
        page.get_by_text("gradient-weighted", exact=True).click()
        settled(page)
        assert title(page).startswith("What has reached the output, for ")
        page.locator("canvas.heads").click(position={"x": 22 + 75 + 30, "y": 22 + 30})  # layer 1, head 2
        settled(page)
        assert page.evaluate("explorer.settings") == {"kind": "gradients", "layer": 1, "head": 1}
        page.locator("#sample").select_option("two")
        settled(page)
        assert page.evaluate("explorer.settings.head") == 1


def test_the_keyboard_does_everything(browser, pages):
    with opened(browser, pages / "image.html") as page:
        page.locator(".field").first.focus()
        for keys, name in (
            ("ArrowRight ArrowRight", "Row 1, column 1"),
            ("ArrowDown ArrowRight", "Row 2, column 2"),
            ("ArrowUp ArrowUp", "Class token"),
            ("Home", "The output"),
        ):
            for key in keys.split():
                page.keyboard.press(key)
                settled(page)
            assert title(page).startswith(name)
        page.keyboard.press("-")
        page.keyboard.press("h")
        settled(page)
        assert page.evaluate("explorer.settings") == {"kind": "weights", "layer": 2, "head": 0}


def test_a_pattern_beside_dense_attention(browser, pages):
    """What was not computed is hatched, and both models show the same patch."""
    with opened(browser, pages / "pattern.html") as page:
        page.mouse.click(*centre_of(page, 1, 1))
        settled(page)
        assert title(page, 2) == "Row 1, column 1 attends to:"
        assert [each.is_visible() for each in page.locator(".hatched").all()] == [False, False, True, True]
        # Blue over red: the veil over what was not computed, of a patch far away; and none in the dense model.
        pixels = page.evaluate(
            """() => [0, 2].map(number => {
                const canvas = document.querySelectorAll(".picture canvas")[number], at = 0.92;
                return [...canvas.getContext("2d").getImageData(at * canvas.width, at * canvas.height, 1, 1).data];
            })"""
        )
        assert pixels[0][0] > pixels[0][2] and pixels[1][2] > pixels[1][0]
        page.mouse.move(*centre_of(page, 4, 4, panel=2))
        settled(page)
        assert title(page, 0) == "Row 4, column 4 attends to:"
        assert "attends by Window2d(1, exact=True)" in page.locator(".note").nth(1).inner_text()


def test_a_sound_is_played_at_the_place_pointed_to(browser, pages):
    with opened(browser, pages / "sound.html") as page:
        box = page.locator(".picture").first.bounding_box()
        page.mouse.click(box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.5)
        settled(page)
        start = page.evaluate("explorer.views[0].tokens.seconds(explorer.views[0].shown)[0]")
        assert 0.6 < start < 0.8 and " Hz attends to:" in title(page)
        page.evaluate(
            """() => {
                const {audio} = explorer.views[0].player;
                window.times = [];
                audio.ontimeupdate = () => times.push(audio.currentTime);
            }"""
        )
        page.get_by_text("▶ Play at").click()
        until(page, "explorer.views[0].player.audio.paused && times.length > 1")
        times = page.evaluate("times")
        assert start - 0.3 < times[0] and times[-1] < start + 0.6
        assert page.locator(".playhead").first.is_hidden()
        page.locator(".field").first.focus()
        page.keyboard.press("Enter")
        until(page, "!explorer.views[0].player.audio.paused")


def test_words_are_pointed_at(browser, pages):
    with opened(browser, pages / "text.html") as page:
        pieces = page.locator(".words").first
        assert "".join(SENTENCE.split()) in "".join(pieces.inner_text().split())
        pieces.get_by_text("things", exact=True).hover()
        settled(page)
        assert title(page) == "“things” attends to:"
        page.mouse.move(5, 5)
        page.locator(".field").first.focus()
        page.keyboard.press("ArrowRight")
        settled(page)
        assert title(page) == "“[CLS]” attends to:"
        weights = page.evaluate("[...document.querySelectorAll('.words')[0].children].map(e => e.style.cssText)")
        assert len({*weights}) > 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width, dark", [(400, False), (1400, True)])
def test_pages_fit_and_are_accessible(browser, pages, kind, width, dark):
    with opened(browser, pages / f"{kind}.html", width, dark, bypass_csp=AXE.exists()) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        red, green, blue = page.evaluate(
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
        )
        assert (max(red, green, blue) < 64) if dark else (min(red, green, blue) > 192)
        if not AXE.exists():
            pytest.skip("axe-core is not installed here: npm install axe-core")
        page.evaluate(AXE.read_text())
        faults = page.evaluate("axe.run().then(found => found.violations.map(each => [each.impact, each.help]))")
        assert [fault for fault in faults if fault[0] in ("serious", "critical")] == []
