"""From published archives and users' own folders to what the configs read; the tools: tools/dataset_converters."""
from mmsynth.datasets.conversion.class_table import ClassTable, read_class_table
from mmsynth.datasets.conversion.convert import Pair, Recipe, convert
from mmsynth.datasets.conversion.picture import StretchRule
from mmsynth.datasets.conversion.split import SplitRule
from mmsynth.datasets.conversion.summary import Summary

__all__ = ['ClassTable', 'Pair', 'Recipe', 'SplitRule', 'StretchRule', 'Summary', 'convert', 'read_class_table']
