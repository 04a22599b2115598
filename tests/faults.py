"""A full disk and a kill at every write of a run, of three commands: by hand, `python tests/faults.py` (half an hour).

tests/test_faults.py takes a few of the same moments. After each fault: whatever was whole before is whole, a mistake is
one sentence, and once there is room the run ends as if nothing had happened.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parent / "helpers"))
from forks import FULL, KILL, Commands, Ended

STEPS, MORE = 4, 6
SMALL = ["--model.dim", "8", "--model.heads", "1", "--model.depth", "1", "--train.device", "cpu", "--train.keep", "1"]
SMALL += ["--train.batch-size", "4", "--train.warmup", "1", "--train.save-every", "2", "--train.eval-every", "2"]
SMALL += ["--train.log-every", "1", "--train.workers", "0"]
COMMANDS = {
    "vision.train": ["digits", "--data.per-class", "4"],
    "audio.train": ["manifest", "--data.path", "sounds.csv", "--train.accumulate", "1"],
    "text.train": ["manifest", "--data.path", "texts.csv", "--data.tokenizer.vocab-size", "60"],
}
LATER = ("torch._dynamo", "torch.utils.tensorboard", "matplotlib.backends.backend_svg")
LATER += ("sklearn.svm", "sklearn.datasets", "sklearn.linear_model", "sklearn.pipeline")  # imported by every run
MODULES = (*COMMANDS, *LATER)


def make_data(folder: Path) -> None:
    """Tones of two heights and texts of two kinds."""
    rows = ["path,label"]
    for number in range(12):
        time = np.arange(int(16_000 * 0.2)) / 16_000
        soundfile.write(folder / f"{number}.wav", 0.1 * np.sin(2 * np.pi * (400, 900)[number % 2] * time), 16_000)
        rows.append(f"{number}.wav,{('low', 'high')[number % 2]}")
    (folder / "sounds.csv").write_text("\n".join(rows))
    words = random.Random(0)
    rows = ["text,label"]
    for number in range(24):
        body = " ".join(words.choice(("cat dog cow", "one two six")[number % 2].split()) for _ in range(4))
        rows.append(f"{body},{('animal', 'number')[number % 2]}")
    (folder / "texts.csv").write_text("\n".join(rows))


class Moments:
    """A command, uninterrupted, and then with a fault at any of its writes."""

    def __init__(self, commands: Commands, module: str, resumes: bool, folder: Path):
        self.commands, self.module, self.resumes, self.folder = commands, module, resumes, folder
        self.start = [*COMMANDS[module], *SMALL, "--train.steps", str(STEPS)]
        self.resume = [COMMANDS[module][0], "--resume", "--train.steps", str(MORE if resumes else STEPS)]
        begun = folder / f"begun-{module}"
        if resumes and not begun.exists():
            assert self.call([*self.start, "--out", begun]).status == 0
        whole = self.prepare("whole")
        ended = self.call([*self.words(), "--out", whole], (whole, -1, FULL))
        assert ended.status == 0, ended.err
        self.writes, self.expected = ended.writes, weights(whole)

    def words(self) -> list[str]:
        return self.resume if self.resumes else self.start

    def call(self, words: list, fault: tuple | None = None) -> Ended:
        return self.commands.run(self.module, words, self.folder, fault)

    def prepare(self, name: str) -> Path:
        run = self.folder / f"{name}-{self.module}-{self.resumes}"
        shutil.rmtree(run, ignore_errors=True)
        if self.resumes:
            shutil.copytree(self.folder / f"begun-{self.module}", run)
        return run

    def check(self, after: int, how: str) -> None:
        """One fault, and what comes after it."""
        run = self.prepare("run")
        before = whole_files(run)
        ended = self.call([*self.words(), "--out", run], (run, after, how))
        case = f"{self.module} {'resumed' if self.resumes else 'new'}, {how} after {after} writes"
        assert how == KILL or ended.status == 0 or ended.sentence, case
        assert "Traceback" not in ended.err, f"{case}: {ended.err}"
        files = whole_files(run)
        assert before.keys() <= files.keys(), f"{case}: lost {before.keys() - files.keys()}"
        again = self.resume if (run / "config.json").exists() else self.start
        mended = self.call([*again, "--out", run])
        assert mended.status == 0, f"{case}, then: {mended.err[-1000:]}"
        found = weights(run)
        same = found.keys() == self.expected.keys() and all((found[n] == self.expected[n]).all() for n in found)
        assert same, f"{case}: other weights in the end"
        left = [path.name for path in run.rglob(".*")]
        assert not left, f"{case}: {left} left behind"


def whole_files(run: Path) -> dict[str, object]:
    """The files of a run that a reader needs, read; all must be whole, but for the checkpoints, of which one must."""
    found: dict[str, object] = {}
    for name in ("config.json", "summary.json", "samples.json", "model/config.json", "tokenizer.json"):
        if (run / name).exists():
            found[name] = json.loads((run / name).read_text())
    if (run / "metrics.jsonl").exists():
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        found["metrics.jsonl"] = rows
    if (run / "model/model.safetensors").exists():
        found["model/model.safetensors"] = load_file(run / "model/model.safetensors")
    if (run / "checkpoints").is_dir() and any((run / "checkpoints").glob("step-*")):
        for path in (run / "checkpoints").glob("step-*"):
            found["checkpoint"] = load_file(path / "model.safetensors")
            json.loads((path / "step.json").read_text())
    return found


def weights(run: Path) -> dict:
    newest = max((run / "checkpoints").glob("step-*"))
    return load_file(newest / "model.safetensors")


def moments(commands: Commands, folder: Path, modules: Iterable[str]) -> Iterator[Moments]:
    make_data(folder)
    for module in modules:
        for resumes in (False, True):
            yield Moments(commands, module, resumes, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="take only every so many writes")
    every = parser.parse_args().every
    with tempfile.TemporaryDirectory() as folder, Commands(*MODULES, faults=True) as commands:
        count, failed = 0, 0
        for command in moments(commands, Path(folder), COMMANDS):
            for after in range(0, command.writes + 1, every):
                for how in (FULL, KILL):
                    count += 1
                    try:
                        command.check(after, how)
                    except AssertionError as error:
                        failed += 1
                        print(error, flush=True)
            print(f"{command.module} {command.resumes}: {command.writes} writes", flush=True)
    print(f"{count} faults, {failed} of them not survived")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
