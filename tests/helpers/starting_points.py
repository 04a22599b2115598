"""What each family of starting points has been run through: `PYTHONPATH=. python
tests/helpers/starting_points.py` writes the tables of docs/starting-points.md."""

import atexit
import contextlib
import gc
import io
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import audio_peers
import image_text_peers
import protein_peers
import published_audio
import text_peers
import torch
import torch.nn.functional as F
import vision_peers
from torch import Tensor, nn

import audio
import text
import vision
from audio import export as audio_export
from core import UserError, adapters, attention_backend, pair, sparsify
from core.adapters import LoRA
from core.encoder.pack import pack
from core.objectives import LatentConfig, LatentPrediction, MaskedAutoencoder, MaskedConfig
from core.objectives.masked_autoencoder import PatchModel
from examples.multimodal import two_towers_hf
from examples.protein import pretrained as protein
from text import export as text_export
from text.tokenizer import TokenizerConfig, train_tokenizer
from vision import export as vision_export

PAGE = Path(__file__).parents[2] / "docs" / "starting-points.md"
CLOSE = 2e-5  # of the largest output
YES = "yes"


@dataclass
class Start:
    """A family, and samples for it."""

    modality: str
    family: str
    source: str
    """The library whose checkpoints are read."""
    load: Callable[..., Any]
    samples: Callable[[Any], list[Any]]
    """Of different sizes where the model takes them."""


def starts() -> Iterator[Start]:
    for name, make in vision_peers.PEERS.items():
        family, source = name.removesuffix(")").split(" (")
        yield Start("image", family, source, partial(_vision, make), _images)
    for family, make in audio_peers.PEERS.items():
        yield Start("sound", family, "transformers", partial(_audio, family, make), _clips)
    for family, save in published_audio.PUBLISHED.items():
        yield Start("sound", family, "its authors", partial(_published, save), _clips)
    for family, make in text_peers.PEERS.items():
        yield Start(
            "text", family, "transformers", lambda make=make, **options: text.from_hf(make(), **options), _texts
        )
    for family, make in image_text_peers.PEERS.items():
        yield Start("image and text", family, "transformers", lambda make=make: two_towers_hf.from_hf(make()), _pairs)
    for family, make in protein_peers.PEERS.items():
        yield Start("protein", family, "transformers", lambda make=make: protein.from_hf(make()), _proteins)


# --- Loading, and samples ---------------------------------------------------------------------------------------------


def _vision(make: Callable[[], nn.Module]) -> Any:
    peer = make()
    return vision.from_hf(peer) if type(peer).__module__.startswith("transformers") else vision.from_timm(peer)


def _audio(family: str, make: Callable[[], nn.Module]) -> Any:
    extractors = {"AST": audio_peers.ast_extractor, "Whisper": audio_peers.whisper_extractor}
    peer = make()
    return audio.from_hf(peer, **({"extractor": extractors[family](peer)} if family in extractors else {}))


def _published(save: Callable[[Path], Path]) -> Any:
    with TemporaryDirectory() as folder:
        return audio.from_hf(save(Path(folder)))


def _text(make: Callable[[], nn.Module], **options: Any) -> Any:
    return text.from_hf(make(), **options)


def _random(shape: Sequence[int], seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _images(model: Any) -> list[Tensor]:
    config = model.config
    rows, columns = pair(config.image_size)
    wide = (rows, columns + 2 * pair(config.patch_size)[1])
    return [_random((config.channels, *size), number) for number, size in enumerate(((rows, columns), wide))]


def _clips(model: Any) -> list[Tensor]:
    longest = model.config.audio_format.longest
    return [0.1 * _random((min(size, longest or size),), size) for size in (9_000, 21_000)]


def _texts(model: Any) -> list[Tensor]:
    return [torch.randint(5, 40, (size,), generator=torch.Generator().manual_seed(size)) for size in (31, 12)]


def _pairs(model: Any) -> list[tuple[Tensor, Tensor]]:
    return list(zip(_images(model.image), (text[:9] for text in _texts(model.text)), strict=True))


def _proteins(model: Any) -> list[Tensor]:
    return [torch.randint(4, 24, (size,), generator=torch.Generator().manual_seed(size)) for size in (40, 17)]


def call(model: Any, samples: Sequence[Any]) -> Tensor:
    """One row of results for each sample, all in one packed row."""
    if isinstance(samples[0], tuple):
        images, texts = (list(part) for part in zip(*samples, strict=True))
        return torch.cat(model(images, texts), dim=1)
    if hasattr(model, "contact_head"):  # a protein has a result for each residue
        out = model(list(samples))[0]
        return torch.stack([part.mean(dim=0) for part in out.split([len(sample) for sample in samples])])
    return model(list(samples))


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


# --- What it is run through -------------------------------------------------------------------------------------------


def ragged(start: Start) -> bool:
    """Samples of different sizes in one packed row get what each gets alone."""
    model = start.load()
    samples = start.samples(model)
    return difference(call(model, samples), torch.cat([call(model, [sample]) for sample in samples])) < CLOSE


def lora(start: Start) -> bool:
    """A LoRA changes nothing at first, is trained alone, and gives the same merged."""
    model = start.load()
    samples = start.samples(model)
    before = call(model, samples).detach()
    adapters.add(model, LoRA(rank=2))
    same = difference(call(model, samples), before) < CLOSE
    call(model, samples).square().mean().backward()
    trained = [p for p in model.parameters() if p.requires_grad and p.grad is not None]
    with torch.no_grad():
        for number, parameter in enumerate(trained):
            parameter += 0.05 * _random(parameter.shape, number)
        tuned = call(model, samples)
        adapters.merge(model)
        merged = call(model, samples)
    return bool(trained) and same and difference(tuned, before) > 1e-3 and difference(merged, tuned) < CLOSE


def sparse(start: Start) -> bool:
    """With a pattern in place of dense attention: what dense attention gives under the pattern's mask."""
    model = start.load()
    samples = start.samples(model)
    sparsify(model.image if isinstance(samples[0], tuple) else model, "Local(8) | Global(1)")
    found = call(model, samples)
    with attention_backend("dense"):
        return difference(found, call(model, samples)) < CLOSE


def masked(start: Start) -> bool:
    """Pre-training by predicting what is masked, as tokens or patches and as latents: there are finite losses, and
    every layer has a gradient of each."""
    if start.modality == "text":
        model = start.load(head="tokens")
        samples = start.samples(model)
        logits = model(samples)
        F.cross_entropy(logits.flatten(0, -2), torch.zeros(logits[..., 0].numel(), dtype=torch.int64)).backward()
        grid = pack(model.tokens(samples)).packing.lengths.max(), 1
    else:
        model = start.load()
        if not isinstance(model, PatchModel):
            raise UserError("There is no objective for it yet.")
        samples = start.samples(model)
        values = model.patches(samples).shape[-1]
        whole = MaskedAutoencoder(model, MaskedConfig(ratio=0.6, dim=16, heads=2), values)
        grid = pack(model.tokens(samples)).packing.places[:, 2:].amax(dim=0).tolist()
        predicted = whole(samples, torch.rand(len(samples), *grid))
        (predicted.predicted - predicted.target)[predicted.masked].square().mean().backward()
    learnt = _every_layer_learns(model)
    model.zero_grad(set_to_none=True)
    latent = LatentPrediction(model, LatentConfig(ratio=0.6, masks=2), steps=1)
    latent.follow()
    errors = latent(samples, torch.rand(len(samples), 2, *grid))
    (errors.tokens.mean() + errors.summary.mean()).backward()
    return learnt and _every_layer_learns(model)


def _every_layer_learns(model: Any) -> bool:
    gradients = [block.mlp.down.weight.grad for block in model.encoder.blocks]
    return all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


def exported(start: Start) -> bool:
    """The command writes torch.export's archive, which gives the same for other sizes (the command compares them)."""
    command = {"image": vision_export, "sound": audio_export, "text": text_export}.get(start.modality)
    if command is None:
        raise UserError("There is no command for it.")
    model = start.load()
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as said:
        run: Any = Path(folder) / "model"
        model.save_pretrained(run)
        if start.modality == "text":
            train_tokenizer(["a few words"], TokenizerConfig(vocab_size=40)).save(run / "tokenizer.json")
            run = str(run)
        command.export(command.Arguments(run=run, file=Path(folder) / "model.pt2"))
    return "model.pt2" in said.getvalue()


COLUMNS = {"LoRA": lora, "sparse": sparse, "ragged": ragged, "masked pre-training": masked, "export": exported}


def run(start: Start) -> dict[str, str]:
    """Of each column, whether the family has been run through it; otherwise why not."""
    found = {}
    for column, check in COLUMNS.items():
        try:
            torch.manual_seed(0)
            found[column] = YES if check(start) else "wrong"
        except UserError as error:
            found[column] = "no: " + re.sub(r"/\S*/", "", str(error))  # without the names of temporary directories
        except Exception as error:
            found[column] = f"It fails: {type(error).__name__}: {error}"
    return found


# --- The page ---------------------------------------------------------------------------------------------------------

HOW = {
    "image": "`vision.from_timm`, `vision.from_hf`",
    "sound": "`audio.from_hf`",
    "text": "`text.from_hf`",
    "image and text": "`examples.multimodal.pretrained.load_pretrained`",
    "protein": "`examples.protein.pretrained.from_hf`",
}


def row(start: Start, notes: list[str]) -> str:
    cells = []
    for found in run(start).values():
        if found == YES:
            cells.append("yes")
        else:
            if found not in notes:
                notes.append(found)
            cells.append(f"no ({notes.index(found) + 1})")
    return f"| {start.family} | {start.source} | {' | '.join(cells)} |"


def section(modality: str) -> str:
    """The table of a modality, with the reasons for what does not run."""
    notes: list[str] = []
    rows = [row(start, notes) for start in starts() if start.modality == modality]
    head = f"| family | of | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 2)}"
    reasons = "".join(f"\n({number}) {note.removeprefix('no: ')}\n" for number, note in enumerate(notes, 1))
    title = f"## {modality.capitalize()}: {HOW[modality]}"
    return "\n".join([title, "", head, *rows, reasons])


def main(arguments: Sequence[str]) -> int:
    """Write the sections of these modalities into the page, or of all; --check says whether they are there already."""
    warnings.simplefilter("ignore")
    gc.freeze()
    gc.set_threshold(500_000)  # graphs are many objects, and most of them stay
    check = "--check" in arguments
    page, status = PAGE.read_text(), 0
    for modality in [each for each in arguments if each != "--check"] or HOW:
        new, old = section(modality), _section_of(page, modality)
        if check and new.strip() != old.strip():
            print(f"docs/starting-points.md is not what the code does; it should say:\n\n{new}")
            status = 1
        page = page.replace(old, f"{new.rstrip()}\n\n")
    if not check:
        PAGE.write_text(f"{page.rstrip()}\n")
    return status


def _section_of(page: str, modality: str) -> str:
    start = page.index(f"## {modality.capitalize()}: ")
    end = page.find("\n## ", start)
    return page[start : len(page) if end < 0 else end + 1]


if __name__ == "__main__":
    atexit.register(gc.freeze)  # nothing is looked for at the end
    sys.exit(main(sys.argv[1:]))
