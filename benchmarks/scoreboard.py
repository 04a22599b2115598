"""The conformance kit run over what others wrote, and what we did: `python -m benchmarks.scoreboard`.

Each result is kept in docs/scoreboard.json as soon as it is there, and docs/scoreboard.md is written from it. With
names, of benchmarks/peers.py, only those are run again; `--missing` runs those without results, as after a stop.
"""

import argparse
import json
import multiprocessing
import os
import re
import sys
import textwrap
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from core.testing import CHECKS, Result, Subject

from .peers import KINDS, PEERS
from .row import versioned

DOCS = Path(__file__).parent.parent / "docs"
PAGE, RESULTS = DOCS / "scoreboard.md", DOCS / "scoreboard.json"
LIBRARIES = ("torch", "timm", "transformers", "open-clip-torch", "sentence-transformers", "torchaudio")
LIBRARIES += ("peft", "x-transformers", "local-attention", "lightning", "accelerate", "trivium")
STATUSES = ("passed", "failed", "expected failure", "not claimed")
INTRODUCTION = """# Scoreboard

The [conformance kit](conformance.md) run over {count} subjects, attention, encoders, models and training loops, of
{libraries}, on CPUs.

`python -m benchmarks.scoreboard` writes this page and [scoreboard.json](scoreboard.json), which has every result. All
checks together take {seconds:.0f} seconds of one core. The command in a row runs the checks of that row alone; it needs
`pip install -e ".[bench]"`.

What a library does not promise is not claimed, and so neither passed nor failed. Two things are asked of all that
take a mask, though only we promise them: that a query without keys gives 0, and that NaN behind a mask stays there.
Small random weights, in fp64 where that is claimed.

Each failure was looked at by hand, and is one of three: not promised, which says what to expect of the library and is
no mistake in it; known, with the thread; found here, with a page that has a script without our code.
"""


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoreboard", description=__doc__)
    parser.add_argument("names", nargs="*", help="subjects to run again, of benchmarks/peers.py; all if none")
    parser.add_argument("--missing", action="store_true", help="only those that have no results yet")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--jobs", type=int, default=cores, help="processes at a time; as many as there are cores")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in PEERS]:
        sys.exit(f"error: There is nobody called {unknown[0]!r}: choose from {', '.join(PEERS)}.")
    found = json.loads(RESULTS.read_text()) if (options.names or options.missing) and RESULTS.exists() else {}
    names = options.names or [name for name in PEERS if name not in found]
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(run, name) for name in names]):
            name, found[name] = done.result()
            RESULTS.write_text(as_json(found))
            print(f"{PEERS[name].name}: {len(found[name]['passed'])} passed", flush=True)
            for each, message in found[name]["failed"].items():
                print(f"    {each}: {message}", flush=True)
    if missing := [name for name in PEERS if name not in found]:
        sys.exit(f"error: No page is written, as there are no results of {', '.join(missing)}: run --missing.")
    PAGE.write_text(page(found))


def run(name: str) -> tuple[str, dict[str, Any]]:
    """The name of a subject and its results, without the search for the smallest inputs that fail."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    start = time.process_time()
    subject = PEERS[name]
    results = [each(subject) for each in CHECKS[subject.kind]]
    return name, record(results, time.process_time() - start)


def record(results: Iterable[Result], seconds: float) -> dict[str, Any]:
    """The results of a subject: the checks of each status, with their messages where they failed."""
    kept: dict[str, Any] = {status: {} if "fail" in status else [] for status in STATUSES}
    for result in results:
        if "fail" in result.status:
            kept[result.status][result.check] = result.message
        else:
            kept[result.status].append(result.check)
    return kept | {"seconds": round(seconds, 1)}


def as_json(found: dict[str, dict[str, Any]]) -> str:
    """A line for each subject."""
    lines = [f"{json.dumps(name)}: {json.dumps(found[name])}" for name in PEERS if name in found]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def page(found: dict[str, dict[str, Any]]) -> str:
    seconds = sum(each["seconds"] for each in found.values())
    libraries = textwrap.fill(", ".join(map(versioned, LIBRARIES)), 120)
    parts = [INTRODUCTION.format(count=len(PEERS), libraries=libraries, seconds=seconds)]
    for title, subjects in KINDS.items():
        parts.append(f"\n## {title}\n\n| | passed | failed | command |\n|---|---|---|---|")
        for name, subject in subjects.items():
            own = found[name]
            failed = len(own["failed"]) + len(own["expected failure"])
            command = f"`python -m core.testing benchmarks.peers:{name}`"
            parts.append(f"| {subject.name} | {len(own['passed'])} | {failed or ''} | {command} |")
        parts += ["", *failures({subject.name: found[name] for name, subject in subjects.items()})]
    parts += ["\n## What is asked\n", "| check | of | passed | failed | what must hold |", "|---|---|---|---|---|"]
    return "\n".join([*parts, *asked(found)]) + "\n"


def failures(found: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each reason, with the subjects that fail for it, and their checks."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for subject, own in found.items():
        for each, message in {**own["expected failure"], **own["failed"]}.items():
            reason = f"**not looked at**: {message}" if each in own["failed"] else message
            reasons.setdefault(reason, {}).setdefault(subject, []).append(f"`{each}`")
    lines = []
    for reason, subjects in reasons.items():
        alike: dict[str, list[str]] = {}
        for subject, checks in subjects.items():
            alike.setdefault(", ".join(checks), []).append(f"*{subject}*")
        parts = [f"{', '.join(names)} ({checks})" for checks, names in alike.items()]
        lines.append(f"- {linked(reason)}: {'; '.join(parts)}")
    return lines


def linked(reason: str) -> str:
    """A reason with links to pages and threads."""
    reason = re.sub(r"docs/(findings/([\w-]+)\.md)", r"[\2](\1)", reason)
    return re.sub(r"([\w.-]+/[\w.-]+)#(\d+)", r"[\1#\2](https://github.com/\1/issues/\2)", reason)


def asked(found: dict[str, dict[str, Any]]) -> list[str]:
    """A row for each check: of what, how many subjects pass and fail it, and what must hold."""
    rows: dict[tuple[str, str], list[tuple[str, Subject]]] = {}
    for kind, checks in CHECKS.items():
        for each in checks:
            own = [(name, subject) for name, subject in PEERS.items() if subject.kind == kind]
            rows.setdefault((each.id, each.sentence), []).extend(own)
    lines = []
    for (name, sentence), subjects in rows.items():
        kinds = ", ".join(dict.fromkeys(subject.kind for _, subject in subjects))
        passed = sum(name in found[key]["passed"] for key, _ in subjects)
        failed = sum(name in found[key]["failed"] or name in found[key]["expected failure"] for key, _ in subjects)
        lines.append(f"| `{name}` | {kinds} | {passed or ''} | {failed or ''} | {sentence} |")
    return lines


if __name__ == "__main__":
    main(sys.argv[1:])
