"""Data sets: folders and manifests of any kind of file, splits, groups, and a cache of decoded files."""

from .labelled import Sample, read_files, read_folder
from .listed import ListedFiles
from .shards import ShardFiles
from .splits import DataSplits, few_per_class, make_splits
from .unlabelled import UnlabelledFiles

__all__ = [
    "DataSplits",
    "ListedFiles",
    "Sample",
    "ShardFiles",
    "UnlabelledFiles",
    "few_per_class",
    "make_splits",
    "read_files",
    "read_folder",
]
