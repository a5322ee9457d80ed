"""Measures of a pool, any JSON object, as tables of its report: one of single values, one with a column per class."""
from collections.abc import Mapping, Sequence
from typing import Any

from mmsynth.pool.header import flatten
from mmsynth.visualization.report import Report

_MEASURES = 'metrics.'  # under this key the pool's evaluation has them, beside its judge and its real set


def add_metrics(report: Report, metrics: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Add the section 'Metrics'.

    Numbers named ``MEASURE.CLASS`` and lists of one number per class become columns of a table of classes; all else
    is listed by name, nested objects with dotted names.

    Args:
        report: Takes the section.
        metrics: JSON values, such as the file that the pool's evaluation writes.
        classes: The pool's class names.
    """
    singles: list[list[Any]] = []
    columns: dict[str, dict[str, Any]] = {}
    for key, value in flatten(metrics).items():
        key = key.removeprefix(_MEASURES)
        label = _class_of(key, classes)
        if label is not None and _is_number(value):
            columns.setdefault(key.removesuffix(f'.{label}'), {})[label] = value
        elif isinstance(value, list) and len(value) == len(classes) > 1 and all(map(_is_number, value)):
            columns[key] = dict(zip(classes, value, strict=True))
        else:
            singles.append([key, _shown(value)])
    heading = 'Metrics'
    if singles:
        report.add_table(heading, ['measure', 'value'], singles)
        heading = ''
    if columns:
        rows = [[name, *(values.get(name) for values in columns.values())] for name in classes]
        report.add_table(heading, ['class', *columns], rows)


def _class_of(key: str, classes: Sequence[str]) -> str | None:
    """The class whose name ends a dotted key; the longest where several do."""
    return max((name for name in classes if key.endswith(f'.{name}')), key=len, default=None)


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: Any) -> Any:
    """Numbers stay what they are; lists, truth values and the like as text."""
    if isinstance(value, list):
        return ', '.join(map(str, value))
    return value if _is_number(value) else str(value)
