"""What the first start of a run fixes and a resumed run must not change: the model, the samples and their labels."""

from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..config import flatten, to_dict
from ..data.dataset import NamedSamples
from ..errors import UserError
from ..files import read_json, write_json
from .config import Experiment

SAMPLES = "samples.json"
# Settings that may change when a run is resumed: they change how the model is trained, but not what it is.
CHANGEABLE = (
    "train.",
    "data.path",
    "data.cache",
    "data.bad_shards",
    "data.downloads",
    "data.augment.",
    "init",
    "out",
    "quiet",
    "resume",
    "probe_start",
    "probe.path",
)
CHANGEABLE_IN_MODEL = (
    "dropout",
    "head_dropout",
    "attention_dropout",
    "drop_path",
    "checkpointing",
    "freq_mask",
    "time_mask",
)


def save_samples(run: Path, samples: NamedSamples) -> None:
    """Write samples.json, unless the data are always the same."""
    if samples:
        write_json(run / SAMPLES, {split: [list(sample) for sample in part] for split, part in samples.items()}, None)


def check_unchanged(run: Path, saved: Experiment, now: Experiment, samples: NamedSamples) -> None:
    """Refuse to resume a run with another model, other classes or other samples than it began with."""
    before, after = flatten(to_dict(saved)), flatten(to_dict(now))
    differ = [name for name in after if before.get(name) != after[name] and not _may_change(name)]
    if "model.labels" in differ:
        _refuse(run, _label_difference(before["model.labels"], after["model.labels"]))
    if (before.get("init") is None) != (after.get("init") is None):  # a start may only have moved
        differ.append("init")
    if differ:
        _refuse(run, f"{differ[0]} is {_short(after[differ[0]])}, and was {_short(before.get(differ[0]))}")
    if (run / SAMPLES).exists() and samples:
        before_samples = read_json(run / SAMPLES, dict[str, list[tuple[str, str]]])
        if before_samples != {split: [tuple(sample) for sample in part] for split, part in samples.items()}:
            _refuse(run, _sample_difference(before_samples, samples))


def _may_change(name: str) -> bool:
    return name.startswith(CHANGEABLE) or (name.startswith("model.") and name.rpartition(".")[2] in CHANGEABLE_IN_MODEL)


def _refuse(run: Path, difference: str) -> None:
    raise UserError(
        f"{run} cannot go on, because its data or settings have changed since it began: {difference}. Put that back, "
        f"or start a new run with --init {run}."
    )


def _label_difference(before: Sequence[str], after: Sequence[str]) -> str:
    gone, new = [name for name in before if name not in after], [name for name in after if name not in before]
    if gone and new:
        return f"there is a class {new[0]!r} now, and none called {gone[0]!r}"
    if gone or new:
        return f"the class {gone[0]!r} is gone" if gone else f"the class {new[0]!r} is new"
    return "the classes are in another order"


def _sample_difference(before: NamedSamples, after: NamedSamples) -> str:
    """A sentence about the first sample that differs."""
    old, new = ({name: (split, label) for split in part for name, label in part[split]} for part in (before, after))
    if gone := next((name for name in old if name not in new), None):
        return f"{_short(gone)} of the {old[gone][0]} split is gone"
    if added := next((name for name in new if name not in old), None):
        return f"{_short(added)} is new"
    for name, (split, label) in old.items():
        if new[name][0] != split:
            return f"{_short(name)} is in the {new[name][0]} split, and was in the {split} split"
        if new[name][1] != label:
            return f"{_short(name)} is labelled {_short(new[name][1])}, and was labelled {_short(label)}"
    counts = [Counter(name for part in samples.values() for name, _ in part) for samples in (before, after)]
    if twice := next((name for name in old if counts[0][name] != counts[1][name]), None):
        return f"{_short(twice)} is there {counts[1][twice]} times, and was {counts[0][twice]} times"
    return "the samples are in another order"


def name_text(text: str) -> str:
    """The name of a sample that is a text: its beginning, and a checksum of the whole."""
    return f"{text[:40]!r} ({sha256(text.encode(errors='surrogatepass')).hexdigest()[:12]})"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
