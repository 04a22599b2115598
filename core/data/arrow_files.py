"""One Parquet file as a shard.

No row of it can be read alone, so that it is written once as an Arrow file, which is mapped into memory. What Hugging
Face's `datasets` does with a whole data set before it starts is done here with each file when it is needed.
"""

import json
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import first_line
from .shard_files import ANY, Files, OpenShard, Shard, ShardError

ROWS = 100  # of a part of an Arrow file


def arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError('Parquet files need the package pyarrow: pip install -e ".[parquet]".') from None
    return pyarrow


def holds_bytes(kind: Any) -> bool:
    types = arrow().types
    if types.is_struct(kind):
        return any(kind.field(number).name == "bytes" for number in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind)


def to_arrow(source: Path, name: str, target: Path) -> None:
    """Write a Parquet file as an Arrow file. name: of the shard, for messages. Raises ShardError, OSError."""
    pyarrow = arrow()
    try:
        parquet = pyarrow.parquet.ParquetFile(source)
        with pyarrow.OSFile(str(target), "wb") as sink, pyarrow.ipc.new_file(sink, parquet.schema_arrow) as writer:
            for batch in parquet.iter_batches(batch_size=ROWS):
                writer.write_batch(batch)
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:  # of the disk
            raise
        raise ShardError(f"The shard {name} is no Parquet file, or damaged: {first_line(error)}.") from None


class ParquetShard(OpenShard):
    """path: of the Arrow file that was made of it."""

    def __init__(self, name: str, path: Path):
        pyarrow = arrow()
        self.name, self.file = name, pyarrow.memory_map(str(path))
        reader = pyarrow.ipc.open_file(self.file)
        self.batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self.ends = [*accumulate(batch.num_rows for batch in self.batches)]

    def sample(self, shard: Shard, number: int) -> Files:
        row = int(shard.offsets[number])
        place = bisect_right(self.ends, row)
        batch = self.batches[place]
        values = batch.slice(row - self.ends[place] + batch.num_rows, 1)
        facts = {}
        for name in values.schema.names:
            column = values.column(name)
            if name == shard.column:
                value = column[0].as_py()
                content = value.get("bytes") if isinstance(value, dict) else value
                facts["path"] = value.get("path") if isinstance(value, dict) else None
                if content is None:
                    raise UserError(f"Row {row} of {self.name} has no file in the column {name!r}.")
                yield f"file{ANY}", content
            elif not holds_bytes(column.type):
                facts[name] = column[0].as_py()
        yield (
            "row.json",
            json.dumps({key: value for key, value in facts.items() if value is not None}, default=str).encode(),
        )

    def close(self) -> None:
        self.batches.clear()
        self.file.close()
