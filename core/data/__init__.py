"""People's own files, whatever is in them: directories of classes, manifests, splits, decoded files kept."""

from .splits import Sample, few_per_class, read_folder, read_manifest, stratified_split

__all__ = ["Sample", "few_per_class", "read_folder", "read_manifest", "stratified_split"]
