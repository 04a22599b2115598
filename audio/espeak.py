"""Speaks texts by eSpeak NG, in a process of its own: `python espeak.py LIBRARY DATA`, texts in its standard input.

The library keeps a state (the flutter of its voices, random noise) that cannot be set back, so that only the first
texts of a process sound the same each time.

Input: a list in JSON of [text, voice, pitch, words a minute]. Output: the sample rate, and of each text its phonemes
and its samples, each after the number of its bytes; numbers have four bytes, samples two, in the machine's order. Only
Python's own modules are imported, so that it starts at once.
"""

import ctypes
import json
import struct
import sys
from typing import Any, BinaryIO

SYNCHRONOUS, DO_NOT_EXIT, UTF8, BY_CHARACTERS, SPEED, PITCH = 2, 0x8000, 1, 1, 1, 3  # of espeak-ng/speak_lib.h
RECEIVES = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
ENTRY = struct.Struct("=i")


def speak(library: Any, data: str, texts: list[tuple[str, str, int, int]], output: BinaryIO) -> None:
    rate = library.espeak_Initialize(SYNCHRONOUS, 0, data.encode(), DO_NOT_EXIT)
    if rate <= 0:
        raise RuntimeError(f"there are no voices in {data}")
    spoken: list[bytes] = []

    def receive(samples: int | None, count: int, _) -> int:
        if samples:
            spoken.append(ctypes.string_at(samples, 2 * count))
        return 0  # go on

    received = RECEIVES(receive)  # kept while the library may call it
    library.espeak_SetSynthCallback(received)
    library.espeak_ng_SetRandSeed(ctypes.c_long(0))
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    output.write(ENTRY.pack(rate))
    for text, voice, pitch, speed in texts:
        if library.espeak_SetVoiceByName(voice.encode()):
            raise RuntimeError(f"there is no voice {voice}")
        library.espeak_SetParameter(PITCH, pitch, 0)
        library.espeak_SetParameter(SPEED, speed, 0)
        spoken.clear()
        encoded = text.encode()
        size = ctypes.c_size_t(len(encoded) + 1)
        if library.espeak_Synth(encoded, size, 0, BY_CHARACTERS, 0, UTF8, None, None):
            raise RuntimeError(f"it does not speak {text!r}")
        rest, phonemes = ctypes.c_char_p(encoded), []
        while rest.value is not None:  # a call translates a part, up to a comma or a full stop
            phonemes.append(library.espeak_TextToPhonemes(ctypes.byref(rest), UTF8, 0) or b"")
        for part in (b" ".join(filter(None, phonemes)), b"".join(spoken)):
            output.write(ENTRY.pack(len(part)))
            output.write(part)


if __name__ == "__main__":
    speak(ctypes.CDLL(sys.argv[1]), sys.argv[2], json.load(sys.stdin), sys.stdout.buffer)
