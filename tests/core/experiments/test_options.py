"""Options of a command line: what they make, and the sentence that each mistake gets."""

import io
from dataclasses import field
from pathlib import Path
from typing import Literal

import pytest

from core.config import BelowOne, NotNegative, Positive, SettingError, Size, configclass
from core.errors import UserError
from core.experiments.options import UsageError, parse_options
from core.sparse import Global, Local, Pattern


@configclass
class Inner:
    width: Size = 64
    rate: BelowOne = 0.0
    low: NotNegative = 0.0
    patterns: Pattern | tuple[Pattern | None, ...] | None = None

    def __post_init__(self):
        if self.low > self.width:
            raise SettingError(Inner, "low", f"must be at most width, which is {self.width}")
        if self.low == self.width:
            raise UserError("An inner config is not a line.")


@configclass
class Outer:
    inner: Inner = field(default_factory=Inner)
    speed: Positive = 1.0
    how: Literal["fast", "slow"] = "fast"
    out: Path | None = None
    pair: tuple[float, float] = (0.0, 1.0)


def parse(*words):
    return parse_options(Outer, words, "program")


def test_patterns_are_given_by_their_text():
    assert parse("--inner.patterns", "Local(4)").inner.patterns == Local(4)
    assert parse("--inner.patterns", "Local(4)", "None", "Global(1)").inner.patterns == (Local(4), None, Global(1))


def test_options_make_a_config():
    assert parse() == Outer()
    found = parse("--inner.width=8", "--speed", "1e-3", "--how", "slow", "--out", "a b", "--pair", "1", "2")
    assert found == Outer(inner=Inner(width=8), speed=1e-3, how="slow", out=Path("a b"), pair=(1.0, 2.0))
    assert parse("--speed", "1", "--speed", "2").speed == 2.0


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--inner.width", "0"], "--inner.width must be at least 1, not 0."),
        (["--inner.width", "8", "--inner.rate", "1"], "--inner.rate must be less than 1, not 1.0."),
        (["--speed", "nan"], "--speed must be a finite number, not nan."),
        (["--speed", "inf"], "--speed must be a finite number, not inf."),
        (["--speed", "-1"], "--speed must be more than 0, not -1.0."),
        (["--inner.low", "9", "--inner.width", "8"], "--inner.low must be at most width, which is 8."),
        (["--inner.low", "8", "--inner.width", "8"], "An inner config is not a line."),
        (["--inner.patterns", "Local(0)"], "Local: window must be a whole number of at least 1, not 0."),
    ],
)
def test_a_value_that_a_config_refuses(words, sentence):
    with pytest.raises(UserError) as error:
        parse(*words)
    assert str(error.value) == sentence and not isinstance(error.value, UsageError)


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--inner.width", "1e3"], "--inner.width must be a whole number, not '1e3'"),
        (["--speed", "quick"], "--speed must be a number, not 'quick'"),
        (["--speed"], "--speed needs a value"),
        (["--pair", "1"], "--pair needs 2 values"),
        (["--how", "quick"], "--how must be one of"),
        (["--sped", "1"], "there is no option --sped (did you mean --speed?)"),
        (["word"], "word belongs to no option"),
        (["--out", ""], "--out has an empty value"),
        (["--out="], "--out has an empty value"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_words_that_make_no_config(words, sentence, encoding, monkeypatch):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    with pytest.raises(UsageError) as error:
        parse(*words)
    assert str(error.value).startswith(sentence) and "\n" not in str(error.value)


def test_help_shows_the_bounds(capsys):
    with pytest.raises(SystemExit) as end:
        parse("--help")
    said = capsys.readouterr().out
    assert end.value.code == 0 and "0<=FLOAT<1" in said and "INT" in said
