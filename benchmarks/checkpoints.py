"""Loading a checkpoint from a directory, in fp32, its file in the system's cache, against the peer's own loader.

Every page of the weights is looked at, since transformers leaves them in the file until then. We read them into memory
of our own, so that no model changes with a file that is written again later; that takes most of our time. The limit is
reading the file so. Memory is above that before; of the weights themselves one copy is needed.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import audio
import text
import vision

from .row import Goal, Row, Run, versioned
from .timing import interleave

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
PAGE = 1024  # numbers of a page of memory
SLOWEST = 1.2
"""Most times that we may take as long as the peer."""


def stock(config: Any, kind: str, processor: Any = None) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        getattr(transformers, kind)(config).save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)

    return write


def write_timm(folder: Path, **size: Any) -> None:
    model = timm.create_model("vit_base_patch16_224", **size)
    timm.models.save_for_hf(model, folder, model_args=size, safe_serialization=True)


def kinds(tiny: bool) -> dict[str, tuple[Callable[[Path], None], Callable[[Path], nn.Module], Callable, str]]:
    """Of each model: what writes it, our loader, the peer's loader, and the peer's package."""
    size = TINY if tiny else {}
    timm_size = {"embed_dim": 32, "depth": 1, "num_heads": 2} if tiny else {}

    def theirs(kind: str) -> Callable[[Path], nn.Module]:
        return getattr(transformers, kind).from_pretrained

    return {
        "ViT-B/16 of timm": (
            lambda folder: write_timm(folder, **timm_size),
            vision.from_timm,
            lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True),
            "timm",
        ),
        "ViT-B/16": (
            stock(transformers.ViTConfig(**size), "ViTModel", transformers.ViTImageProcessor()),
            vision.from_hf,
            theirs("ViTModel"),
            "transformers",
        ),
        "AST-B": (
            stock(transformers.ASTConfig(**size), "ASTModel", transformers.ASTFeatureExtractor()),
            audio.from_hf,
            theirs("ASTModel"),
            "transformers",
        ),
        "wav2vec 2.0 base": (
            stock(transformers.Wav2Vec2Config(**size), "Wav2Vec2Model", transformers.Wav2Vec2FeatureExtractor()),
            audio.from_hf,
            theirs("Wav2Vec2Model"),
            "transformers",
        ),
        "BERT-base": (
            stock(transformers.BertConfig(**size), "BertModel"),
            text.from_hf,
            theirs("BertModel"),
            "transformers",
        ),
    }


def work(name: str, who: str, folder: str, tiny: bool) -> Callable[[], Any]:
    _, ours, theirs, _ = kinds(tiny)[name]
    load = {"ours": ours, "theirs": theirs}[who]
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    def run() -> None:
        model = load(Path(folder))
        for weight in model.state_dict().values():
            weight.flatten()[::PAGE].sum()

    return run


def rows(run: Run) -> Iterator[Row]:
    for name, (write, _, _, package) in kinds(run.tiny).items():
        with TemporaryDirectory() as folder:
            torch.manual_seed(0)
            write(Path(folder))
            both = {who: work(name, who, folder, run.tiny) for who in ("ours", "theirs")}
            both["read"] = lambda: load_file(Path(folder) / "model.safetensors", backend="pread")
            found = interleave({who: lambda make=make: make() and None for who, make in both.items()}, **run.times(15))
            memory = run.memory(*((work, name, who, folder, run.tiny) for who in ("ours", "theirs")))
            weights = (Path(folder) / "model.safetensors").stat().st_size
            yield Row(
                what=f"{name}, {weights / 2**20:.0f} MiB",
                work="load a directory",
                peer=versioned(package),
                ours=found["ours"],
                theirs=found["theirs"],
                limit=found["read"].median,
                memory=memory,
                goal=Goal(ratio=1 / SLOWEST),
            )
