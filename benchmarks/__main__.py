"""Side by side with our peers: `python -m benchmarks [NAME ...]`, all groups by default, 46 minutes on 2 cores.

Each row is printed when it is measured. The page (docs/benchmarks.md), its charts and its JSON are written after each
group, so that an interruption loses nothing, and single groups can be measured again. A group has a section for each
kind of machine that it was measured on: a CPU without bf16 arithmetic, one with it, a graphics card.
"""

import argparse
import inspect
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from importlib import import_module
from pathlib import Path

import torch

from core.training.memory import keep_freed_memory

from . import charts, page
from .row import Group, Run, machine

GROUPS = (
    "vit",
    "ast",
    "bert",
    "encoder",
    "attention",
    "sparse",
    "long",
    "ragged",
    "lora",
    "adaptation",
    "loading",
    "prediction",
    "checkpoints",
    "startup",
)
ON_CUDA = ("ragged",)
KINDS = ("", " on a CPU with bf16", " on cuda")  # of machines, as they are named in a group's section
OUT = Path(__file__).parent.parent / "docs" / "benchmarks.md"


def measure(name: str, run: Run) -> Group:
    module = import_module(f".{name}", __package__)
    print(f"\n{name}", flush=True)
    rows = []
    for row in module.rows(run):
        rows.append(row)
        print(page.line_of_text(row), flush=True)
    return Group(text=inspect.getdoc(module), machine=f"{machine(run.device)}, {date.today()}", rows=tuple(rows))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Side by side with our peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(GROUPS)}; all by default")
    parser.add_argument("--rounds", type=int, help="of every comparison; by default each has its own number")
    parser.add_argument(
        "--out", type=Path, default=OUT, help="the page, beside which a JSON file and pictures/ are written"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="only the group ragged runs on cuda")
    options = parser.parse_args(arguments)
    names = ON_CUDA if options.device == "cuda" else GROUPS
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "There is no CUDA device here: leave out --device.\n")
    if unknown := [name for name in options.names if name not in names]:
        parser.exit(2, f"No group is called {unknown[0]!r}: choose from {', '.join(names)}.\n")
    if options.rounds is not None and options.rounds < 1:
        parser.exit(2, f"--rounds must be at least 1, not {options.rounds}.\n")
    warnings.simplefilter("ignore")
    os.environ["PYTHONWARNINGS"] = "ignore"  # in the processes that measure memory
    keep_freed_memory()  # as training on a CPU does: else what is measured is how fast the system provides memory
    run, found = Run(rounds=options.rounds, device=options.device), page.read(options.out)
    if options.device == "cuda":
        run = replace(run, bf16=True)
    kind = KINDS[2] if options.device == "cuda" else KINDS[1] if run.bf16 else KINDS[0]
    print(machine(run.device))
    for name in options.names or names:
        found[name + kind] = measure(name, run)
        order = [each + kind for each in GROUPS for kind in KINDS]
        found = {each: found[each] for each in order if each in found}
        charts.draw(options.out.parent / "pictures", found)
        page.write(options.out, found)
    print(f"\n{options.out} has the page.")


if __name__ == "__main__":
    main()
