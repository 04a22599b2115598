"""The demo commands share this: a web page that takes an input, and shows what a model predicts and attends to.

A modality says how an input is given on the page (`Demo`); Gradio draws the page and serves it, on this machine alone
unless --host says otherwise.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, no_type_check

import tyro
from annotated_types import Interval

from ..config import Count, Whole, configclass
from ..errors import UserError
from ..explore import Look, Sample, page_text
from ..memory import memory_explained
from ..training.interruptions import stop_on_signal
from .cli import say
from .exploring import short_name
from .inputs import Input
from .outputs import Classes
from .predictor import Predictor, predict_input

Port = Annotated[Whole, Interval(ge=1, le=65535)]
LOOKS = 0.2  # seconds between looks at whether the demo is to end
# The explorer's page is as high as its content, so that only the whole page scrolls.
FRAME = """<iframe title="Attention" style="width: 100%; height: 60vh; border: 0; border-radius: 10px"
onload="const page = this.contentDocument.documentElement, fit = () => this.style.height = page.offsetHeight + 'px';
new ResizeObserver(fit).observe(page); fit()" srcdoc="{}"></iframe>"""
ALERT = '<p role="alert" style="border-left: 4px solid #dc2626; padding: 0.4rem 0.8rem; overflow-wrap: anywhere">{}</p>'
# As the explorer's page looks. The fonts are the system's.
THEME = {
    "primary_hue": "sky",
    "neutral_hue": "slate",
    "font": ("system-ui", "sans-serif"),
    "font_mono": ("ui-monospace", "monospace"),
}
COLOURS = {  # of a contrast that can be read
    "button_primary_background_fill": "*primary_700",
    "button_primary_background_fill_hover": "*primary_800",
    "button_primary_background_fill_dark": "*primary_700",
    "button_primary_background_fill_hover_dark": "*primary_800",
}
# A small image is enlarged. What is empty takes no room, and the frame all that there is.
STYLE = """.image-frame img { width: 100%; height: 100%; object-fit: contain; }
.html-container { padding: 0 !important; }
.block:has(.html-container > .prose:empty) { display: none; }
.or, time, .playback span { color: var(--body-text-color) !important; }"""


@configclass
class DemoArguments:
    """What the demo commands of all modalities have in common."""

    model: Annotated[str, tyro.conf.Positional]
    """A run's directory, or what --init takes: a directory of a stock model, or its name."""
    top: Count | None = None
    """How many classes to show; 3 by default, if the model has so many."""
    host: str = "127.0.0.1"
    """The address that the page is served at: by default to this machine alone, with 0.0.0.0 to all that reach it."""
    port: Port | None = None
    """The port that the page is served at; by default the first that is free from 7860."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What a modality adds to a demo."""

    predictor: Predictor
    controls: Callable[[Any], Sequence[Any]]
    """The components of Gradio (its module is given) by which an input is given."""
    given: Callable[..., Input]
    """The input, from the values of the components. A UserError says what is missing."""
    look: Callable[[Input], Look]
    """What the model attends to in an input."""


def serve(arguments: DemoArguments, demo: Demo) -> None:
    """Serve the demo until a signal ends it."""
    with stop_on_signal() as stopped, served(arguments, demo) as address:
        say(f"{address} shows what {short_name(arguments.model)} predicts: open it in a browser. Ctrl-C ends it.")
        while not stopped():
            time.sleep(LOOKS)


@contextmanager
def served(arguments: DemoArguments, demo: Demo) -> Iterator[str]:
    """Inside, the demo is served at the address that is given. What is uploaded is deleted at the end."""
    if find_spec("gradio") is None:
        raise UserError("The demo needs the package gradio: pip install gradio.")
    demo.predictor.model.eval()
    with TemporaryDirectory() as uploads:
        # Gradio reads both when it is imported and when components are made.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads}
        import gradio  # pyright: ignore[reportMissingImports]

        page = _page(gradio, short_name(arguments.model), demo, uploads)
        try:
            _, address, _ = page.launch(
                server_name=arguments.host,
                server_port=arguments.port,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                ssr_mode=False,
                footer_links=[],
                theme=gradio.themes.Default(**THEME).set(**COLOURS),
                css=STYLE,
            )
        except OSError:  # of Gradio, which says nothing of the host
            ports = arguments.port or "7860 to 7959"
            raise UserError(
                f"The demo cannot be served at {arguments.host}, port {ports}: that is no address of this machine, or "
                "the port is taken; choose others by --host and --port."
            ) from None
        try:
            yield address
        finally:
            page.close(verbose=False)


def as_file(component: Any) -> Any:
    """A component of Gradio that hands over its file as it is: reading it here says better what is wrong with it."""
    component.preprocess = lambda payload: payload and payload.path
    return component


def given_file(path: str | None, what: str) -> Input:
    """The input that a component with a file gives. what: such a file is called."""
    if path is None:
        raise UserError(f"Give {what} first.")
    file = Path(path)
    return Input({"path": file.name}, file, file.name, file.name, file)


def _page(gradio: Any, name: str, demo: Demo, uploads: str) -> Any:
    of_classes = isinstance(demo.predictor.form, Classes)

    @no_type_check  # Gradio asks whether it is a generator function, which a checked one does not look like
    def answer(*values: Any) -> Iterator[tuple[Any, str, str]]:
        for shown, problem, attention in answers(demo, name, values):
            # Gradio puts each file into a folder of its own, which says nothing to a reader.
            problem = re.sub(rf"{re.escape(uploads)}/\w+/", "", problem)
            seen = gradio.update(value=shown, visible=shown is not None)
            yield seen, problem and ALERT.format(escape(problem)), attention and FRAME.format(escape(attention))

    with gradio.Blocks(title=f"{name}: a demo", analytics_enabled=False) as page:
        gradio.Markdown(f"# {name}")
        with gradio.Row():
            with gradio.Column():
                controls = demo.controls(gradio)
                button = gradio.Button("Predict", variant="primary")
            with gradio.Column():
                # Without a value Gradio names what has no role (aria-label), which screen readers may not read.
                empty = {"label": "Prediction", "visible": False}
                shown = gradio.Label(**empty) if of_classes else gradio.Textbox(**empty, lines=3)
                problem = gradio.HTML()
        attention = gradio.HTML()
        gradio.on(
            [button.click, *(event for control in controls for event in _events(control))],
            answer,
            inputs=list(controls),
            outputs=[shown, problem, attention],
            show_progress_on=[shown, attention],
            api_name="predict",
        )
    return page


def _events(control: Any) -> list[Any]:
    """What happens to a component when its input is complete."""
    names = ("upload", "stop_recording", "submit")
    return [getattr(control, name) for name in names if hasattr(control, name)]


def answers(demo: Demo, name: str, values: Sequence[Any]) -> Iterator[tuple[Any, str, str]]:
    """What is shown of a prediction, why there is none, and the explorer's page; first without that, which takes
    longer. name: of the model."""
    shown = None
    try:
        with memory_explained("this model and its input", "choose a smaller one"):
            entry = demo.given(*values)
            shown = _shown(demo.predictor, entry)
            yield shown, "", ""
            sample = Sample(entry.shown, [demo.look(entry)])
            yield shown, "", page_text(f"Attention of {name} in {entry.shown}", [sample])
    except UserError as error:
        yield shown, str(error), ""


def _shown(predictor: Predictor, entry: Input) -> dict[str, float] | str:
    form, row = predictor.form, predict_input(predictor, entry)
    if isinstance(form, Classes):
        return dict(form.pairs(row))
    said = form.say(row)
    return said if said is not None else json.dumps({name: row[name] for name in form.columns}, ensure_ascii=False)
