"""Compare predicted contacts with known structures: `python -m examples.protein.evaluate MODEL STRUCTURE...`."""

from collections.abc import Mapping, Sequence
from functools import partial
from math import isnan, nan
from pathlib import Path
from statistics import fmean
from typing import Annotated

import tyro

from core import UserError
from core.config import configclass
from core.experiments import predict_command
from core.experiments.cli import say
from core.experiments.figures import save_figure

from .maps import NEAREST, draw_comparison
from .outputs import file_names, write_whole
from .precision import CUTS, SEPARATIONS, Precision, precision_at
from .pretrained import load_model
from .structure import ProteinChain, contact_map, read_structure


@configclass
class Arguments:
    """Precision of the L/5, L/2 and L surest contacts, L the length of the sequence, by how far apart along it two
    residues are: short (6 to 11), medium (12 to 23), long (24 and more); a contact is beta carbons nearer than 8
    angstrom. And a plot of each map, predicted and true."""

    model: Annotated[str, tyro.conf.Positional]
    """A directory written by save_pretrained (ours or transformers'), or hf-hub:NAME."""
    structures: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """PDB or mmCIF files."""
    chain: str | None = None
    """The chain of each to evaluate; None: all protein chains, of equal sequences the one with most resolved."""
    patterns: tuple[str, ...] = ()
    """Sparse attention for long proteins, tiled over the layers: "Local(256) | Global(1)"."""
    out: Path = Path("predictions")
    """Directory of the plots."""


def evaluate(arguments: Arguments) -> None:
    if not arguments.structures:
        raise UserError("Name at least one structure after the model.")
    # All structures are read before the first prediction.
    chains = [(path, chain) for path in arguments.structures for chain in chosen(path, arguments.chain)]
    model = load_model(arguments.model, arguments.patterns)
    if model.contact_head is None:
        raise UserError(f"{arguments.model} predicts no contacts to compare: name an ESM-2, not an ESM C.")
    names = file_names([f"{path.name.split('.')[0]}-{chain.name}".rstrip("-") for path, chain in chains])
    results = []
    for (path, chain), name in zip(chains, names, strict=True):
        probabilities, target = model.read_sequence(chain.sequence).contacts, contact_map(chain)
        assert probabilities is not None
        results.append(precision_at(probabilities, target))
        plot = arguments.out / f"{name}.png"
        write_whole(plot, partial(save_figure, draw_comparison(name, probabilities, target, results[-1])))
        touching = int((target == 1).triu(NEAREST).sum())
        seen = f"{int(chain.resolved.sum())} of {len(chain.sequence)} residues resolved, {touching} contacts"
        say(f"{path} chain {chain.name or '(without a name)'}: {seen} ({plot})\n{table(results[-1:])}")
    if len(results) > 1:
        print(f"mean of {len(results)} chains\n{table(results)}")


def chosen(path: Path, name: str | None) -> list[ProteinChain]:
    """The named chain or all chains; of chains of equal sequence, the one with the most resolved residues."""
    found: dict[str, ProteinChain] = {}
    for chain in read_structure(path, name):
        other = found.setdefault(chain.sequence, chain)
        if chain.resolved.sum() > other.resolved.sum():
            found[chain.sequence] = chain
    return list(found.values())


def table(results: Sequence[Mapping[str, Precision]]) -> str:
    """Precisions are means over the chains that have pairs of the range, counts are sums."""
    columns = "".join(f"{name:>8}" for name in (*(f"P@{cut}" for cut in CUTS), "random"))
    lines = [f"  {'range':<14}{'pairs':>9}{'contacts':>10}{columns}"]
    for name, (first, last) in SEPARATIONS.items():
        found = [result[name] for result in results]
        precisions = [mean([one.at(part) for one in found]) for part in CUTS.values()]
        precisions.append(mean([one.random for one in found]))
        cells = "".join(f"{'-' if isnan(precision) else f'{precision:.1%}':>8}" for precision in precisions)
        reach = f"{name} {first}{'+' if last is None else f'-{last}'}"
        pairs, contacts = sum(one.pairs for one in found), sum(one.contacts for one in found)
        lines.append(f"  {reach:<14}{pairs:>9,}{contacts:>10,}{cells}")
    return "\n".join(lines)


def mean(precisions: Sequence[float]) -> float:
    known = [precision for precision in precisions if not isnan(precision)]
    return fmean(known) if known else nan


if __name__ == "__main__":
    predict_command("python -m examples.protein.evaluate", Arguments, evaluate)
