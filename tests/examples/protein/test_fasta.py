"""FASTA files and the alphabet: against transformers' tokenizer, and mistakes named with their line."""

import gzip
import os

import pytest
import torch
import transformers

from core import UserError
from examples.protein.alphabet import ESM2, Alphabet, read_alphabet
from examples.protein.fasta import read_fasta


def test_records_as_they_are_written_in_the_wild(tmp_path):
    path = tmp_path / "made.fasta"
    path.write_bytes(
        b"\xef\xbb\xbf\n>sp|P1|ONE first protein\r\nMKV\r\nllyw*\r\n\r\n>two\nACDE FGHI\n  KLMN\n\n>three x\nMJ*\n"
    )
    found = [(record.name, record.sequence) for record in read_fasta(path)]
    assert found == [("sp|P1|ONE", "MKVLLYW"), ("two", "ACDEFGHIKLMN"), ("three", "MJ")]


@pytest.mark.parametrize(
    "content",
    [
        b">one\nMKV\n>two\nACD\n",
        gzip.compress(b">one\nMKV\n>two\nACD\n", mtime=0),
        b">one\rMKV\r>two\rACD",
        b"; a comment\n>one first\n;another\nmkv*\n\n> two\nacd\n;\n",
        b">one prot\xe9ine \x85 \x96\nMKV\n>two\nACD\n",
        ">one protéine\u2028 x\x0b y\nMKV\n>two\nACD\n".encode(),
        ">one\nMKV\n>two\nACD\n".encode("utf-16"),
        b">one of them\x01gi|2 another\nMKV\n>two\x01gi|2\nACD\n",
        b"\n\n  \n>one\nM K V\n\n\n>two\n A\tC D \n\n",
    ],
)
def test_files_of_any_program(content, tmp_path):
    (tmp_path / "made.fasta").write_bytes(content)
    found = [(record.name, record.sequence) for record in read_fasta(tmp_path / "made.fasta")]
    assert found == [("one", "MKV"), ("two", "ACD")]


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (read_fasta, read_alphabet):
        with pytest.raises(UserError, match="pipe is a pipe, socket or device"):
            read(tmp_path / "pipe")


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("MKV\n>a\nMKV\n", "line 1: a sequence needs a header before it"),
        (">a\nMKV\n>\nMKV\n", "line 3: a name must follow the >"),
        (">a\nMKV\n>b\n\n>c\nMKV\n", "line 3: record b has no sequence"),
        (">a\nMKV\n>b\n*\n", "line 3: record b has no sequence"),
        (">a\nMKV\n>b\nMK\nM-V\n", "line 5: '-' is not a residue"),
        (">a\nM1V\n", "line 2: '1' is not a residue"),
        (">a\nM*V\n", "line 2: '*' is not a residue"),
        (">a\nMßV\n", "line 2: 'ß' is not a residue"),  # of upper case, two letters
        (">a\nMÅV\n", "line 2: 'Å' is not a residue"),
        (">a\nMV*\nMKV\n", "line 3: record a goes on behind its stop"),
        (">a\nMKV\n>b\nMKV\n>a x\nMKV\n", "line 5: there is a record a in line 1 already"),
        ("", "holds no sequence"),
        ("\n \n", "holds no sequence"),
        (b"\x89PNG\r\n\xff", "is not a FASTA file: it is not text"),
        (None, "There is no FASTA file"),
    ],
)
def test_mistakes_get_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "made.fasta"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        read_fasta(path)
    assert str(path) in str(error.value) and sentence in str(error.value) and "\n" not in str(error.value)


def test_numbers_are_those_of_transformers(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(ESM2))
    peer = transformers.EsmTokenizer(str(tmp_path / "vocab.txt"))
    alphabet = read_alphabet(tmp_path / "vocab.txt")
    assert alphabet == Alphabet() and (alphabet.pad, alphabet.mask) == (peer.pad_token_id, peer.mask_token_id)
    # The peer takes unknown letters next to each other for one; here each is a residue.
    sequences = ["LAGVSERTIDPKQNFYMHWCXBUZO", "MK<mask>V<mask><mask>L", "MJK.-A", "M"]
    expected = peer(sequences, padding=True, return_tensors="pt")
    ids, mask = alphabet.encode(sequences)
    assert torch.equal(ids, expected["input_ids"]) and torch.equal(mask, expected["attention_mask"].bool())
    assert alphabet.encode(["MJJK"]).ids[0].tolist()[2:4] == [peer.unk_token_id] * 2


def test_alphabets_that_cannot_serve(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(token for token in ESM2 if token != "<mask>"))
    with pytest.raises(UserError, match=r"vocab\.txt cannot be read as an alphabet: .* this one has no <mask>"):
        read_alphabet(path)
