"""Data sets inside wrappers."""
from typing import Any

from torch.utils.data import Dataset


def leaf_datasets(dataset: Dataset) -> list[Any]:
    """List the data sets inside wrappers (ConcatDataset, RepeatDataset …), each once; a plain one is its own leaf."""
    wrapped = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if wrapped == [None]:
        return [dataset]
    return [leaf for inner in wrapped for leaf in leaf_datasets(inner)]
