"""Texts in shards: read as a whole when training starts, as those of a manifest are."""

from typing import Literal

from core.config import configclass
from core.data.dataset import Name
from core.data.shards import ShardSource

from .corpora import Corpus, read_shards
from .datasets import TableOfTexts


@configclass
class Shards(ShardSource, TableOfTexts):
    """Texts in shards, which `python -m core.experiments.shard --columns text` makes of a manifest."""

    name: Name[Literal["shards"]] = "shards"

    def corpus(self) -> Corpus:
        return read_shards(self, self.columns, self.target)
