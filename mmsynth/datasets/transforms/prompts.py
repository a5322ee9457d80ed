"""Prompts from masks: "a satellite image of " and the names of the classes that are present."""
import re
from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform
from numpy.typing import NDArray

from mmsynth.registry import TRANSFORMS

TEMPLATE = 'a satellite image of {classes}'
_FIELD = '{classes}'
# The placeholder with the word that ties it to the text before it.
_TIED_FIELD = re.compile(r'[\s,;:]*(?:\b(?:of|with|showing|containing|including)\s+)?\{classes\}')


@TRANSFORMS.register_module()
class BuildPrompt(BaseTransform):
    """Write ``prompt`` from the classes in ``gt_seg_map``; stands after the crop, so that it says what is left.

    Args:
        classes: Class names; by default those that :class:`ManifestDataset` gives.
        template: The text, with ``{classes}`` where the names go.
        overwrite: Replace a prompt that the sample already has.
        separator: Between two names.
        ignore_index: Value of unlabelled pixels in ``gt_seg_map``.

    Raises:
        ValueError: If the template has no ``{classes}``, there are no class names or no mask, or a value of the mask
            has no name.
    """

    def __init__(self,
                 classes: Sequence[str] | None = None,
                 template: str = TEMPLATE,
                 overwrite: bool = True,
                 separator: str = ', ',
                 ignore_index: int = 255) -> None:
        _check_names(classes)
        _check_template(template)
        self.classes = None if classes is None else tuple(classes)
        self.template = template
        self.overwrite = overwrite
        self.separator = separator
        self.ignore_index = ignore_index

    def transform(self, results: dict) -> dict:
        if not self.overwrite and results.get('prompt') is not None:
            return results
        classes = self.classes or results.get('classes')
        if not classes:
            raise ValueError('BuildPrompt has no class names; set its `classes`, or give the dataset some (`metainfo` '
                             'or `meta_file` of ManifestDataset).')
        if 'gt_seg_map' not in results:
            raise ValueError('BuildPrompt needs `gt_seg_map`; put LoadSegMap before it in the pipeline.')
        try:
            results['prompt'] = build_prompt(
                results['gt_seg_map'], classes, self.template, self.ignore_index, separator=self.separator)
        except ValueError as error:
            raise ValueError(f'{results.get("seg_map_path", "mask")}: {error}') from error
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(template={self.template!r}, overwrite={self.overwrite})'


def build_prompt(mask: NDArray[np.integer],
                 classes: Sequence[str],
                 template: str = TEMPLATE,
                 ignore_index: int = 255,
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
    _check_names(classes)
    _check_template(template)
    present = [value for value in np.unique(mask).tolist() if value != ignore_index]
    nameless = [value for value in present if not 0 <= value < len(classes)]
    if nameless:
        raise ValueError(f'values {nameless[:8]} have no name among {len(classes)} classes and are not `ignore_index` '
                         f'{ignore_index}; correct `classes`.')
    if present:
        return template.replace(_FIELD, separator.join(classes[value] for value in present))
    return ' '.join(_TIED_FIELD.sub('', template).split())


def _check_names(classes: Sequence[str] | None) -> None:
    if isinstance(classes, str):
        raise ValueError(f'`classes` must be a sequence of names, got the text {classes!r}.')


def _check_template(template: str) -> None:
    if _FIELD not in template:
        raise ValueError(f'`template` must contain {_FIELD}, where the class names go, got {template!r}.')
