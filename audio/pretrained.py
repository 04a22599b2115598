"""Models of a run or of another library, to use or to start from, and what they take of a sound file."""

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from core.models.hub import is_stock, load_start

from .clips import check_length
from .hf import from_hf
from .samples import read_clip
from .saved import Model, kind_of


def load_pretrained(source: str) -> Model:
    """A model to start from: of a run, of a directory written by save_pretrained (ours or transformers'), of
    transformers on the hub, or whatever else from_hf takes."""
    return load_start(source, "audio", kind_of(source), from_hf)


def load_model(source: Path | str) -> Model:
    """The model that a command is given: of a run, or one of another library: in a directory, in a file of its authors,
    or on the hub (hf-hub:NAME)."""
    if is_stock(source) or Path(source).is_file():
        return load_pretrained(str(source))
    return kind_of(source).from_run(source, "audio")


def read(path: Path | str, model: Model) -> Float[Tensor, "samples"]:
    """A clip as the model takes it (`audio.samples.read_clip`); one that is too short or too long for it is refused."""
    form = model.config.audio_format
    clip = read_clip(Path(path), form)
    check_length(f"{path}: a clip", len(clip), form)
    return clip
