"""Texts in shards: read as a whole when training starts, as those of a manifest are."""

from typing import Literal

from core import UserError
from core.config import configclass
from core.data.dataset import Name
from core.data.labelled import split_entries
from core.data.shards import ShardSource, rows_of

from .corpora import Corpus, corpus_of, make_entry
from .datasets import TableOfTexts


@configclass
class Shards(ShardSource, TableOfTexts):
    """Texts in shards, which `python -m core.experiments.shard --columns text` makes of a manifest."""

    name: Name[Literal["shards"]] = "shards"

    def corpus(self) -> Corpus:
        column = self.label_column
        required = [*self.columns, *(() if self.target == "tokens" else (column,))]
        found, entries = self.read_shards(()), {}
        for split, samples in found.parts().items():
            entries[split] = []
            for where, row in rows_of(samples, found.labels, column):
                if absent := next((name for name in required if not row.get(name)), None):
                    raise UserError(f"{where} has no {absent!r}.")
                texts = [row[name] for name in self.columns]
                entries[split].append(make_entry(where, texts, row.get(column, ""), self.target))
        return corpus_of(split_entries(self.path or "", entries, self))
