"""Audio files made in memory."""

import io
import struct

import numpy as np
import soundfile

ID3V2 = b"ID3\x04\0\0\0\0\x01\0" + bytes(128)
ID3V1 = b"TAG" + b"title".ljust(125, b"\0")
APE = b"APETAGEX" + struct.pack("<4I", 2000, 32, 0, 0) + bytes(8)
TAGS = [ID3V1, APE, APE + ID3V1, ID3V2[:3] + b"\x04\0\x10\0\0\0\0" + b"3DI\x04\0\x10\0\0\0\0"]


def sound(rate=16_000, seconds=1.0, channels=1, seed=0):
    """A tone that grows in noise: no stretch of it is like another."""
    time = np.arange(round(rate * seconds)) / rate
    tone = 0.6 * np.sin(2 * np.pi * 440 * time) * time / max(seconds, 1e-9)
    found = tone[:, None] + np.random.default_rng(seed).normal(0, 0.02, (len(time), channels))
    return found[:, 0] if channels == 1 else found


def encoded(samples, rate=16_000, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **{"format": "WAV", **options})
    return file.getvalue()


def directly(content: bytes) -> np.ndarray:
    """As libsndfile reads it."""
    return soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)[0].mean(axis=1)


def mp3(rate=16_000, seconds=1.0, channels=1, mode="VARIABLE", seed=0) -> bytes:
    """Noise and then silence: where the bit rate varies, the first frames are much longer than the others."""
    samples = sound(rate, seconds, channels, seed)
    samples[: len(samples) // 4] += np.random.default_rng(seed).normal(0, 0.2, samples[: len(samples) // 4].shape)
    samples[len(samples) // 2 :] = 0
    return encoded(samples, rate, format="MP3", bitrate_mode=mode, compression_level=0.5)


def uncounted(content: bytes) -> bytes:
    """Without the first frame, which counts the others."""
    return content[content.index(content[:2], 4) :]


def states(content: bytes, size: int | None = None) -> tuple[bytes, int]:
    """The content with another length of its samples in the header, and the one that was there."""
    order = ">" if content[:4] in (b"FORM", b".snd", b"RIFX") else "<"
    at = 8 if content[:4] == b".snd" else max(content.find(b"data"), content.find(b"SSND")) + 4
    form = "I"
    if content[:4] == b"RF64":
        at, form = content.find(b"ds64") + 16, "Q"
    there = struct.unpack_from(order + form, content, at)[0]
    changed = bytearray(content)
    struct.pack_into(order + form, changed, at, there if size is None else size)
    return bytes(changed), there
