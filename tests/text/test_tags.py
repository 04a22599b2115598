"""Tags of words: files, alignment with pieces, the F1 of entities, and a run from end to end."""

import json
import random
from pathlib import Path

import pytest
import torch
from seqeval.metrics import f1_score
from small_runs import SHORT, TEXTS
from text_peers import make_peer
from text_runs import predicted, train
from text_tokenizers import MAKERS, odd_texts

from core import UserError
from core.objectives.objective import IGNORE
from text.datasets import collate, collate_padded
from text.model import TextConfig, TextEncoder
from text.pretrained import load_pretrained
from text.tagged import Tagged
from text.tagging import EntityTagging, entities, tagging_of, tags_of_text
from text.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("elsewhere", "without_figures")

NAMES = [f"{a}{b}" for a in ("Ma", "Lo", "Ki", "Ra", "Te") for b in ("ra", "lin", "dor", "sa", "vek")]
TEMPLATES = [
    "{p} lives in {c} .",
    "{p} went from {c} to {c} .",
    "yesterday {p} met {p} in {c} .",
    "the mayor of {c} thanked {p} .",
    "nobody in {c} knew {p} .",
]


def sentence(draw, names):
    """A name may be that of a person or of a city: only the words around it say which."""
    words, tags = [], []
    for part in draw.choice(TEMPLATES).split():
        kind = {"{p}": "PER", "{c}": "LOC"}.get(part)
        own = draw.sample(names, draw.choice([1, 1, 2])) if kind else [part]
        words += own
        tags += [f"{'I' if place else 'B'}-{kind}" if kind else "O" for place in range(len(own))]
    return words, tags


def conll(sentences):
    return "\n\n".join("\n".join(f"{w} X {t}" for w, t in zip(*each, strict=True)) for each in sentences) + "\n"


def write_names(folder):
    """Half of the names in the test file are in no other."""
    draw = random.Random(0)
    folder.mkdir()
    new = NAMES[::4]
    known = [name for name in NAMES if name not in new]
    (folder / "train.txt").write_text("-DOCSTART- -X- O\n\n" + conll(sentence(draw, known) for _ in range(300)))
    (folder / "dev.txt").write_text(conll(sentence(draw, known) for _ in range(40)))
    (folder / "test.txt").write_text(conll(sentence(draw, [*new, *known[:7]]) for _ in range(60)))


@pytest.mark.usefixtures("as_in_production")
def test_a_run_finds_names_that_it_has_never_seen(capsys, monkeypatch):
    write_names(Path("names"))
    more = ["--train.steps", "250", "--train.lr", "3e-3", "--train.batch-size", "16", "--train.eval-every", "250"]
    shape = ["--model.dim", "32", "--model.depth", "2", "--model.max-length", "96", "--data.tokenizer.vocab-size", "60"]
    train("tags", "--data.path", "names", *TEXTS[2:], *more, *shape)  # a vocabulary of letters alone
    summary = json.loads(Path("runs/tags/summary.json").read_text())
    assert summary["metrics"]["f1"] > 0.75
    assert summary["baseline"]["most frequent tag of each word"] < summary["metrics"]["f1"] - 0.3
    page = Path("runs/tags/report.html").read_text()
    assert "micro avg" in page and "[B-PER]" in page
    line, other = predicted(capsys, monkeypatch, "runs/tags", f"{NAMES[3]} went from {NAMES[20]} to {NAMES[5]}.", "the")
    assert line.partition(": ")[2].count("PER") == 1 and line.count("LOC") == 2 and f": {NAMES[3]} PER" in line
    assert other == "the: nothing found"
    with pytest.raises(SystemExit):
        predicted(capsys, monkeypatch, "runs/tags", "to " * 60)
    assert "Text 1 has more tokens than the 96 that the model takes" in capsys.readouterr().err
    assert predicted(capsys, monkeypatch, "runs/tags", f"{NAMES[2]} {'to ' * 60}", "--overlong", "truncate")


def test_tags_that_stand_for_themselves_and_a_start_from_masked_words(capsys, monkeypatch):
    draw = random.Random(1)
    rows = [sentence(draw, NAMES) for _ in range(90)]
    rows = [
        (words, ["NAME" if t != "O" else "DOT" if w == "." else "WORD" for w, t in zip(words, tags, strict=True)])
        for words, tags in rows
    ]
    Path("tags.jsonl").write_text("".join(json.dumps({"tokens": w, "tags": t}) + "\n" for w, t in rows))
    Path("lines.txt").write_text("\n".join(" ".join(words) for words, _ in rows))
    train("lines", "--data.path", "lines.txt", *SHORT, *TEXTS[len(SHORT) :], "--out", "start")
    more = ["--train.steps", "60", "--train.lr", "1e-2"]
    train("tags", "--data.path", "tags.jsonl", *TEXTS[2:], *more, "--init", "start", "--out", "run")
    assert "most frequent tag of each word: " in capsys.readouterr().out
    metrics = json.loads(Path("run/summary.json").read_text())["metrics"]
    assert metrics["accuracy"] > 0.95 and "f1" not in metrics
    (line,) = predicted(capsys, monkeypatch, "run", f"{NAMES[0]} lives in {NAMES[1]}.")
    assert [part.split(" ")[-2] for part in line.partition(": ")[2].split(", ")] == [
        "NAME",
        "WORD",
        "WORD",
        "NAME",
        "DOT",
    ]


def data_of(rows, max_length=30, tokenizer=None, **options):
    Path("rows.jsonl").write_text("".join(json.dumps({"tokens": w, "tags": t}) + "\n" for w, t in rows))
    return Tagged(path=Path("rows.jsonl"), **options).read(max_length, tokenizer)


@pytest.mark.parametrize("family", MAKERS)
def test_the_first_piece_of_each_word(family):
    tokenizer = Tokenizer(MAKERS[family]().backend_tokenizer, extend=False)
    texts = [text.split() for text in odd_texts(80, seed=5) if text.split()]
    ids, first = tokenizer.encode_words(texts)
    seen = 0
    for words, own, places in zip(texts, ids, first, strict=True):
        encoding, start = tokenizer.backend.encode(" ".join(words), add_special_tokens=False), 0
        assert encoding.ids == own
        assert [p for p in places if p is not None] == sorted({p for p in places if p is not None})
        for word, place in zip(words, places, strict=True):
            found = encoding.char_to_token(start)
            if found is not None:
                seen += 1
                assert place == found, (word, encoding.tokens)
            start += len(word) + 1
    assert seen > 300


def test_targets_stand_on_first_pieces_and_survive_cutting():
    draw = random.Random(2)
    rows = [sentence(draw, NAMES) for _ in range(40)]
    with pytest.warns(UserWarning, match="texts have more than 10 tokens and were cut"):
        data = data_of(rows, max_length=10)
    for text, kept, (ids, targets) in zip(data.train.texts, data.train.kept, data.train, strict=True):
        assert ids.shape == targets.shape and len(ids) <= 10
        assert targets[0] == targets[-1] == IGNORE
        own = targets[targets != IGNORE].tolist()
        assert own == [text.tags[word] for word in kept] and kept == [*range(len(kept))]
        first = data.tokenizer.encode_words([text.words])[1][0]
        assert (targets != IGNORE).nonzero().flatten().tolist() == [first[word] + 1 for word in kept]


def test_words_of_which_the_tokenizer_makes_nothing_are_counted():
    rows = [sentence(random.Random(n), NAMES) for n in range(20)]
    rows[3] = (["\u200b", *rows[3][0]], ["O", *rows[3][1]])
    with pytest.warns(UserWarning, match=r"1 of \d+ texts have words of which the tokenizer makes nothing"):
        data_of(rows)


def test_scores_are_those_of_seqeval_in_a_row_and_padded():
    draw = random.Random(3)
    data = data_of([sentence(draw, NAMES) for _ in range(60)])
    objective = tagging_of(data)
    assert isinstance(objective, EntityTagging)
    torch.manual_seed(0)
    config = TextConfig(vocab_size=data.tokenizer.size, head="tags", head_dense=False, classes=5)
    model = TextEncoder(config).eval()
    samples = [data.train[i] for i in range(len(data.train))]
    batches = collate(samples), collate_padded(samples, data.tokenizer.pad)
    with torch.no_grad():
        row, padded = (objective.evaluate(model, batch) for batch in batches)
        losses = [objective.loss(model, batch) for batch in batches]
    for name in row:
        torch.testing.assert_close(row[name], padded[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses[0], row["loss"].sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)
    tags = [[[data.labels[t] for t in r if t != IGNORE] for r in row[n].tolist()] for n in ("targets", "predictions")]
    assert tags[0] == [[data.labels[t] for t in text.tags] for text in data.train.texts]
    assert objective.metrics(row)["f1"] == pytest.approx(f1_score(*tags))
    perfect = objective.metrics({**row, "predictions": row["targets"]})
    assert perfect["f1"] == perfect["precision"] == perfect["recall"] == perfect["accuracy"] == 1


def test_entities_of_all_schemes():
    expected = {("PER", 0, 1), ("LOC", 3, 3), ("LOC", 4, 4)}
    assert entities(["B-PER", "I-PER", "O", "B-LOC", "B-LOC"]) == expected
    assert entities(["I-PER", "I-PER", "O", "I-LOC", "B-LOC"]) == expected
    assert entities(["B-PER", "E-PER", "O", "S-LOC", "S-LOC"]) == expected
    assert entities(["B-PER", "L-PER", "O", "U-LOC", "U-LOC"]) == expected


@pytest.mark.parametrize("family", MAKERS)
def test_a_stock_tagger_says_what_transformers_says(family):
    tokenizer = MAKERS[family]()
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    labels = {number: f"T{number}" for number in range(6)}
    peer = make_peer(family, "ForTokenClassification", **sizes, num_labels=6, id2label=labels)
    peer.save_pretrained("stock")
    tokenizer.save_pretrained("stock")
    model, own = load_pretrained("stock")
    words = ["abc", "def", "ghij", "a"]
    said = tags_of_text(model, own, " ".join(words))
    inputs = tokenizer(" ".join(words), return_tensors="pt", return_offsets_mapping=True)
    offsets = inputs.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        probabilities = peer(**inputs).logits[0].softmax(dim=-1)
    start = 0
    for word, tag in zip(words, said, strict=True):
        place = next(i for i, (a, b) in enumerate(offsets) if a < b and b - 1 >= start)
        assert (tag.text, tag.label) == (word, f"T{int(probabilities[place].argmax())}")
        assert tag.probability == pytest.approx(float(probabilities[place].max()), abs=1e-4)
        start += len(word) + 1


GOOD = "a X\nb Y\n\na X\n\nb Y\n\na X\nb Y\n"


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.conll", "a\n", "a.conll, line 1 has no tag beside 'a'"),
        ("a.conll", "a X\n\t Y\n", r"a.conll, line 1: token 2 of 2 is empty"),
        ("a.conll", "\n\n", "a.conll holds no words with tags"),
        ("a.csv", GOOD, "words with tags are lines of a text file, or .jsonl or .ndjson, no table"),
        ("a.jsonl", '{"tokens": ["a"]}', "row 1 has no 'tags'"),
        ("a.jsonl", '{"tokens": ["a"], "tags": []}', "row 1 has 1 tokens, but 0 tags"),
        ("a.jsonl", '{"tokens": ["a"], "tags": [["X"]]}', "row 1: 'tags' holds a list where text belongs"),
        ("a.jsonl", '{"tokens": "a", "tags": ["X"]}', "row 1: 'tokens' must be a list"),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["X"], "split": "dev"}', "has no sentences to train on"),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["X"], "split": "some"}', "split is 'some', but must be"),
        ("a.conll", "a X\n\na X\n", "has 1 class: at least two are needed"),
    ],
)
def test_files_that_cannot_be_read(name, content, words):
    Path(name).write_text(content)
    with pytest.raises(UserError, match=words) as error:
        Tagged(path=Path(name)).corpus()
    assert "\n" not in str(error.value)


def test_a_folder_without_training_sentences():
    Path("folder").mkdir()
    Path("folder/test.txt").write_text(GOOD)
    with pytest.raises(UserError, match=r"folder has no file train.txt or train.jsonl"):
        Tagged(path=Path("folder")).corpus()
