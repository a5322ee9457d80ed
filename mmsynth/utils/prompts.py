"""Prompts from masks: "a satellite image of " and the names of the classes that are present."""
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmsynth.utils.labels import IGNORE_INDEX

TEMPLATE = 'a satellite image of {classes}'
_FIELD = '{classes}'
# The placeholder with the word that ties it to the text before it.
_TIED_FIELD = re.compile(r'[\s,;:]*(?:\b(?:of|with|showing|containing|including)\s+)?\{classes\}')


def build_prompt(mask: NDArray[np.integer],
                 classes: Sequence[str],
                 template: str = TEMPLATE,
                 ignore_index: int = IGNORE_INDEX,
                 *,
                 separator: str = ', ') -> str:
    """Name the classes that a mask holds, in class order.

    Without any, the placeholder goes together with the word before it that would be left hanging ("of", "with",
    "showing", "containing", "including"): "a satellite image".

    Args:
        mask: Class ids, integer, of any shape.
        classes: Name of every id.
        template: The text, with ``{classes}`` where the names go.
        ignore_index: Value of unlabelled pixels; they are not named.
        separator: Between two names.

    Raises:
        ValueError: If the template has no ``{classes}``, or a value has no name.
    """
    check_names(classes)
    check_template(template)
    present = [value for value in np.unique(mask).tolist() if value != ignore_index]
    nameless = [value for value in present if not 0 <= value < len(classes)]
    if nameless:
        raise ValueError(f'values {nameless[:8]} have no name among {len(classes)} classes and are not `ignore_index` '
                         f'{ignore_index}; correct `classes`.')
    if present:
        return template.replace(_FIELD, separator.join(classes[value] for value in present))
    return ' '.join(_TIED_FIELD.sub('', template).split())


def check_names(classes: Sequence[str] | None) -> None:
    """Raise ValueError if class names are one text instead of a list."""
    if isinstance(classes, str):
        raise ValueError(f'`classes` must be a sequence of names, got the text {classes!r}.')


def check_template(template: str) -> None:
    """Raise ValueError if a template has no place for the class names."""
    if _FIELD not in template:
        raise ValueError(f'`template` must contain {_FIELD}, where the class names go, got {template!r}.')
