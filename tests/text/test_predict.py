"""Predictions equal those of transformers' pipelines; odd texts and damaged models get one sentence or an answer."""

import io
import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from text_peers import CLASSIC, make_peer
from text_tokenizers import MAKERS

from core import EncoderConfig, UserError
from core.experiments import predict_command
from core.experiments.inputs import Input
from text import TextConfig, TextEncoder, from_hf
from text.inputs import contents_of
from text.plots import draw_words, word_attention
from text.predict import Arguments, predict
from text.pretrained import load_pretrained
from text.tokenizer import TokenizerConfig, train_tokenizer

TEXTS = ("abc def ghi", "one 日本語 two", "x" * 150 + " y", "a <pad> b [PAD] c", "[MASK] a <mask> b </s> [SEP] c")
PROBLEMS = {
    "several labels": ("multi_label_classification", 3),
    "one label of its own": ("multi_label_classification", 1),
    "one of three": ("single_label_classification", 3),
    "one of two, unsaid": (None, 2),
    "a number": ("regression", 1),
}


pytestmark = pytest.mark.usefixtures("elsewhere")


def save_stock(folder, family, kind, **changes):
    tokenizer = MAKERS[family]()
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": 400}
    make_peer(family, kind, **sizes, **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_ours(folder, **changes):
    tokenizer = train_tokenizer(["one two three"] * 2, TokenizerConfig())
    encoder = EncoderConfig(dim=8, depth=1, heads=1)
    torch.manual_seed(0)
    model = TextEncoder(TextConfig(**{"vocab_size": tokenizer.size, "max_length": 8, "encoder": encoder} | changes))
    model.save_pretrained(folder)
    tokenizer.save(Path(folder) / "tokenizer.json")
    return model


def predicted(capsys, monkeypatch, *argv, stdin=b""):
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["predict", *map(str, argv)])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    predict_command("predict", Arguments, predict)
    return capsys.readouterr().out.removesuffix("\n").split("\n")


def refused(capsys, monkeypatch, *argv, stdin=b""):
    """The one sentence."""
    with pytest.raises(SystemExit) as end:
        predicted(capsys, monkeypatch, *argv, stdin=stdin)
    said = capsys.readouterr()
    assert end.value.code == 1 and said.err.startswith("error: ") and said.err.count("\n") == 1
    assert not said.out or ": error: " in said.out
    return said.err


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("family", CLASSIC)
def test_scores_equal_the_pipelines(family, problem, capsys, monkeypatch):
    kind, count = PROBLEMS[problem]
    names = {number: f"class {number}" for number in range(count)}
    save_stock("stock", family, "ForSequenceClassification", problem_type=kind, num_labels=count, id2label=names)
    pipeline = transformers.pipeline("text-classification", model="stock", device="cpu", top_k=None)
    model, tokenizer = load_pretrained("stock")
    assert model.config.predicts_number == (problem == "a number")
    assert model.config.multilabel == (kind == "multi_label_classification")
    for text, expected in zip(TEXTS, pipeline(list(TEXTS), batch_size=1), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer.frame(tokenizer.encode([text])[0])]))[0]
        found = logits if model.config.predicts_number else model.probabilities(logits)
        scores = {score["label"]: score["score"] for score in expected}
        for number, name in names.items():
            assert abs(float(found[number]) - scores[name]) <= 1e-5
    if family == "Bert":
        best = pipeline(TEXTS[0])
        best = best[0] if isinstance(best[0], dict) else best[0][0]
        shown = f"{best['score']:.4g}" if problem == "a number" else f"{best['label']} {best['score']:.1%}"
        assert f": {shown}" in predicted(capsys, monkeypatch, "stock", TEXTS[0])[0]


def test_a_classifier_of_one_output_predicts_a_number(capsys, monkeypatch):
    """By the rule that transformers' models are trained by, where the config says nothing."""
    save_stock("stock", "Bert", "ForSequenceClassification", num_labels=1)
    assert load_pretrained("stock")[0].config.predicts_number


def test_what_no_head_here_predicts_is_said():
    save_stock("stock", "Bert", "ForSequenceClassification", num_labels=2, problem_type="regression")
    with pytest.raises(UserError, match="does not support a regression of 2 numbers"):
        load_pretrained("stock")


@pytest.mark.parametrize("family", CLASSIC)
def test_masked_words_equal_the_pipelines(family, capsys, monkeypatch):
    save_stock("stock", family, "ForMaskedLM")
    pipeline = transformers.pipeline("fill-mask", model="stock", device="cpu", top_k=3)
    for text in ("abc [MASK] def", "Das ist[MASK]."):
        expected = pipeline(text.replace("[MASK]", pipeline.tokenizer.mask_token))
        shown = ", ".join(f"{guess['token_str'].strip()} {guess['score']:.1%}" for guess in expected)
        assert predicted(capsys, monkeypatch, "stock", text)[0] == f"{text}: {shown}"


def test_more_words_or_classes_than_there_are(capsys, monkeypatch):
    save_ours("words", head="tokens")
    save_ours("classes")
    size = load_pretrained("words")[0].config.vocab_size
    assert predicted(capsys, monkeypatch, "words", "one [MASK]", "--top", size)[0].count("%") == size
    assert predicted(capsys, monkeypatch, "words", "one [MASK]")[0].count("%") == 3
    assert predicted(capsys, monkeypatch, "classes", "one")[0].count("%") == 2
    assert f"more than the {size} tokens" in refused(capsys, monkeypatch, "words", "one [MASK]", "--top", size + 1)
    assert "more than the 2 classes" in refused(capsys, monkeypatch, "classes", "one", "--top", 3)


def test_lines_end_as_in_files(capsys, monkeypatch):
    save_ours("run")
    text = "one\u2028two\x85three\x0bone\x0ctwo\x1cthree\x1done\x1etwo\rthree"
    embed = ("run", "--embed", "--overlong", "truncate")
    lines = predicted(capsys, monkeypatch, *embed, stdin=f"\ufeff{text}\r\ntwo\nthree".encode())
    assert [json.loads(line)["text"] for line in lines] == [text, "two", "three"]
    Path("text.txt").write_bytes(f"\ufeff{text}\r\n".encode())
    line = json.loads(predicted(capsys, monkeypatch, *embed, "text.txt")[0])
    assert line["path"] == "text.txt" and len(line["vector"]) == 8
    assert contents_of(Input({}, (Path("text.txt"),), "", "", Path())) == (text.replace("\r", "\n") + "\n",)


@pytest.mark.parametrize("text", ["a\udcff", "\ud800", "one \udfff two"])
def test_half_a_surrogate_pair(text, capsys, monkeypatch):
    save_ours("run")
    assert "Text 2 is not valid Unicode text" in refused(capsys, monkeypatch, "run", "one", text)


@pytest.mark.parametrize("text", ["\u200f", "\x00", "\u200d\u200d", "\ue000", "\ufeff\u00ad"])
def test_a_text_of_nothing_that_counts(text, capsys, monkeypatch):
    save_ours("run")
    assert "Text 1: the tokenizer returns no tokens for it" in refused(capsys, monkeypatch, "run", text)


@pytest.mark.parametrize(
    "text", ["\u0301\u0302", "👩‍👩‍👧 🇩🇪", "\u202eone\u200f", "one \x00 two", "$x^ $ <b>&amp;", "日本語"]
)
@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_odd_texts_are_read_and_drawn(text, kind, capfd, monkeypatch):
    save_ours("run", vocab_size=300, labels=("$a_b$", "<i>"))
    texts = [text, "one two three \x00 日本語 👩‍👩‍👧"] * 2
    train_tokenizer(texts, TokenizerConfig(kind=kind, vocab_size=300)).save(Path("run/tokenizer.json"))
    monkeypatch.setattr("sys.argv", ["predict", "run", text, "--overlong", "truncate", "--plots", "plots"])
    predict_command("predict", Arguments, predict)
    said = capfd.readouterr()
    assert "$a_b$" in said.out and "<i>" in said.out and said.err == ""
    assert len(list(Path("plots").iterdir())) == 1


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_a_text_of_many_letters(kind, capsys, monkeypatch):
    save_ours("run", vocab_size=300)
    tokenizer = train_tokenizer(["one two three"] * 2, TokenizerConfig(kind=kind, vocab_size=300))
    tokenizer.save(Path("run/tokenizer.json"))
    for text in ("one " * 20_000, "o" * 5_000):
        Path("long.txt").write_text(text)
        assert "tokens, but the model takes 8" in refused(capsys, monkeypatch, "run", "long.txt")
        assert "%" in predicted(capsys, monkeypatch, "run", "long.txt", "--overlong", "truncate")[0]


def test_pictures_of_very_long_texts_and_words():
    for words in ([("w" * 40, 0.5)] * 2_000, [("x" * 5_000, 1.0)], [("x", 0.0)]):
        fig = draw_words(words, "title")
        assert fig.get_size_inches()[1] * 150 < 2**16
        drawn = [text.get_text() for text in fig.axes[0].texts]
        assert max(map(len, drawn)) <= 100
    assert "".join(drawn) == "x"


def test_attention_of_a_text_cut_at_its_beginning():
    save_stock("stock", "Bert", "ForSequenceClassification")
    model, tokenizer = load_pretrained("stock")
    tokenizer.cuts_left = True
    short = TextEncoder(model.config).eval()
    object.__setattr__(short.config, "max_length", 6)
    words = word_attention(short, tokenizer, "a b c d e f g h")
    assert [word for word, _ in words] == ["e", "f", "g", "h"]


FILES = {
    "pipe.txt": (os.mkfifo, "pipe.txt is a pipe, socket or device, not a text file"),
    "folder.txt": (os.mkdir, "folder.txt is a directory, not a text file"),
    "zero.txt": (lambda path: os.symlink("/dev/zero", path), "zero.txt is a pipe, socket or device"),
    "bytes.txt": (lambda path: Path(path).write_bytes(b"ab\xff"), "bytes.txt is not utf-8 text (byte 2)"),
    "empty.txt": (lambda path: Path(path).touch(), "empty.txt is empty"),
    "dangling.txt": (lambda path: os.symlink("nowhere", path), "There is no text file dangling.txt"),
    "x" * 300 + ".txt": (lambda path: None, "The text file xxx"),
}


@pytest.mark.parametrize("name", FILES, ids=lambda name: name[:12])
def test_files_that_are_no_texts(name, capsys, monkeypatch):
    save_ours("run")
    make, words = FILES[name]
    make(name)
    assert words in refused(capsys, monkeypatch, "run", name)


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/here", "/dev/null", "x" * 300])
def test_places_that_hold_no_pictures(out, capsys, monkeypatch):
    save_ours("run")
    Path("file").touch()
    assert out in refused(capsys, monkeypatch, "run", "one", "--plots", out)


def test_a_folder_whose_name_is_no_text(capsys, monkeypatch):
    save_ours("run")
    assert "%" in predicted(capsys, monkeypatch, "run", "one", "--plots", "a\udcff")[0]
    assert list(Path("a\udcff").glob("*.png"))


@pytest.mark.parametrize(
    "value, words",
    [
        (3e38, "predicts values that are not finite numbers"),
        (float("nan"), "NaN or infinity in the checkpoint"),
        (float("inf"), "NaN or infinity in the checkpoint"),
    ],
)
@pytest.mark.parametrize("head, argv", [("classes", ["one"]), ("tokens", ["[MASK]"]), ("none", ["one", "--embed"])])
def test_what_is_not_finite_is_refused(head, argv, value, words, capsys, monkeypatch):
    save_ours("run", head=head)
    state = load_file("run/model.safetensors")
    state["encoder.blocks.0.mlp.up.bias"][:] = value
    save_file(state, "run/model.safetensors")
    assert words in refused(capsys, monkeypatch, "run", *argv)


def test_labels_that_do_not_fit_the_classes():
    with pytest.raises(UserError, match="2 labels for 3 classes: name all or none"):
        TextConfig(classes=3, labels=("a", "b"))
    save_stock("stock", "Bert", "ForSequenceClassification", num_labels=3)
    config = json.loads(Path("stock/config.json").read_text())
    Path("stock/config.json").write_text(json.dumps({**config, "id2label": {"0": "a", "1": "b"}}))
    with pytest.raises(UserError, match=r"The model in stock cannot be loaded: .*\(3, 64\).*\(2, 64\)"):
        load_pretrained("stock")
    Path("stock/config.json").write_text(json.dumps({**config, "id2label": {"0": "a", "2": "b", "5": "c"}}))
    assert load_pretrained("stock")[0].config.labels == ()


def test_a_vocabulary_of_another_size(capsys, monkeypatch):
    tokenizer = MAKERS["Bert"]()
    for more, words in (
        (40, None),
        (-1, f"the tokenizer has {len(tokenizer)} tokens, but the model {len(tokenizer) - 1}"),
    ):
        make_peer("Bert", "ForMaskedLM", vocab_size=len(tokenizer) + more).save_pretrained("stock")
        tokenizer.save_pretrained("stock")
        if words is None:
            assert (
                predicted(capsys, monkeypatch, "stock", "a [MASK]", "--top", len(tokenizer) + more)[0].count("#15") > 30
            )
        else:
            assert words in refused(capsys, monkeypatch, "stock", "a [MASK]")


def test_a_frame_that_the_model_has_no_vectors_for(capsys, monkeypatch):
    save_ours("run")
    content = json.loads(Path("run/tokenizer.json").read_text())
    content["post_processor"]["special_tokens"]["[SEP]"]["ids"] = [99]
    Path("run/tokenizer.json").write_text(json.dumps(content))
    assert "the tokenizer has 100 tokens, but the model 22" in refused(capsys, monkeypatch, "run", "one")


@pytest.mark.parametrize("longest", [1, 2, 3])
def test_models_of_hardly_any_tokens(longest, capsys, monkeypatch):
    tokenizer = MAKERS["Bert"]()
    make_peer("Bert", "ForMaskedLM", vocab_size=len(tokenizer), max_position_embeddings=longest).save_pretrained(
        "stock"
    )
    tokenizer.save_pretrained("stock")
    if longest == 3:
        assert "%" in predicted(capsys, monkeypatch, "stock", "[MASK]")[0]
    else:
        assert "max_length must be at least 3" in refused(capsys, monkeypatch, "stock", "[MASK]")


def test_robertas_positions_begin_behind_its_padding():
    """With padding token 3, a table of 40 holds 36 positions; rinna's Japanese RoBERTa is such a one."""
    peer = make_peer("Roberta", "Model", pad_token_id=3)
    peer.save_pretrained("stock")
    model = from_hf("stock")
    assert model.config.max_length == 36
    ids = torch.randint(5, 90, (2, 36))
    ids[:, 4] = ids[1, 9] = 3  # padding inside the text takes no position
    with torch.no_grad():
        expected = peer(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        torch.testing.assert_close(model.encode(ids).x, expected, rtol=0, atol=1e-4)
    model.save_pretrained("ours")
    torch.testing.assert_close(TextEncoder.from_pretrained("ours").encode(ids).x, model.encode(ids).x, rtol=0, atol=0)


def test_no_mask_token_no_masked_words(capsys, monkeypatch):
    save_ours("run", head="tokens")
    content = json.loads(Path("run/tokenizer.json").read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "[MASK]"]
    content["model"]["vocab"]["[MUSK]"] = content["model"]["vocab"].pop("[MASK]")
    Path("run/tokenizer.json").write_text(json.dumps(content))
    assert "its tokenizer has no mask token, so it can only --embed" in refused(
        capsys, monkeypatch, "run", "one [MASK]"
    )
    assert predicted(capsys, monkeypatch, "run", "one", "--embed")
