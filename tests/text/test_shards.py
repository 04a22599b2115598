"""Texts in shards: the corpus is that of the manifest, whatever is predicted."""

import pytest

from core import UserError
from core.experiments.shard import Arguments, shard
from text.datasets import Manifest
from text.sharded import Shards


def written(tmp_path, **options):
    shard(Arguments(source=tmp_path / "list.csv", shards=tmp_path / "shards", samples=4, **options))
    return str(tmp_path / "shards")


@pytest.mark.parametrize("target", ["classes", "number", "tokens"])
@pytest.mark.parametrize("columns", [("text",), ("premise", "hypothesis")])
def test_the_corpus_is_that_of_the_manifest(tmp_path, target, columns):
    if target == "tokens" and len(columns) == 2:
        pytest.skip("masked tokens are learnt from single texts")
    rows = [",".join([*(f"{column} of\u2028{row}" for column in columns), str(row % 2)]) for row in range(30)]
    (tmp_path / "list.csv").write_text("\n".join([",".join([*columns, "label"]), *rows]))
    path = written(tmp_path, columns=columns, target="none" if target == "tokens" else target)
    sharded = Shards(path=path, columns=columns, target=target).corpus()
    listed = Manifest(path=tmp_path / "list.csv", columns=columns, target=target).corpus()
    assert sharded.labels == listed.labels
    for split, texts in listed.parts().items():
        plain = [(text.texts, text.target) for text in texts]
        found = [(text.texts, text.target) for text in sharded.parts()[split]]
        assert sorted(found) == sorted(plain) and (split == "train" or found == plain)


def test_what_is_missing_is_named(tmp_path):
    (tmp_path / "list.csv").write_text("text,label\n" + "".join(f"text {row},{row % 2}\n" for row in range(30)))
    path = written(tmp_path, columns=("text",))
    with pytest.raises(UserError, match=r"train-000000.tar, sample 0 has no 'premise'"):
        Shards(path=path, columns=("premise",)).corpus()
