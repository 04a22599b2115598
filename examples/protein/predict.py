"""Embed proteins and predict which of their residues touch: `python -m examples.protein.predict MODEL FASTA`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from core.config import configclass
from core.experiments import predict_command
from core.experiments.cli import say
from core.experiments.figures import save_figure

from .fasta import read_fasta
from .maps import NEAREST, draw_prediction
from .outputs import file_names, write_whole
from .pretrained import load_model


@configclass
class Arguments:
    """Write the embeddings ("n d") and contacts ("n n", probabilities) of each sequence to OUT/NAME.npz, with a plot of
    the contacts; and print how many contacts are more likely than not, of residues 6 or more apart. An ESM C predicts
    no contacts: it writes the embeddings alone."""

    model: Annotated[str, tyro.conf.Positional]
    """A directory written by save_pretrained (ours or transformers'), a file of weights of the esm package, or
    hf-hub:NAME."""
    fasta: Annotated[Path, tyro.conf.Positional]
    """Protein sequences."""
    patterns: tuple[str, ...] = ()
    """Sparse attention for long proteins, tiled over the layers: "Local(256) | Global(1)"."""
    out: Path = Path("predictions")
    """Where the files go."""


def predict(arguments: Arguments) -> None:
    records = read_fasta(arguments.fasta)  # all are read before the first prediction
    model = load_model(arguments.model, arguments.patterns)
    for record, name in zip(records, file_names([record.name for record in records]), strict=True):
        embeddings, contacts = model.read_sequence(record.sequence)
        arrays, plot = arguments.out / f"{name}.npz", arguments.out / f"{name}.png"
        if contacts is None:
            write_whole(arrays, partial(np.savez, embeddings=embeddings.numpy()))
            say(f"{record.name}: {len(embeddings)} residues ({arrays})")
            continue
        write_whole(arrays, partial(np.savez, embeddings=embeddings.numpy(), contacts=contacts.numpy()))
        write_whole(plot, partial(save_figure, draw_prediction(record.name, record.sequence, contacts)))
        likely = int((contacts > 0.5).triu(NEAREST).sum())
        say(f"{record.name}: {len(contacts)} residues, {likely} likely contacts ({arrays}, {plot})")


if __name__ == "__main__":
    predict_command("python -m examples.protein.predict", Arguments, predict)
