"""Mistakes in the training command: each gets one sentence, and leaves nothing behind."""

from pathlib import Path

import pytest
from mistakes import Mistake, check_mistake
from small_runs import TEXTS

from text.train import TEXT

pytestmark = pytest.mark.usefixtures("elsewhere")


MANIFEST = ["manifest", "--data.path", "list.csv", *TEXTS]
TWO_CLASSES = "text,label\na,x\nb,x\nc,x\nd,y\ne,y\nf,y\n"  # as few texts as three splits need

MISTAKES = {
    "no_path": Mistake(["lines"], "The lines data need --data.path"),
    "no_dataset_name": Mistake(["huggingface"], "need --data.dataset"),
    "no_file": Mistake(["lines", "--data.path", "nowhere.txt"], "There is no text file nowhere.txt"),
    "one_line": Mistake(["lines", "--data.path", "a.txt"], "fewer than three lines", {"a.txt": "hello\n\n"}),
    "text_that_does_not_decode": Mistake(
        MANIFEST,
        "list.csv is not utf-8 text \\(byte 14\\)",
        {"list.csv": b"text,label\ncaf\xe9,a\n"},
    ),
    "lines_that_do_not_decode": Mistake(
        ["lines", "--data.path", "a.txt"], "a.txt is not utf-8 text \\(byte 5\\)", {"a.txt": b"fine\n\xff\xfe\n"}
    ),
    "encoding": Mistake(
        [*MANIFEST, "--data.encoding", "utf-9"],
        "'utf-9' is not an encoding",
        {"list.csv": "text,label\na,b\n"},
    ),
    "missing_field": Mistake(
        MANIFEST,
        "list.csv, row 2 has no 'label'",
        {"list.csv": "text,label\nsome words,a\nother words,\n"},
    ),
    "missing_field_in_json": Mistake(
        ["manifest", "--data.path", "list.jsonl", *TEXTS],
        "row 2 has no",
        {"list.jsonl": '{"text": "some words", "label": 1}\n{"text": "b", "label": null}\n'},
    ),
    "empty_text": Mistake(
        MANIFEST,
        "list.csv, row 2 has no 'text'",
        {"list.csv": "text,label\nsome words,a\n,b\n"},
    ),
    "blank_text": Mistake(
        MANIFEST,
        "list.csv, row 2: the text is empty",
        {"list.csv": 'text,label\nsome words,a\n"  ",b\nwords,a\nwords,b\n'},
    ),
    "unquoted_comma": Mistake(
        MANIFEST,
        "row 2 has more fields than the header",
        {"list.csv": "text,label\nsome words,a\nother, words,b\n"},
    ),
    "column": Mistake(
        MANIFEST,
        "no column 'text'; its columns are: sentence, label",
        {"list.csv": "sentence,label\na,b\n"},
    ),
    "split": Mistake(
        MANIFEST,
        "row 2: split is 'later', but must be",
        {"list.csv": "text,label,split\na,x,train\nb,y,later\n"},
    ),
    "unlearnt_label": Mistake(
        MANIFEST,
        "label 'z' is only in the test split",
        {"list.csv": "text,label,split\na,x,train\nb,y,train\nc,z,test\n"},
    ),
    "one_class": Mistake(
        MANIFEST,
        "has 1 class: at least two are needed",
        {"list.csv": "text,label\na,x\nb,x\n"},
    ),
    "single_text_of_a_class": Mistake(
        MANIFEST,
        "Class 'y' has a single sample",
        {"list.csv": "text,label\na,x\nb,x\nc,y\n"},
    ),
    "not_a_number": Mistake(
        [*MANIFEST, "--data.target", "number"],
        "row 2: the label 'two' is not a number",
        {"list.csv": "text,label\na,1\nb,two\n"},
    ),
    "infinite_number": Mistake(
        [*MANIFEST, "--data.target", "number"],
        "row 2: the label 'nan' is not a number",
        {"list.csv": "text,label\na,1\nb,nan\n"},
    ),
    "too_long": Mistake(
        [*MANIFEST, "--data.overlong", "error"],
        "42 tokens, but the model takes 24",
        {"list.csv": "text,label\n" + "".join(f"{n} {'word ' * 39},{'xy'[n % 2]}\n" for n in range(6))},
    ),
    "tokenizer": Mistake(
        [*MANIFEST, "--data.tokenizer.path", "tokenizer.json"],
        "tokenizer.json is not a tokenizer.json",
        {"tokenizer.json": "{}", "list.csv": TWO_CLASSES},
    ),
    "no_tokenizer": Mistake(
        [*MANIFEST, "--data.tokenizer.path", "."],
        "There is no tokenizer tokenizer.json",
        {"list.csv": TWO_CLASSES},
    ),
    "init_nowhere": Mistake(["docstrings", "--init", "nowhere"], "nowhere holds no trained model"),
    "init_and_tokenizer": Mistake(
        ["docstrings", "--init", "a", "--data.tokenizer.path", "b"], "--init brings its own tokenizer"
    ),
    "init_and_vocabulary": Mistake(
        ["docstrings", "--init", "a", "--data.tokenizer.vocab-size", "100"], "leave out --data.tokenizer.vocab-size."
    ),
    "two_tokenizers": Mistake(
        ["docstrings", "--data.tokenizer.path", "b", "--data.tokenizer.no-lowercase"],
        "--data.tokenizer.path brings its own tokenizer: leave out --data.tokenizer.lowercase.",
    ),
    "tokenizer_of_the_teacher": Mistake(
        ["adapt", "--data.path", "a", "--distill.teacher", "b", "--data.tokenizer.kind", "bpe"],
        "--distill.teacher brings its own tokenizer: leave out --data.tokenizer.kind.",
    ),
    "heads": Mistake(
        [*MANIFEST, "--model.heads", "3"],
        "16 is not divisible by 3 heads",
        {"list.csv": TWO_CLASSES},
    ),
    "experiment": Mistake(["manual"], "no experiment 'manual': did you mean 'manuals'"),
}


def mistake_no_text_files():
    Path("empty").mkdir()
    return ["lines", "--data.path", "empty"], "empty holds no .txt files"


def mistake_init_without_a_model():
    Path("empty").mkdir()
    return ["docstrings", "--init", "empty"], "empty holds no trained model"


def mistake_init_of_pictures():
    Path("digits").mkdir()
    Path("digits/config.json").write_text('{"modality": "vision", "experiment": "digits"}')
    return ["docstrings", "--init", "digits"], "digits is a run of vision: name one of text"


def mistake_init_of_a_picture_model():
    Path("vit").mkdir()
    Path("vit/config.json").write_text('{"image_size": 8}')
    Path("vit/model.safetensors").write_bytes(b"")
    return ["docstrings", "--init", "vit"], "vit holds no trained model"


PREPARED = {
    name.removeprefix("mistake_"): value for name, value in list(globals().items()) if name.startswith("mistake_")
}
FOUND_WHILE_TRAINING = ()


@pytest.mark.parametrize("name", [*MISTAKES, *PREPARED])
def test_a_mistake_gets_one_sentence(name, capsys):
    mistake = MISTAKES[name] if name in MISTAKES else Mistake(*PREPARED[name]())
    check_mistake(TEXT, mistake, capsys, while_training=name in FOUND_WHILE_TRAINING)
