"""The system's Chromium, driven by Playwright, and pages in it, on which no error may occur."""

import shutil
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def browsing(*options):
    """A browser, started with these options; the test is skipped if there is none."""
    sync = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required", *options]
        )
        yield browser
        browser.close()


@contextmanager
def opened(browser, path, width=1400, dark=False, **options):
    """An explorer page in a new window. Errors and requests to elsewhere fail the test."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", **options
    )
    page, errors = context.new_page(), []
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "request",
        lambda request: errors.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
    )
    page.goto(path.resolve().as_uri())
    settled(page)
    yield page
    assert errors == []
    context.close()


def settled(page):
    """Wait until everything that was asked for is drawn."""
    until(page, "document.body.dataset.drawn > 0 && !explorer.waiting && !explorer.drawing")


def until(page, condition):
    """Wait for a condition in the page. (Playwright's own way evaluates texts, which these pages forbid.)"""
    page.evaluate(f"async () => {{ while (!({condition})) await new Promise(go => setTimeout(go, 10)); }}")
