"""Two towers to start from: of a run of ours, of transformers, or of open_clip."""

from pathlib import Path

from core.files import read_json
from core.models.hub import HUB, loading, local_folder, model_folder, read_settings, settings_folder
from text import Tokenizer
from text.siglip_tokenizer import canonicalize

from .two_towers import TwoTowers
from .two_towers_hf import from_hf
from .two_towers_open_clip import CONFIG, from_open_clip


def load_pretrained(source: str) -> tuple[TwoTowers, Tokenizer]:
    """A model with its tokenizer: of a run, of a directory (ours, of transformers or of open_clip), or on the hub
    (hf-hub:NAME)."""
    on_hub = source.startswith(HUB)
    folder = settings_folder(source) if on_hub else model_folder(Path(source))
    if (folder / CONFIG).is_file():
        tokenizer = Tokenizer.load(folder, extend=False)
        if _cleaning(folder) == "canonicalize":
            canonicalize(tokenizer.backend, underscore=" ")
        with loading(source):
            return from_open_clip(source if on_hub else folder, tokenizer.pad), tokenizer
    if "model_type" in read_settings(folder / "config.json"):
        tokenizer = Tokenizer.load(folder, extend=False)
        with loading(source):
            return from_hf(source if on_hub else folder, filler=tokenizer.pad), tokenizer
    model = TwoTowers.from_run(local_folder(source) if on_hub else source)
    return model, Tokenizer.load(folder, extend=False)


def _cleaning(folder: Path) -> str | None:
    """How open_clip cleans texts before its tokenizer reads them."""
    text = read_json(folder / CONFIG).get("model_cfg", {}).get("text_cfg", {})
    return (text.get("tokenizer_kwargs") or {}).get("clean")
