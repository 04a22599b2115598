"""Hostile options and damaged files, given to every command: run by hand, `python tests/hostile.py` (half an hour).

Every numeric option of every command takes -1, 0, 1e-30, 1e30, NaN, infinity and a word; every file of a run and of a
model is emptied, cut off, overwritten, or replaced by other JSON. Each call must succeed, or end in one sentence that
leaves everything as it was. tests/test_hostile.py takes some of the same cases. With --root DIR the commands of another
checkout are tried, for instance of an older commit.
"""

import argparse
import hashlib
import json
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).parent / "helpers"))
from faults import COMMANDS, LATER, SMALL, make_data
from forks import Commands, Ended

VALUES = ("-1", "0", "1e-30", "1e30", "nan", "inf", "word")
WHOLE = {"1e-30": "0.5", "1e30": "1" + "0" * 30}  # of an option that takes a whole number
MODULES = [
    f"{package}.{program}" for package in ("vision", "audio", "text") for program in ("train", "predict", "export")
]
MODULES += ["core.experiments.compare", *LATER]


class Case(NamedTuple):
    name: str
    module: str
    words: list[str]
    folder: Path
    """In which the command runs, and in which nothing may change if it fails."""


def judge(case: Case, commands: Commands) -> str:
    """ "fine", "sentence", or what is wrong."""
    before = fingerprint(case.folder)
    ended = commands.run(case.module, case.words, case.folder, timeout=120)
    return verdict(ended, fingerprint(case.folder) == before)


def verdict(ended: Ended, unchanged: bool) -> str:
    if ended.status is None:
        return "hangs"
    if ended.status < 0:
        return f"dies of signal {-ended.status}"
    if "Traceback" in ended.err:
        return f"traceback: {ended.err.strip().splitlines()[-1][:150]}"
    if ended.status == 0:
        return "nan" if re.search(r"\bnan\b", ended.out) else "fine"
    last = (ended.err.strip().splitlines() or [""])[-1]
    if not last.startswith("error: "):
        return f"no sentence: {last[:150]}"
    return "sentence" if unchanged else f"leaves something behind: {last[:150]}"


def fingerprint(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock"
    }


# --- options --------------------------------------------------------------------------------------------------------


def numeric_options(commands: Commands, module: str, words: list[str], folder: Path) -> list[tuple[str, bool]]:
    """The options of a command that take numbers, and whether those are whole."""
    said = commands.run(module, [*words, "--help"], folder).out
    found = re.findall(r"^│ *(--[\w.-]+) ([^\n│]*)", said, flags=re.MULTILINE)
    return [(name, "FLOAT" not in form) for name, form in found if re.search(r"INT|FLOAT", form)]


def option_cases(commands: Commands, folder: Path, every: int = 1) -> Iterator[Case]:
    """Cases that are made when they are tried: each is to be judged before the next is taken."""
    make_data(folder)
    numbers = count()
    short = ["--train.steps", "2", "--out", "run"]
    for module, words in COMMANDS.items():
        for option, whole in numeric_options(commands, module, words[:1], folder):
            for value in VALUES:
                if next(numbers) % every:
                    continue
                given = WHOLE.get(value, value) if whole else value
                several = [given, given] if option == "--train.betas" else [given]
                yield Case(f"{module} {option} {given}", module, [*words, *SMALL, *short, option, *several], folder)
    for package, (run, given) in finished_runs(commands, folder).items():
        for option, whole in numeric_options(commands, f"{package}.predict", [], folder):
            for value in VALUES:
                if next(numbers) % every:
                    continue
                number = WHOLE.get(value, value) if whole else value
                yield Case(
                    f"{package}.predict {option} {number}", f"{package}.predict", [run, given, option, number], folder
                )


# --- files ----------------------------------------------------------------------------------------------------------


def finished_runs(commands: Commands, folder: Path) -> dict[str, tuple[str, str]]:
    """A run of each modality, made if the folder does not have it yet, and something to predict."""
    found = {}
    for module, words in COMMANDS.items():
        package = module.split(".")[0]
        if not (folder / f"{package}-run").exists():
            ended = commands.run(module, [*words, *SMALL, "--train.steps", "2", "--out", f"{package}-run"], folder)
            assert ended.status == 0, ended.err
        if package == "text":
            found[package] = f"{package}-run", "cat dog"
        else:
            given = "0.wav" if package == "audio" else str(next((folder / "vision-run/samples").glob("*.png")))
            found[package] = f"{package}-run", given
    return found


def as_json(change: Callable[[object], object]) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps(change(json.loads(data))).encode()


def first_of_kind(kind: type | tuple[type, ...], value: object) -> Callable[[object], object]:
    """The first value of a kind in nested JSON, replaced."""

    def change(found: object) -> object:
        done = []

        def walk(node: object) -> object:
            if not done and isinstance(node, kind) and not isinstance(node, bool):
                done.append(node)
                return value
            if isinstance(node, dict):
                return {key: walk(inner) for key, inner in node.items()}
            return [walk(inner) for inner in node] if isinstance(node, list) else node

        return walk(found)

    return change


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "random": lambda data: random.Random(0).randbytes(max(len(data), 20)),
    "zeros": lambda data: bytes(len(data)),
}
OF_JSON: dict[str, Callable[[bytes], bytes]] = {
    "null": lambda data: b"null",
    "list": lambda data: b"[1, 2]",
    "string": lambda data: b'"text"',
    "object": lambda data: b"{}",
    "nested": lambda data: b"[" * 100_000 + b"]" * 100_000,
    "bad bytes": lambda data: b'{"a": "\xff\xfe"}',
    "a number is text": as_json(first_of_kind((int, float), "many")),
    "a number is huge": as_json(first_of_kind((int, float), 10**40)),
    "a text is null": as_json(first_of_kind(str, None)),
    "a text is a list": as_json(first_of_kind(str, ["x"])),
    "a key is unknown": as_json(lambda found: {**found, "unheard_of": 1} if isinstance(found, dict) else found),
}
LINES = {
    "a row is a list": lambda data: b"[1]\n" + data,
    "a step is text": lambda data: data.replace(b'"step": 1', b'"step": "x"'),
}
OF_RUN = ("config.json", "metrics.jsonl", "summary.json", "samples.json", "tokenizer.json")
OF_CHECKPOINT = ("step.json", "state.pt", "model.safetensors")
OF_MODEL = ("config.json", "model.safetensors", "tokenizer.json", "README.md")


def damages_of(name: str) -> dict[str, Callable[[bytes], bytes] | None]:
    more = OF_JSON if name.endswith(".json") else LINES if name.endswith(".jsonl") else {}
    return {**DAMAGES, **more, "gone": None, "a directory": None}


def damage(path: Path, how: str) -> None:
    make = damages_of(path.name)[how]
    data = path.read_bytes()
    path.unlink()
    if how == "a directory":
        path.mkdir()
    elif make is not None:
        path.write_bytes(make(data))


def file_cases(commands: Commands, folder: Path, every: int = 1) -> Iterator[Case]:
    make_data(folder)
    numbers = count()
    runs = finished_runs(commands, folder)
    for package, (name, given) in runs.items():
        run, experiment = folder / name, COMMANDS[f"{package}.train"][0]
        checkpoint = max((run / "checkpoints").glob("step-*")).relative_to(run)
        files = [*OF_RUN, *(str(checkpoint / file) for file in OF_CHECKPOINT), *(f"model/{file}" for file in OF_MODEL)]
        for file in files:
            for how in damages_of(file) if (run / file).exists() else ():
                place = folder / "place"
                uses: dict[str, list[str]] = {}
                if not file.startswith("model"):
                    uses["train"] = [experiment, "--resume", "--out", "run", "--train.steps", "3"]
                    uses["compare"] = ["run"]
                else:
                    uses["predict"] = ["run", str(folder / given) if package != "text" else given]
                    uses["export"] = ["run", "model.pt2"]
                    own = [
                        word if word != "sounds.csv" and word != "texts.csv" else str(folder / word)
                        for word in COMMANDS[f"{package}.train"]
                    ]
                    tokenizer = ["--data.tokenizer.vocab-size", "60"]
                    own = [word for word in own if word not in tokenizer]
                    uses["start"] = [*own, *SMALL[6:], "--train.steps", "1", "--init", "run", "--out", "next"]
                for use, words in uses.items():
                    if next(numbers) % every:
                        continue
                    shutil.rmtree(place, ignore_errors=True)
                    place.mkdir()
                    shutil.copytree(run, place / "run")
                    for data in ("sounds.csv", "texts.csv", *(f"{number}.wav" for number in range(12))):
                        (place / data).symlink_to(folder / data)
                    damage(place / "run" / file, how)
                    module = {"compare": "core.experiments.compare", "start": f"{package}.train"}.get(
                        use, f"{package}.{use}"
                    )
                    yield Case(f"{module} {use}, {file} {how}", module, words, place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).parent.parent)
    parser.add_argument("--every", type=int, default=1, help="take only every so many cases")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Commands(*MODULES, root=given.root.resolve()) as commands:
        counts: Counter[str] = Counter()
        for kind, cases in (("options", option_cases), ("files", file_cases)):
            place = Path(folder) / kind
            place.mkdir()
            for case in cases(commands, place, given.every):
                found = judge(case, commands)
                shutil.rmtree(case.folder / "run" if kind == "options" else case.folder / "next", ignore_errors=True)
                counts[found.partition(":")[0]] += 1
                if found not in ("fine", "sentence"):
                    print(f"{case.name}: {found}", flush=True)
            print(f"after the {kind}: {sum(counts.values())} cases, {dict(counts)}", flush=True)
    sys.exit(bool(counts.keys() - {"fine", "sentence"}))


if __name__ == "__main__":
    main()
