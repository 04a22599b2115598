"""People's own files, whatever is in them: directories of classes, manifests, splits, decoded files kept."""

from .labelled import Sample, read_files, read_folder
from .splits import DataSplits, few_per_class, make_splits

__all__ = ["DataSplits", "Sample", "few_per_class", "make_splits", "read_files", "read_folder"]
