"""Words in synthetic voices (eSpeak NG): more speakers to train on, where the recordings have few."""

import hashlib
import io
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import soundfile
import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor

from core import UserError
from core.config import Natural, Whole, configclass
from core.data import Sample
from core.files import Packed

from .decoding import resample
from .espeak import ENTRY

PITCHES, SPEEDS = (20, 80), (110, 200)  # of eSpeak's 0 to 100, and in words a minute
ENDINGS = ".?!,"  # each is another melody
AUDIBLE = 0.01  # of a clip's peak; what is softer at its ends is cut off,
BEFORE, AFTER = 0.025, 0.05  # but for so many seconds
STRANGE = re.compile(r"(?i).*(robo|whisper|demonic|klatt5|fast|mr serious|announcer).*")  # kinds of voices, left out
SHORTEST = 0.05  # seconds of a name that was spoken
MOST = 50_000  # clips, which are held in memory


@configclass
class Voices:
    """Synthetic voices of eSpeak NG that say the name of each class. Their clips are trained on, never tested on."""

    count: Natural = 0
    """Number of voices; 0 for none."""
    takes: Annotated[Whole, Interval(ge=1, le=100)] = 2
    """Clips of each class by each voice, at several pitches and speeds."""
    language: str = "en"
    """The language that the names of the classes are in, as a code; all of its accents are used."""
    silent: tuple[str, ...] = ()
    """Classes that get no synthetic clips, because their names are not what their clips say, such as unknown."""


class Text(NamedTuple):
    text: str
    voice: str
    pitch: int
    speed: int
    """Words a minute."""


@lru_cache(maxsize=1)  # asked for twice: when a model is sized, and when it is trained
def speak_names(names: tuple[str, ...], voices: Voices, sample_rate: int) -> list[Sample]:
    """The names of classes, each by each voice; the same for every seed, and the first ones for fewer voices."""
    chosen = available_voices(voices.language)
    if voices.count > len(chosen):
        raise UserError(
            f"eSpeak NG has {len(chosen):,} voices of the language {voices.language!r}, not {voices.count:,} "
            "(--data.voices.count)."
        )
    if unknown := sorted({*voices.silent} - {*names}):
        raise UserError(f"There is no class {unknown[0]!r} (--data.voices.silent): they are {', '.join(names)}.")
    count = voices.count * voices.takes * (len(names) - len(voices.silent))
    if count > MOST:
        raise UserError(f"Synthetic voices would say {count:,} clips; at most are {MOST:,}: lower --data.voices.count.")
    chance = random.Random(0)
    chance.shuffle(chosen)
    classes, texts = [], []
    for voice in chosen[: voices.count]:
        for number, name in enumerate(names):
            for _ in range(0 if name in voices.silent else voices.takes):
                text = name.replace("_", " ") + chance.choice(ENDINGS)
                texts.append(Text(text, voice, chance.randint(*PITCHES), chance.randint(*SPEEDS)))
                classes.append(number)
    samples, sounds = [], {}
    for speech, number, text in zip(spoken(texts), classes, texts, strict=True):
        clip = spoken_part(speech.clip, speech.sample_rate)
        if len(clip) < SHORTEST * speech.sample_rate:
            raise UserError(
                f"The name of the class {names[number]!r} cannot be spoken in the language {voices.language!r} "
                "(--data.voices.language): rename the class, or name it in --data.voices.silent."
            )
        if (same := sounds.setdefault((text.voice, speech.phonemes), number)) != number:
            raise UserError(
                f"The names of the classes {names[same]!r} and {names[number]!r} sound the same in the language "
                f"{voices.language!r} (--data.voices.language): rename one, or name it in --data.voices.silent."
            )
        samples.append(Sample(SpokenText(text, resample(clip, speech.sample_rate, sample_rate), sample_rate), number))
    return samples


class Speech(NamedTuple):
    phonemes: bytes
    clip: Float[Tensor, "samples"]
    sample_rate: int


class SpokenText(Packed):
    """A text as it was spoken: a WAV file in memory."""

    def __init__(self, text: Text, clip: Float[Tensor, "samples"], sample_rate: int):
        self.text = text
        file = io.BytesIO()
        soundfile.write(file, clip.numpy(), sample_rate, format="WAV", subtype="PCM_16")
        self.content = file.getvalue()

    def read_bytes(self) -> bytes:
        return self.content

    @property
    def identity(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def __str__(self) -> str:
        text, voice, pitch, speed = self.text
        return f"{text!r} by {voice}, pitch {pitch}, {speed} words a minute ({self.identity[:8]})"


def spoken_part(clip: Float[Tensor, "samples"], rate: int) -> Float[Tensor, "kept"]:
    """Without the silence at both ends; empty if there is nothing else."""
    loud = (clip.abs() > AUDIBLE * clip.abs().max()).nonzero() if len(clip) else clip
    if not len(loud):
        return clip[:0]
    return clip[max(int(loud[0]) - round(BEFORE * rate), 0) : int(loud[-1]) + round(AFTER * rate)]


def available_voices(language: str) -> list[str]:
    """Each accent of a language in each kind of voice, by the names that eSpeak NG has for them."""
    _, data = installed()
    accents = sorted(path for path in (data / "lang").rglob("*") if path.is_file() and _is_of(path.name, language))
    if not accents:
        raise UserError(
            f"eSpeak NG does not speak the language {language!r} (--data.voices.language): give a code such as en or "
            "de."
        )
    kinds = sorted(path.name for path in (data / "voices" / "!v").iterdir() if not STRANGE.match(path.name))
    return [f"{accent.relative_to(data / 'lang').as_posix()}+{kind}" for accent in accents for kind in kinds]


def _is_of(accent: str, language: str) -> bool:
    accent, language = accent.lower(), language.lower()
    return accent == language or accent.startswith(f"{language}-")


def spoken(texts: Sequence[Text]) -> Iterator[Speech]:
    """Each text as it sounds; the same texts always sound the same."""
    script = Path(__file__).with_name("espeak.py")
    command = [sys.executable, "-I", str(script), *map(str, installed())]
    done = subprocess.run(command, input=json.dumps(texts).encode(), capture_output=True)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        raise UserError(f"eSpeak NG failed, and synthetic voices cannot be made ({said[-1]}).")
    output = io.BytesIO(done.stdout)

    def number() -> int:
        return ENTRY.unpack(output.read(ENTRY.size))[0]

    rate = number()
    for _ in texts:
        phonemes = output.read(number())
        samples = np.frombuffer(output.read(number()), np.int16)
        yield Speech(phonemes, torch.from_numpy(samples / np.float32(2**15)), rate)


def installed() -> tuple[Path, Path]:
    """The library of eSpeak NG and the folder of its voices."""
    try:
        import espeakng_loader
    except ImportError:
        raise UserError('Synthetic voices need the package espeakng-loader: pip install -e ".[voices]".') from None
    return Path(espeakng_loader.get_library_path()), Path(espeakng_loader.get_data_path())
