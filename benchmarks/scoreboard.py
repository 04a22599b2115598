"""The conformance kit run over what others wrote, and what we did: `python -m benchmarks.scoreboard`.

Two minutes on 2 cores; docs/scoreboard.md is written anew. With names, of benchmarks/peers.py, it only prints.
"""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from core.testing import CHECKS, Report, Result, check

from .peers import ATTENTIONS, ENCODERS, LOOPS, MODELS, PEERS
from .row import versioned

OUT = Path(__file__).parent.parent / "docs" / "scoreboard.md"
LIBRARIES = ("torch", "timm", "transformers", "x-transformers", "local-attention", "lightning", "accelerate", "trivium")
KINDS = {"Attention": ATTENTIONS, "Encoders": ENCODERS, "Models": MODELS, "Training loops": LOOPS}
INTRODUCTION = """# Scoreboard

The [conformance kit](conformance.md) run over attention, encoders, models and training loops of {libraries}, on CPUs.
`python -m benchmarks.scoreboard` writes this page; each line can be run by itself with the command beside it
(`pip install -e ".[bench]"`).

What a library does not promise is not claimed, and so neither passed nor failed. Two things are asked of all that take
a mask, though only we promise them: that a query without keys gives 0, and that NaN behind a mask stays there. Where
these fail, that is what to expect of the library, not a mistake in it. Small random weights, in fp64 where that is
claimed. P passed, **F** failed, x a known failure, - not claimed.
"""


def main(names: Sequence[str]) -> None:
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    if unknown := [name for name in names if name not in PEERS]:
        sys.exit(f"error: There is nobody called {unknown[0]!r}: choose from {', '.join(PEERS)}.")
    found: dict[str, tuple[Result, ...]] = {}
    for name in names or PEERS:
        found[name] = check(PEERS[name]).results
        print(f"{PEERS[name].name}: {summary(found[name])}", flush=True)
        for result in (result for result in found[name] if result.status == "failed"):
            print(f"    {result.check}: {result.message}", flush=True)
    if not names:
        OUT.write_text(page(found))


def summary(results: Sequence[Result]) -> str:
    counts = {status: sum(result.status == status for result in results) for status in ("passed", "failed")}
    return f"{counts['passed']} passed, {counts['failed']} failed of {len(results)}"


def page(found: dict[str, tuple[Result, ...]]) -> str:
    parts = [INTRODUCTION.format(libraries=", ".join(map(versioned, LIBRARIES)))]
    for title, subjects in KINDS.items():
        parts.append(f"\n## {title}\n\n| | passed | failed | command |\n|---|---|---|---|")
        for name, subject in subjects.items():
            passed, failed = (sum(r.status == status for r in found[name]) for status in ("passed", "failed"))
            parts.append(f"| {subject.name} | {passed} | {failed} | `python -m core.testing benchmarks.peers:{name}` |")
        results = tuple(result for name in subjects for result in found[name])
        parts += ["", Report(results).matrix()]
        wrong = [result for result in results if result.status in ("failed", "expected failure")]
        parts += ["", *(f"- {r.subject}, `{r.check}`: {r.message}" for r in wrong)]
    sentences = {each.id: each.sentence for checks in CHECKS.values() for each in checks}
    parts += ["\n## What is asked\n", *(f"- `{name}`: {sentence}" for name, sentence in sentences.items())]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
