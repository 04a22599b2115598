"""Mistakes in the training command: each gets one sentence, and leaves nothing behind."""

import os
import struct

import numpy as np
import pytest
import soundfile
from mistakes import Mistake, check_mistake
from small_runs import CLIPS

from audio.train import AUDIO

pytestmark = pytest.mark.usefixtures("elsewhere")


MISTAKES = {
    "no_path": Mistake(["folder"], "need --data.path"),
    "seconds": Mistake(
        ["folder", "--data.path", "folder", "--data.seconds", "0"], "--data.seconds must be more than 0"
    ),
    "seconds_below_a_frame": Mistake(
        ["folder", "--data.path", "folder", "--data.seconds", "0.02"],
        "--data.seconds 0.02 is shorter than a frame \\(--model.features.frame-length\\), which takes 0.032 s",
    ),
    "silent_bins": Mistake(
        ["folder", "--data.path", "folder", "--model.n-mels", "128"],
        "Of 128 mel bins some .* silent \\(3\\).* set --model.n-mels to at most 116, or a longer",
    ),
    "masked_bins": Mistake(
        ["folder", "--data.path", "folder", "--model.freq-mask", "97"],
        "--model.freq-mask must be at most n_mels, which is 96, not 97",
    ),
    "masked_frames": Mistake(
        ["folder", "--data.path", "folder", "--model.max-frames", "60"],
        "--model.time-mask must be at most max_frames, which is 60, not 96",
    ),
    "shift": Mistake(
        ["folder", "--data.path", "folder", "--model.features.frame-shift", "30"],
        "--model.features.frame-shift must be at most frame_length, which is 25 ms, not 30",
    ),
    "frequencies": Mistake(
        ["folder", "--data.path", "folder", "--model.features.f-max", "10"],
        "--model.features.f-min must be less than f_max, which is 10, not 20",
    ),
    "top_frequency": Mistake(
        ["folder", "--data.path", "folder", "--model.sample-rate", "8000", "--model.features.f-max", "5000"],
        "Filters from 20 to 5000 Hz at a sample rate of 8000 Hz",
    ),
    "gain": Mistake(
        ["folder", "--data.path", "folder", "--data.augment.gain", "101"], "--data.augment.gain must be at most 100"
    ),
    "mixup": Mistake(
        ["folder", "--data.path", "folder", "--data.augment.mixup", "1e-50"],
        "--data.augment.mixup must be 0 or at least 0.001, not 1e-50",
    ),
    "manifest_row": Mistake(
        ["manifest", "--data.path", "list.csv"],
        "list.csv, row 2 has no 'label'",
        {"list.csv": "path,label\nfolder/low/0.wav,low\nfolder/low/1.wav,\n"},
    ),
    "manifest_file": Mistake(
        ["manifest", "--data.path", "list.csv"],
        "row 2: there is no file folder/low/99.wav",
        {"list.csv": "path,label\nfolder/low/0.wav,low\nfolder/low/99.wav,high\n"},
    ),
    "manifest_unlearnt": Mistake(
        ["manifest", "--data.path", "list.csv"],
        "label 'high' is only in the test split",
        {"list.csv": "path,label,split\nfolder/low/0.wav,low,train\nfolder/high/0.wav,high,test\n"},
    ),
    "a_list_of_labels": Mistake(
        ["manifest", "--data.path", "list.jsonl"],
        "list.jsonl, row 1: 'label' is a list",
        {"list.jsonl": '{"path": "folder/low/0.wav", "label": ["low", "x"]}\n'},
    ),
    "a_clip_in_both_parts": Mistake(
        ["manifest", "--data.path", "list.csv"],
        "row 1 .* and list.csv, row 3 .* are the same file, once to train",
        {
            "list.csv": f"""path,label,split\n{
                '''folder/low/0.wav,low,train
folder/high/0.wav,high,train
folder/../folder/low/0.wav,low,test
'''
            }"""
        },
    ),
    "labels_on_rows_of_their_own": Mistake(
        ["manifest", "--data.path", "list.csv", "--data.multilabel"],
        "are the same file under different labels",
        {
            "list.csv": f"""path,label\n{
                "".join(
                    f'''folder/low/{n}.wav,low
folder/low/{n}.wav,x
'''
                    for n in range(4)
                )
            }"""
        },
    ),
    "multilabel_unlearnt": Mistake(
        ["manifest", "--data.path", "list.csv", "--data.multilabel"],
        "label 'high' is only in the test split",
        {"list.csv": "path,label,split\nfolder/low/0.wav,low;x,train\nfolder/high/0.wav,high;x,test\n"},
    ),
    "multilabel_row": Mistake(
        ["manifest", "--data.path", "list.csv", "--data.multilabel"],
        "list.csv, row 2 has no 'path'",
        {"list.csv": "path,label\nfolder/low/0.wav,low;x\n,low\n"},
    ),
    "patches": Mistake(
        ["folder", "--data.path", "folder", *CLIPS, "--model.patch-size", "32"], "24 mel bins cannot be cut"
    ),
    "fold": Mistake(["esc50", "--data.path", "folder"], "meta/esc50.csv"),
    "experiment": Mistake(["dtfm"], "no experiment 'dtfm': did you mean 'dtmf'"),
}


def everywhere(clips, change):
    """The same mistake in each file of a class, so that training comes upon it early."""
    for path in (clips / "low").iterdir():
        change(path)
    return ["folder", "--data.path", clips, *CLIPS]


def header_rate(path, rate):
    content = bytearray(path.read_bytes())
    content[24:28] = struct.pack("<I", rate)
    path.write_bytes(content)


def mistake_empty_class(clips):
    (clips / "middle").mkdir()
    return ["folder", "--data.path", clips], "middle is a class without files"


def mistake_empty_file(clips):
    return everywhere(clips, lambda path: path.write_bytes(b"")), r"low/\d.wav is an empty file"


def mistake_not_sound(clips):
    return everywhere(clips, lambda path: path.write_text("hello" * 50)), r"low/\d.wav is not an audio file .*: Format"


def mistake_truncated(clips):
    return everywhere(clips, lambda path: path.write_bytes(path.read_bytes()[:3000])), r"low/\d.wav is cut short"


def mistake_truncated_in_a_worker(clips):
    for number in range(1, 10):  # all but the first, which is heard before training
        path = clips / "low" / f"{number}.wav"
        path.write_bytes(path.read_bytes()[:3000])
    return ["folder", "--data.path", clips, *CLIPS, "--train.workers", "1"], r"low/\d.wav is cut short"


def mistake_no_samples(clips):
    return everywhere(clips, lambda path: soundfile.write(path, np.zeros(0), 16_000)), r"low/\d.wav has no samples"


def mistake_silent_class(clips):
    argv = everywhere(clips, lambda path: soundfile.write(path, np.zeros(4000), 16_000))
    return argv, "Every training clip of class 'low' is silent"


def mistake_nan(clips):
    noise = np.full(4000, np.nan, dtype="float32")
    argv = everywhere(clips, lambda path: soundfile.write(path, noise, 16_000, subtype="FLOAT"))
    return argv, r"low/\d.wav holds samples that are not numbers"


def mistake_rate_of_zero(clips):
    return everywhere(clips, lambda path: header_rate(path, 0)), r"low/\d.wav is not an audio file that can be read"


def mistake_absurd_rate(clips):
    argv = everywhere(clips, lambda path: header_rate(path, 2**31 - 1))
    return argv, r"low/\d.wav has a broken header: it states 2,147,483,647 samples a second"


def mistake_too_long(clips):
    argv = everywhere(clips, lambda path: soundfile.write(path, np.random.rand(16_000), 16_000))
    return argv, r"low/\d.wav: a clip of 1.00 s .* --data.seconds to train"


def mistake_pipes(clips):
    def change(path):
        path.unlink()
        os.mkfifo(path)

    return everywhere(clips, change), r"low/\d.wav is a pipe, socket or device"


def mistake_pipe(clips):
    os.mkfifo(clips / "low" / "10.wav")
    return ["folder", "--data.path", clips], r"low/10.wav is a pipe, socket or device"


PREPARED = {
    name.removeprefix("mistake_"): value for name, value in list(globals().items()) if name.startswith("mistake_")
}
FOUND_WHILE_TRAINING = ("truncated_in_a_worker", "too_long")


@pytest.mark.parametrize("name", [*MISTAKES, *PREPARED])
def test_a_mistake_gets_one_sentence(name, clips, capsys):
    mistake = MISTAKES[name] if name in MISTAKES else Mistake(*PREPARED[name](clips))
    check_mistake(AUDIO, mistake, capsys, while_training=name in FOUND_WHILE_TRAINING)
