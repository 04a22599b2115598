"""How a model and its training follow the user's own clips: see `core.experiments.sizing`."""

from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from statistics import median
from typing import Any

from soundfile import LibsndfileError

from core.data import few_per_class
from core.data.shards import shards_of, some_of
from core.experiments.sizes import Size
from core.experiments.sizing import Settings, Sizing
from core.files import File, Packed

from .clips import AudioFormat
from .counting import STATED, stated, stated_samples
from .features import frame_samples
from .model import AST
from .pretrained import load_pretrained
from .samples import read_clip

LOOKED_AT = 200  # clips, whose headers are read, or which are read whole if pauses are left out
RATES = (8_000, 16_000)  # Hz: a model takes no more than the latter
MEL_BINS, BINS = 64, 16  # of the spectrogram, and of a patch
COLUMNS = 16  # columns of patches in a usual clip
FRAMES = (2, 32)  # of a patch: the fewest and the most
ROOM, MOST_FRAMES = 1.25, 4096  # a model takes clips so much longer than the longest, but no more frames


def sizing(experiment: Any, given: Collection[str]) -> Sizing:
    """given: the names of the fields that options set."""
    data = experiment.data.samples()
    own = few_per_class(data.train, experiment.data.per_class)
    some = [path for path, _ in some_of(own, LOOKED_AT)]
    rate = experiment.model.sample_rate if "model.sample_rate" in given else usual_rate(some)
    most = float("inf") if experiment.data.seconds is None else experiment.data.seconds
    start = None if experiment.init is None else load_pretrained(experiment.init)
    trim = experiment.model.trim if start is None else experiment.model.trim or start.config.trim
    form = replace(experiment.model.audio_format, sample_rate=rate, trim=trim)
    usual = min(median(heard_samples(path, form) for path in some) / rate, most)
    further, _ = experiment.data.further_samples(data, rate)

    def settings(size: Size | None) -> Settings:
        features = experiment.model.features
        length, shift = frame_samples(features, rate)

        def frames(seconds: float) -> int:
            return max(round(seconds * rate) - length, 0) // shift + 1

        masks = {"model.time_mask": frames(usual) // 5, "model.freq_mask": experiment.model.n_mels // 4}
        if size is None:
            return masks if isinstance(start, AST) else {}
        in_shards = shards_of(data.train) is not None
        every = [] if in_shards else [path for part in (*data.parts().values(), further) for path, _ in part]
        stated = not in_shards and all(isinstance(path, Packed) or path.suffix.lower() in STATED for path in every)
        longest = min(max(stated_samples(path, rate) for path in every) / rate, most) if stated else float("inf")
        bins = experiment.model.n_mels if "model.n_mels" in given else MEL_BINS
        columns = min(max(-(-frames(usual) // COLUMNS), FRAMES[0]), FRAMES[1])
        patch = (min(BINS, bins), columns)
        limit = max(min(MOST_FRAMES, ROOM * frames(min(longest, MOST_FRAMES * shift / rate))), 2 * columns)
        found = {
            "model.sample_rate": rate,
            "model.n_mels": bins,
            "model.max_frames": -(-round(limit) // columns) * columns,
            "model.patch_size": patch,
            "model.stride": experiment.model.patch_size if "model.patch_size" in given else patch,
            "model.freq_mask": bins // 4,
            "model.time_mask": masks["model.time_mask"],
        }
        if not {"model.pool", "model.class_token", "model.registers"} & {*given}:
            found |= {"model.pool": "mean", "model.class_token": False, "model.registers": 0}
        return found

    return Sizing(
        len(own) + len(further),
        f"clips, the usual one of {usual:.2g} s at {rate:,} Hz",
        settings,
        lambda config: config.audio_format.count_tokens(round(usual * config.sample_rate)),
        start=None if start is None else start.config,
    )


def heard_samples(path: File, form: AudioFormat) -> int:
    """Samples of a file as a model takes it."""
    return stated_samples(path, form.sample_rate) if form.trim is None else len(read_clip(path, form))


def usual_rate(paths: list[File]) -> int:
    """The sample rate that most files have, within RATES."""
    rates = Counter(rate for path in paths if (rate := stated_rate(path)))
    (usual, _), *_ = rates.most_common(1) or [(RATES[1], 0)]
    return min(max(usual, RATES[0]), RATES[1])


def stated_rate(path: File) -> int:
    """0 if libsndfile cannot read the header: then reading the file says what is wrong."""
    try:
        return stated(path).samplerate
    except (LibsndfileError, OSError):
        return 0
