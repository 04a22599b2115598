"""MPEG files are read to their ends, whatever the first frame states."""

import struct

import numpy as np
import pytest
from soundfiles import ID3V1, ID3V2, directly, encoded, mp3, sound, states, uncounted


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
