"""The commands of `text`, as tests call them."""

import io

from core.experiments import predict_command, train_command
from text.predict import Arguments, predict
from text.train import TEXT


def train(*argv):
    train_command(TEXT, [str(a) for a in argv])


def predicted(capsys, monkeypatch, *argv, stdin=None):
    """The lines that are printed."""
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["predict", *map(str, argv)])
    monkeypatch.setattr("sys.stdin", None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin)))
    predict_command("predict", Arguments, predict)
    return capsys.readouterr().out.splitlines()
