"""Audio files of all formats are read to their ends, whatever their headers state."""

import struct

import numpy as np
import pytest
from soundfiles import APE, ID3V1, ID3V2, TAGS, directly, encoded, mp3, sound, states

from core import UserError

HEADED = [
    {"format": "WAV", "subtype": "PCM_16"},
    {"format": "WAV", "subtype": "PCM_U8"},
    {"format": "WAV", "subtype": "IMA_ADPCM"},
    {"format": "WAV", "subtype": "PCM_16", "endian": "BIG"},
    {"format": "WAVEX", "subtype": "FLOAT"},
    {"format": "RF64", "subtype": "PCM_24"},
    {"format": "AIFF", "subtype": "PCM_16"},
    {"format": "AIFF", "subtype": "ULAW"},
    {"format": "AU", "subtype": "PCM_16"},
]


@pytest.mark.parametrize("options", HEADED, ids=lambda options: "-".join(options.values()))
def test_wrong_lengths_in_headers(options, decoded):
    content = encoded(sound(), **options)
    expected, (_, true) = directly(content), states(content)
    # Absent, as writers into a pipe have it; too small; odd.
    for stated in (0, 1, 8, true // 2, true // 2 + 1, true + 1, 0x7FFFFFFF, 0x7FFFF000, 0x80000000, 0xFFFFFFFF):
        assert np.array_equal(decoded(states(content, stated)[0]), expected), stated
    for stated in (true + 2, 2 * true):
        with pytest.raises(UserError, match=r"a\.wav is cut short"):
            decoded(states(content, stated)[0])
    for cut in (len(content) // 2, len(content) - 4):
        with pytest.raises(UserError, match=r"a\.wav is cut short"):
            decoded(content[:cut])
    for tag in TAGS:
        assert np.array_equal(decoded(ID3V2 + content + tag), expected)
    assert np.array_equal(decoded(content + content), np.concatenate([expected, expected]))
    assert np.array_equal(decoded(states(content, 0)[0] + ID3V1), expected)


@pytest.mark.parametrize("pad", [b"", b"\0"])
def test_chunks_behind_the_samples_are_no_samples(pad, decoded):
    samples = sound()[:9999]
    content = encoded(samples, subtype="PCM_U8")
    content = content[: 44 + 9999] + pad + b"LIST" + struct.pack("<I", 1000) + b"\x7f" * 1000
    assert len(decoded(content)) == 9999


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def layout(encoding=1, channels=1, bits=16, frame=None, valid=None) -> bytes:
    """The fmt chunk; extensible where the bits that count are given."""
    frame = frame or channels * bits // 8
    plain = struct.pack("<HIIHH", channels, 16_000, 16_000 * frame, frame, bits)
    if valid is None:
        return chunk(b"fmt ", struct.pack("<H", encoding) + plain)
    kind = struct.pack("<H", encoding) + bytes.fromhex("000000001000800000aa00389b71")
    return chunk(b"fmt ", struct.pack("<H", 0xFFFE) + plain + struct.pack("<HHI", 22, valid, 4) + kind)


SAMPLES = (sound() * 2**15).round().clip(-(2**15), 2**15 - 1).astype("<i2")
DATA = chunk(b"data", SAMPLES.tobytes())
WIDE = chunk(b"data", (SAMPLES.astype("<i4") << 16).tobytes())
FLOATS = chunk(b"data", (SAMPLES / np.float32(2**15)).astype("<f4").tobytes())
REPORTED = {  # chunks that were reported to libsndfile, python-soundfile, librosa, torchaudio, scipy and hound
    "zeros instead of a list": layout() + chunk(b"LIST", bytes(393_164)) + DATA,
    "a list of odd length without its last byte": layout() + b"LIST" + struct.pack("<I", 5) + b"INFOx" + DATA,
    "a list that is cut short": layout() + DATA + b"LIST" + struct.pack("<I", 5000) + b"INFO" + bytes(100),
    "wrong peaks": layout(encoding=3, bits=32) + chunk(b"PEAK", bytes(20)) + FLOATS,
    "a longer layout": chunk(b"fmt ", layout()[8:] + bytes(24)) + DATA,
    "24 bits of 32": layout(bits=24, frame=4) + WIDE,
    "24 bits of 32, extensible": layout(bits=32, valid=24) + WIDE,
    "24 bits of 32, extensible but wrong": layout(bits=24, valid=24, frame=4) + WIDE,
    "16 bits of 32": layout(bits=32, valid=16) + WIDE,
}


@pytest.mark.parametrize("name", REPORTED)
def test_wav_files_of_public_reports(name, decoded):
    body = b"WAVE" + REPORTED[name]
    found = decoded(b"RIFF" + struct.pack("<I", len(body)) + body)
    np.testing.assert_allclose(found, SAMPLES / np.float32(2**15), rtol=0, atol=1e-7)


def test_samples_in_two_chunks_are_refused(decoded):
    with pytest.raises(UserError, match="has its samples in several chunks"):
        decoded(b"RIFF" + bytes(4) + b"WAVE" + layout() + DATA + DATA)


@pytest.mark.parametrize("before", [bytes(2000), ID3V2 + bytes(4000), b"junk" * 700])
def test_mp3_behind_zeros_or_junk(before, decoded):
    content = mp3()
    assert np.array_equal(decoded(before + content), decoded(content))
    tiny = encoded(sound(seconds=0.03), format="MP3")
    assert len(decoded(before + tiny + ID3V1)) == 480


def ogg_checksum(page: bytes) -> int:
    found = 0
    for byte in page:
        found ^= byte << 24
        for _ in range(8):
            found = (found << 1 ^ (0x04C11DB7 if found & 0x80000000 else 0)) & 0xFFFFFFFF
    return found


def test_ogg_whose_last_page_does_not_say_so(decoded):
    content = encoded(sound(), format="OGG", subtype="VORBIS")
    last = content.rfind(b"OggS")
    page = bytearray(content[last:])
    page[5] &= ~4
    page[22:26] = bytes(4)
    page[22:26] = struct.pack("<I", ogg_checksum(page))
    assert np.array_equal(decoded(content[:last] + page), decoded(content))


@pytest.mark.parametrize("channels", [1, 2])
def test_flac_without_its_number_of_samples(channels, decoded):
    content = encoded(sound(channels=channels), format="FLAC")
    expected = directly(content)

    def total(number):  # 36 bits, the first four in a byte with others
        return content[:21] + bytes([content[21] & 0xF0]) + struct.pack(">I", number) + content[26:]

    for number in (0, 5000):
        assert np.array_equal(decoded(total(number)), expected)
        assert np.array_equal(decoded(ID3V2 + total(number) + APE + ID3V1), expected)
        assert np.array_equal(decoded(total(number) + content), np.concatenate([expected, expected]))
    assert np.array_equal(decoded(content + b"junk" * 500), expected)
    with pytest.raises(UserError, match=r"is cut short or broken: it promises 20,000 samples, and 16,000 can be read"):
        decoded(total(20_000))
    for broken in (content[: len(content) // 2], total(0)[: len(content) // 2]):
        with pytest.raises(UserError, match="is broken: flac decoder lost sync"):
            decoded(broken)


@pytest.mark.parametrize("codec", ["VORBIS", "OPUS"])
def test_chained_ogg_streams(codec, decoded):
    files = [encoded(sound(rate, s), rate, format="OGG", subtype=codec) for rate, s in ((48_000, 1), (16_000, 0.5))]
    parts = [decoded(file) for file in files]
    assert [len(part) for part in parts] == [16_000, 8_000]
    for chain in ((0, 1), (1, 0, 1), (0, 1, 0)):
        assert np.array_equal(decoded(b"".join(files[n] for n in chain)), np.concatenate([parts[n] for n in chain]))
    assert len(decoded(files[1] * 3)) == 24_000
    for cut in (1, len(files[0]) // 3):
        with pytest.raises(UserError, match="is cut short"):
            decoded(files[0][:-cut])


@pytest.mark.parametrize("name", ["a.mp3", "a.flac", "a.raw", "a", "a.txt"])
def test_suffixes_may_lie(name, decoded):
    for content in (encoded(sound()), encoded(sound(), format="FLAC"), mp3(), encoded(sound(), format="OGG")):
        np.testing.assert_allclose(decoded(content, name=name), directly(content), rtol=0, atol=1e-6)
