"""Prediction of many inputs: into tables, with bad files among them, killed and resumed."""

import csv
import io
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import brokenfiles
import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from processes import start

import audio.predict
import text.predict
import vision.predict
from audio import AST, ASTConfig
from audio.decoding import read_audio
from core import EncoderConfig, UserError
from core.experiments import predict_command
from core.experiments.results import Journal, write_table
from text import TextConfig, TextEncoder
from text.tokenizer import TokenizerConfig, train_tokenizer
from vision import ViT, ViTConfig
from vision.augment import eval_transform
from vision.decoding import read_image

pytestmark = pytest.mark.usefixtures("elsewhere")
ENCODER = EncoderConfig(dim=16, depth=1, heads=2)
MODES = {"png": "RGB", "jpg": "L", "gif": "P", "webp": "RGBA", "bmp": "1", "tif": "CMYK"}


def save_vit(**changes) -> ViT:
    config = {"image_size": 8, "patch_size": 4, "classes": 3, "labels": ("a", "b", "c"), "encoder": ENCODER}
    model = ViT(ViTConfig(**config | changes)).eval()
    if model.config.classes:
        torch.nn.init.normal_(model.head.weight)
    model.save_pretrained("run")
    return model


def save_images(count, folder="images"):
    """Images of all formats and sizes, some under the name of another format."""
    draw = np.random.default_rng(0)
    paths = []
    for number in range(count):
        suffix, mode = list(MODES.items())[number % len(MODES)]
        path = Path(folder) / f"{number % 3}" / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 255, (6 + number % 5, 6 + number % 7, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).convert(mode)
        image.save(path, format="PNG" if number % 8 == 0 and suffix == "jpg" else None)
        paths.append(path)
    return paths


def predict(program, words, monkeypatch, capsys, stdin=None, status=0):
    """What is printed on standard output, and on standard error."""
    monkeypatch.setattr("sys.argv", ["predict", *map(str, words)])
    monkeypatch.setattr("sys.stdin", None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin)))
    capsys.readouterr()
    if status:
        with pytest.raises(SystemExit) as end:
            predict_command("predict", program.Arguments, program.predict)
        assert end.value.code == status
    else:
        predict_command("predict", program.Arguments, program.predict)
    return capsys.readouterr()


def table(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def expected_images(model, paths):
    transform = eval_transform(model.config.image_format)
    with torch.no_grad():
        return torch.cat([model(transform(read_image(path, "RGB"))[None]) for path in paths]).softmax(dim=-1)


def assert_right(row, probabilities, labels):
    best = probabilities.topk(len(labels))
    for end, value, number in zip(("", "_2", "_3"), best.values.tolist(), best.indices.tolist(), strict=False):
        assert row[f"label{end}"] == labels[number]
        assert float(row[f"probability{end}"]) == pytest.approx(value, abs=2e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_with_broken_ones_among_them(workers, monkeypatch, capsys):
    model, right = save_vit(), save_images(264)
    rows = [f"{path},1" for path in right]
    broken = {}
    for number in range(36):
        kind = list(brokenfiles.IMAGES)[number % 12]
        path = Path("images") / f"broken {number}.png"
        brokenfiles.IMAGES[kind][0](path)
        broken[str(path)] = kind
        rows.insert(7 * number, f"{path},1")
    Path("list.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    said = predict(
        vision.predict, ["run", "list.csv", "--out", "out.csv", "--workers", workers], monkeypatch, capsys, status=1
    )
    assert said.out == "out.csv: 264 of 300 inputs are predicted.\n"
    # torch may warn of more processes than cores.
    (sentence,) = [line for line in said.err.splitlines() if not line.startswith("warning: This DataLoader")]
    words = (
        "36 of 300 inputs could not be predicted, and the column error of out.csv says why; the first: list.csv, row 1:"
    )
    assert sentence.startswith(f"error: {words} images/broken 0.png is an empty file")
    found = table("out.csv")
    assert [row["path"] for row in found] == [row.split(",")[0] for row in rows]
    expected = dict(zip(map(str, right), expected_images(model, right), strict=True))
    for row in found:
        if row["path"] in broken:
            words = brokenfiles.IMAGES[broken[row["path"]]][1]
            assert words in row["error"] and row["label"] == row["probability"] == "", row
        else:
            assert row["error"] == ""
            assert_right(row, expected[row["path"]], "abc")
    assert not Path("out.csv.partial").exists()


def test_clips_with_broken_ones_among_them(monkeypatch, capsys):
    model = AST(ASTConfig(n_mels=16, max_frames=60, patch_size=8, stride=8, classes=2, encoder=ENCODER)).eval()
    torch.nn.init.normal_(model.head.weight)
    model.save_pretrained("run")
    Path("clips").mkdir()
    draw, right, broken = np.random.default_rng(0), [], {}
    for number in range(30):
        path = Path("clips") / f"{number:02}.wav"
        brokenfiles.wav(path, draw.normal(0, 0.1, draw.integers(500, 8000)))
        right.append(path)
    for kind, (make, _) in brokenfiles.CLIPS.items():
        make(path := Path("clips") / f"{kind}.wav")
        broken[str(path)] = kind
    listed = "\n".join(map(str, [*right[:11], *broken, *right[11:]])).encode()
    words = ["run", "--out", "out.jsonl", "--batch-size", "16", "--top", "1"]
    predict(audio.predict, words, monkeypatch, capsys, stdin=listed, status=1)
    found = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [row["path"] for row in found] == listed.decode().split("\n")
    for row in found:
        if row["path"] in broken:
            assert brokenfiles.CLIPS[broken[row["path"]]][1] in row["error"], row
        else:
            with torch.no_grad():
                probabilities = model(read_audio(Path(row["path"]), 16_000)[None])[0].softmax(dim=-1)
            assert row["label"] == str(int(probabilities.argmax())) and row["error"] is None
            assert row["probability"] == pytest.approx(float(probabilities.max()), abs=1e-5)


def save_text_model(**changes):
    tokenizer = train_tokenizer(["one two three"] * 2, TokenizerConfig())
    config = {"vocab_size": tokenizer.size, "max_length": 8, "classes": 2, "labels": ("a", "b"), "encoder": ENCODER}
    model = TextEncoder(TextConfig(**config | changes)).eval()
    model.save_pretrained("run")
    tokenizer.save(Path("run/tokenizer.json"))
    return model, tokenizer


def test_texts_with_bad_ones_among_them(monkeypatch, capsys):
    model, tokenizer = save_text_model()
    texts = ["one two", "", "three", "one " * 9, 'two, "one"', "\u200f", "one three two"]
    predict(text.predict, ["run", "--out", "out.csv"], monkeypatch, capsys, stdin="\n".join(texts).encode(), status=1)
    found = table("out.csv")
    assert [row["text"] for row in found] == texts
    assert [row["error"] for row in found] == [
        "",
        "Text 2 is empty.",
        "",
        "Text 4 has 11 tokens, but the model takes 8: shorten it, or choose --overlong truncate.",
        "",
        "Text 6: the tokenizer returns no tokens for it.",
        "",
    ]
    for row in found[::2]:
        with torch.no_grad():
            ids = torch.tensor([tokenizer.frame(tokenizer.encode([row["text"]])[0])])
        assert_right(row, model(ids)[0].detach().softmax(dim=-1), "ab")
    Path("texts").mkdir()
    for number, content in enumerate(texts):
        Path(f"texts/{number}.txt").write_text(content)
    Path("list.jsonl").write_text("\n".join(json.dumps({"Words": content}) for content in texts if content))
    words = ["run", "texts/", "list.jsonl", "--columns", "words", "--out", "more.csv"]
    predict(text.predict, words, monkeypatch, capsys, status=1)
    more = table("more.csv")
    assert [row["path"] for row in more] == [f"texts/{number}.txt" for number in range(7)] + [""] * 6
    assert [row["label"] for row in more[:7]] == [row["label"] for row in found]
    assert [row["probability"][:6] for row in more[7:]] == [row["probability"][:6] for row in found if row["text"]]
    assert more[8]["error"] == "" and more[9]["error"].startswith("list.jsonl, row 3 has 11 tokens")


def test_tables_of_all_formats_have_the_same_rows(monkeypatch, capsys):
    save_vit(classes=0, labels=())
    save_images(20)
    Path("images/odd.png").write_text("")
    for suffix in ("csv", "jsonl", "parquet"):
        predict(vision.predict, ["run", "images", "--out", f"out.{suffix}"], monkeypatch, capsys, status=1)
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    rows = [
        row | {"vector": json.loads(row["vector"] or "null"), "error": row["error"] or None} for row in table("out.csv")
    ]
    assert rows == lines and len(lines) == 21 and len(lines[0]["vector"]) == 16
    parquet = pyarrow.parquet.read_table("out.parquet").to_pylist()
    for row, line in zip(parquet, lines, strict=True):
        assert row["path"] == line["path"] and row["error"] == line["error"]
        assert (row["vector"] is None) == (line["vector"] is None)
        np.testing.assert_allclose(row["vector"] or (), line["vector"] or (), rtol=1e-6)
    sentence = predict(vision.predict, ["run", "images", "--out", "out.csv"], monkeypatch, capsys, status=1).err
    assert sentence == "error: --out out.csv is there already: name another file, or remove it.\n"


def test_names_and_values_that_tables_must_escape():
    rows = [
        {"name": 'a,"b"\n\udcff', "number": 1e-7, "json": [{"ü": None}]},
        {"name": "", "number": None, "json": None},
    ]
    columns = {"name": "text", "number": "number", "json": "json"}
    for suffix in ("csv", "jsonl", "parquet"):
        write_table(Path(f"t.{suffix}"), columns, rows)
    first, second = table("t.csv")
    assert first == {"name": 'a,"b"\n\\udcff', "number": "1e-07", "json": '[{"ü": null}]'}
    assert second == {"name": "", "number": "", "json": ""}
    assert json.loads(Path("t.jsonl").read_text().splitlines()[0])["json"] == rows[0]["json"]
    assert pyarrow.parquet.read_table("t.parquet").to_pylist()[0] == first | {"number": 1e-7}


def test_a_killed_call_goes_on_and_ends_the_same():
    """By SIGKILL in the middle of rows, and by Ctrl-C; the loading processes of the call change nothing."""
    save_vit()
    save_images(300)
    Path("images/0/a broken one.png").write_text("text")
    words = ["run", "images", "--batch-size", "4", "--quiet", "--device", "cpu", "--out"]

    def predicts(out, *more):
        return start("vision.predict", [*words, out, *more])

    whole = predicts("whole.csv")
    whole.join()
    assert whole.exitcode == 1
    partial, ended = Path("killed.csv.partial"), []

    def lines():
        return partial.read_bytes().count(b"\n") if partial.exists() else 0

    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        before = lines()
        process = predicts("killed.csv", "--workers", "2" if number == signal.SIGKILL else "0")
        while lines() < max(before, 1) + 5 and process.is_alive():
            time.sleep(0.001)
        os.kill(process.pid, number)
        process.join()
        ended.append(process.exitcode)
        assert lines() >= before + 5 and not Path("killed.csv").exists()
    assert ended == [-9, 130, -9, 130, -9]
    with partial.open("ab") as file:
        file.write(b'[{"path": "half a line')
    process = predicts("killed.csv")
    process.join()
    assert process.exitcode == 1 and not partial.exists()
    assert Path("killed.csv").read_bytes() == Path("whole.csv").read_bytes()


def test_only_the_same_call_goes_on(monkeypatch, capsys):
    model = save_vit()
    save_images(6)
    words = ["run", "images", "--batch-size", "2", "--out", "out.csv"]
    add, added = Journal.add, []

    def stopping(self, rows):
        if added:
            raise KeyboardInterrupt
        add(self, rows)
        added.append(rows)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", stopping)
        predict(vision.predict, words, monkeypatch, capsys, status=130)
    before = Path("out.csv.partial").read_bytes()

    def refused(*more, inputs="images"):
        said = predict(vision.predict, ["run", inputs, *words[2:], *more], monkeypatch, capsys, status=1).err
        assert Path("out.csv.partial").read_bytes() == before
        return said

    assert "out.csv.partial is what another call left, with other --top: repeat that call" in refused("--top", "1")
    assert "with other inputs:" in refused(inputs="images/0")
    with torch.no_grad():
        model.head.bias.add_(1)
    model.save_pretrained("run")
    assert "with other weights:" in refused()
    with torch.no_grad():
        model.head.bias.sub_(1)
    model.save_pretrained("run")
    assert "6 of 6 inputs are predicted" in predict(vision.predict, words, monkeypatch, capsys).out


def test_two_processes_do_not_write_one_table():
    def enter():
        try:
            Journal(Path("out.csv"), {}).__enter__()
        except UserError as error:
            os._exit(3 if "Another process writes out.csv" in str(error) else 1)

    with Journal(Path("out.csv"), {}):
        other = multiprocessing.get_context("fork").Process(target=enter)
        other.start()
        other.join()
        assert other.exitcode == 3
    assert not Path("out.csv.partial").exists()


def test_plots_of_a_call_that_goes_on_have_the_names_of_the_first(monkeypatch, capsys):
    save_vit()
    save_images(4)
    words = ["run", "images", "--batch-size", "2", "--out", "out.csv", "--plots", "plots"]
    add = Journal.add

    def failing(self, rows):
        if self.batches:
            raise KeyboardInterrupt
        add(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", failing)  # when its plots are drawn already
        predict(vision.predict, words, monkeypatch, capsys, status=130)
    assert len(list(Path("plots").iterdir())) == 4
    predict(vision.predict, words, monkeypatch, capsys)
    assert sorted(path.name for path in Path("plots").iterdir()) == ["0.png", "1.png", "2.png", "3.png"]
