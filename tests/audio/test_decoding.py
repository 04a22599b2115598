"""Sound files are read to their ends, whatever their headers say; those without fault as libsndfile reads them."""

import io
import os
import random
import socket
import struct

import numpy as np
import pytest
import soundfile
import torch
from torchaudio import functional as AF
from transformers import ASTFeatureExtractor

from audio import FeatureConfig, Filterbank
from audio.decoding import read_audio, resample
from core import UserError

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


@pytest.fixture
def decoded(tmp_path):
    def decode(content: bytes, rate: int = 16_000, name: str = "a.wav") -> np.ndarray:
        (tmp_path / name).write_bytes(content)
        return read_audio(tmp_path / name, rate).numpy()

    return decode


# --- MP3 ------------------------------------------------------------------------------------------------------------


def mp3(rate=16_000, seconds=1.0, channels=1, mode="VARIABLE", seed=0) -> bytes:
    """Noise and then silence: where the bit rate varies, the first frames are much longer than the others."""
    samples = sound(rate, seconds, channels, seed)
    samples[: len(samples) // 4] += np.random.default_rng(seed).normal(0, 0.2, samples[: len(samples) // 4].shape)
    samples[len(samples) // 2 :] = 0
    return encoded(samples, rate, format="MP3", bitrate_mode=mode, compression_level=0.5)


def uncounted(content: bytes) -> bytes:
    """Without the first frame, which counts the others."""
    return content[content.index(content[:2], 4) :]


def counted_as(content: bytes, count: int) -> bytes:
    at = max(content.find(b"Xing", 0, 64), content.find(b"Info", 0, 64)) + 8
    return content[:at] + struct.pack(">I", count) + content[at + 4 :]


KINDS = [  # MPEG 1, 2 and 2.5
    (44_100, 1, "VARIABLE"),
    (48_000, 2, "AVERAGE"),
    (16_000, 2, "VARIABLE"),
    (22_050, 1, "CONSTANT"),
    (8_000, 1, "VARIABLE"),
]


@pytest.mark.parametrize("rate, channels, mode", KINDS)
def test_mp3_without_a_count_of_frames_is_read_to_its_end(rate, channels, mode, decoded):
    content = mp3(rate, 8.0, channels, mode)
    whole = decoded(content, rate)
    assert len(whole) == 8 * rate
    np.testing.assert_allclose(whole, directly(content), rtol=0, atol=1e-6)
    found = decoded(uncounted(content), rate)
    # The encoder's delay of 576 samples and its padding are not stated any more, and stay.
    assert np.array_equal(found[576:][: len(whole)], whole) and len(found) < len(whole) + 576 + 2 * 1152


@pytest.mark.parametrize("count", [0, 1, 30])
def test_mp3_with_too_small_a_count_is_read_to_its_end(count, decoded):
    content = mp3(seconds=4.0)
    assert np.array_equal(decoded(counted_as(content, count)), decoded(content))


@pytest.mark.parametrize("between", [b"", ID3V2, ID3V1 + ID3V2, b"junk" * 50])
@pytest.mark.parametrize("change", [lambda content: content, uncounted])
def test_joined_mp3s_give_both_parts(between, change, decoded):
    first, second = (change(mp3(seed=seed, seconds=seconds)) for seed, seconds in ((1, 1.0), (2, 0.7)))
    parts = [decoded(first), decoded(second)]
    found = decoded(ID3V2 + first + between + second + ID3V1)
    if change is not uncounted:
        assert np.array_equal(found, np.concatenate(parts))
    else:  # one stream to a decoder, which overlaps neighbouring frames
        np.testing.assert_allclose(found[: len(parts[0])], parts[0], rtol=0, atol=1e-6)
        np.testing.assert_allclose(found[-len(parts[1]) + 1152 :], parts[1][1152:], rtol=0, atol=1e-6)


def test_joined_files_may_differ_in_rate_and_channels(decoded):
    files = [mp3(16_000), mp3(44_100, channels=2), encoded(sound(), format="FLAC"), encoded(sound(8000), 8000)]
    for numbers in [(0, 1), (1, 0, 0, 1), (2, 2), (3, 2)]:
        parts = [decoded(files[number]) for number in numbers]
        assert np.array_equal(decoded(b"".join(files[number] for number in numbers)), np.concatenate(parts))
    assert len(decoded(files[3] + files[3], 8_000)) == 16_000


@pytest.mark.parametrize("size", [0, 2**32 - 1])
@pytest.mark.parametrize("options", [{}, {"endian": "BIG"}, {"format": "AIFF"}])
def test_joined_streams_of_unknown_length_give_both_parts(options, size, decoded):
    files = [encoded(sound(seed=seed), **options) for seed in (1, 2)]
    found = decoded(b"".join(states(content, size)[0] for content in files))
    assert np.array_equal(found, np.concatenate([decoded(content) for content in files]))


def test_free_format_mp3(decoded):
    """Frames whose headers state no bit rate."""
    content = uncounted(mp3(48_000, mode="CONSTANT"))  # all frames are equally long
    size = content.index(content[:2], 4)
    frames = [content[at : at + size] for at in range(0, len(content), size)]
    free = b"".join(frame[:2] + bytes([frame[2] & 0x0F]) + frame[3:] for frame in frames)
    assert np.array_equal(decoded(free, 48_000), decoded(content, 48_000))


@pytest.mark.parametrize("head, samples", [(b"\xff\xfd", 1152), (b"\xff\xff", 384)])
def test_other_layers_than_mp3(head, samples, decoded):
    frame = head + b"\x80\0"
    size = 144 * 128_000 // 44_100 if samples == 1152 else 12 * 256_000 // 44_100 * 4
    assert len(decoded(frame.ljust(size, b"\0") * 50, 44_100)) == 50 * samples


def test_mp3_in_wav(decoded):
    content = mp3()
    layout = struct.pack("<HHIIHHHHIHHH", 0x55, 1, 16_000, 4000, 1, 0, 12, 1, 2, 417, 1, 1393)
    chunks = b"WAVEfmt " + struct.pack("<I", len(layout)) + layout + b"data" + struct.pack("<I", len(content)) + content
    assert np.array_equal(decoded(b"RIFF" + struct.pack("<I", len(chunks)) + chunks), decoded(content))


def test_mp3_from_the_middle_of_a_stream(decoded):
    """Recorded off the air: it begins and ends within frames."""
    content = uncounted(mp3(44_100, 4.0, mode="CONSTANT"))
    whole, found = decoded(content, 44_100), decoded(content[10_000:-100], 44_100, "a.mp3")
    lost = 10_000 // (content.index(content[:2], 4))  # frames
    assert np.array_equal(found[1152 * 4 : -1152], whole[1152 * (lost + 5) :][: len(found) - 1152 * 5])


# --- Other formats --------------------------------------------------------------------------------------------------


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


# --- What is in no way right ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "fifo", "socket", "folder", "absent", "a\0b"])
def test_what_is_no_file_is_refused_at_once(name, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        with pytest.raises(UserError) as error:
            read_audio(tmp_path / name, 16_000)
    assert str(error.value).count(".") <= 1 + str(tmp_path).count(".") and "sound file" in str(error.value)


GARBAGE = {
    "empty": b"",
    "text": b"hello" * 500,
    "zeros": bytes(5000),
    "noise": np.random.default_rng(0).bytes(50_000),
    "an MPEG header": b"\xff\xfb\x90\xc4" + bytes(10),
    "a RIFF header": encoded(sound())[:44],
    "half a RIFF header": encoded(sound())[:20],
    "a FLAC header": encoded(sound(), format="FLAC")[:42],
    "half a FLAC header": encoded(sound(), format="FLAC")[:20],
    "an Ogg page": encoded(sound(), format="OGG")[:60],
    "magic alone": b".snd",
    "no samples": encoded(np.zeros(0)),
    "tags alone": ID3V2 + ID3V1,
    "a tag that is longer than the file": b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + bytes(100),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_gets_one_sentence(name, decoded):
    with pytest.raises(UserError, match=r"a\.wav (is|has) [^.]+\.$"):
        decoded(GARBAGE[name])


def test_files_with_random_faults_are_read_or_get_one_sentence(decoded, capfd):
    generator = random.Random(0)
    kinds = [{"format": kind} for kind in ("WAV", "RF64", "AIFF", "AU", "FLAC", "OGG", "CAF")]
    files = [encoded(sound(seconds=0.1), **kind) for kind in kinds] + [mp3(seconds=0.2), uncounted(mp3(seconds=0.2))]
    for number in range(300):
        content = bytearray(files[number % len(files)])
        for _ in range(generator.choice((1, 3, 10))):
            at = generator.randrange(min(len(content), generator.choice((64, 10**6))))
            match generator.randrange(4):
                case 0:
                    content[at] = generator.randrange(256)
                case 1:
                    content[at : at + 4] = generator.choice((b"\xff" * 4, bytes(4), b"\0\0\0\x80"))
                case 2:
                    del content[at + 1 : at + 100]
                case 3:
                    content[at:at] = generator.randbytes(50)
        try:
            assert np.isfinite(decoded(bytes(content))).all()
        except UserError as error:
            assert "\n" not in str(error)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, 1e300])
@pytest.mark.parametrize("channels", [1, 3])
def test_samples_that_are_no_numbers(value, channels, decoded):
    samples = sound(channels=channels)
    samples[5000] = value
    with pytest.raises(UserError, match="holds samples that are not numbers"):
        decoded(encoded(samples, subtype="DOUBLE"))


def test_samples_beyond_full_scale_are_kept(decoded):
    samples = 40_000 * sound()
    assert np.array_equal(decoded(encoded(samples, subtype="FLOAT")), samples.astype("float32"))


# --- As others read it ----------------------------------------------------------------------------------------------

ENCODINGS = {
    "WAV": ["PCM_16", "PCM_24", "PCM_32", "PCM_U8", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM"],
    "WAVEX": ["PCM_16", "PCM_32", "FLOAT", "ULAW"],
    "AIFF": ["PCM_S8", "PCM_16", "PCM_24", "FLOAT", "ULAW"],
    "AU": ["PCM_16", "DOUBLE", "ALAW"],
    "CAF": ["PCM_16", "ALAC_16"],
    "RF64": ["PCM_16"],
    "W64": ["PCM_24"],
    "FLAC": ["PCM_S8", "PCM_16", "PCM_24"],
    "OGG": ["VORBIS", "OPUS"],
    "MP3": ["MPEG_LAYER_III"],
}
RATES = (8_000, 16_000, 24_000, 44_100, 48_000, 384_000)


def generated():
    """200 files of all encodings, rates, numbers of channels and lengths that go together."""
    generator = np.random.default_rng(0)
    pairs = [(kind, encoding) for kind, encodings in ENCODINGS.items() for encoding in encodings]
    made = 0
    while made < 200:
        for kind, encoding in pairs:
            rate, channels = (int(generator.choice(among)) for among in (RATES, (1, 1, 2, 3, 6, 8)))
            seconds = float(generator.choice((0.01, 0.1, 0.3)))
            if encoding == "VORBIS" and rate > 48_000:  # the encoder would crash
                continue
            try:
                file = encoded(sound(rate, seconds, channels, made), rate, format=kind, subtype=encoding)
            except soundfile.LibsndfileError:  # no MP3 at 384 kHz, no ADPCM of three channels
                continue
            made += 1
            yield f"{kind} {encoding}, {rate} Hz, {channels} channels, {seconds} s", rate, file


def test_200_files_are_read_as_by_libsndfile_torchaudio_and_transformers(decoded):
    extractor = ASTFeatureExtractor(max_length=80)
    filterbank = Filterbank(FeatureConfig(kind="kaldi"), 16_000, 128)
    for number, (name, rate, file) in enumerate(generated()):
        expected = directly(file)
        np.testing.assert_allclose(decoded(file, rate), expected, rtol=0, atol=1e-6, err_msg=name)
        expected = AF.resample(torch.from_numpy(expected), rate, 16_000)
        found = torch.from_numpy(decoded(file))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, msg=name)
        if number % 4 == 0 and len(found) >= 400:  # the extractor takes no clip shorter than a frame
            features, _ = filterbank(found[None], torch.tensor([len(found)]))
            theirs = extractor(found.numpy(), sampling_rate=16_000, return_tensors="pt").input_values[0].T
            ours = filterbank.normalise(features)[0]
            torch.testing.assert_close(ours, theirs[:, : ours.shape[1]], rtol=0, atol=1e-4, msg=name)
    assert number >= 199


@pytest.mark.parametrize("rate, wanted", [(44_101, 16_000), (11_027, 16_000), (96_001, 16_000), (8_001, 48_000)])
def test_rates_without_a_common_divisor_are_resampled_without_drift(rate, wanted):
    """Against the tone itself."""
    tones = (np.sin(2 * np.pi * 1234.5 * np.arange(5 * r) / r).astype("float32") for r in (rate, wanted))
    found, expected = resample(torch.from_numpy(next(tones)), rate, wanted).numpy(), next(tones)
    assert len(found) == len(expected)
    assert np.abs(found[1000:-1000] - expected[1000:-1000]).max() < 2e-3


@pytest.mark.parametrize("rate, wanted", [(44_100, 16_000), (8_000, 48_000), (384_000, 1_000)])
def test_filters_that_are_not_kept_are_the_same(rate, wanted, monkeypatch):
    tone = torch.from_numpy(sound(rate, 0.5).astype("float32"))
    expected = resample(tone, rate, wanted)
    monkeypatch.setattr("audio.decoding.FILTERS", 0)
    monkeypatch.setattr("audio.decoding.AT_ONCE", 50_000)
    torch.testing.assert_close(resample(tone, rate, wanted), expected, rtol=0, atol=1e-6)


def test_resampling_keeps_what_fits_and_silences_what_does_not():
    time = np.arange(48_000) / 48_000
    for pitch, expected in ((5000, 1.0), (11_000, 0.0)):
        tone = torch.from_numpy(np.sin(2 * np.pi * pitch * time).astype("float32"))
        found = resample(tone, 48_000, 16_000)[1000:-1000]
        assert abs(found.square().mean().sqrt() * 2**0.5 - expected) < 0.02
