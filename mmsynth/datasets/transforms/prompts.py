"""Prompts from masks: "a satellite image of " and the names of the classes that are present."""
from collections.abc import Sequence

from mmcv.transforms import BaseTransform

from mmsynth.registry import TRANSFORMS
from mmsynth.utils.labels import IGNORE_INDEX
from mmsynth.utils.prompts import TEMPLATE, build_prompt, check_names, check_template


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
                 ignore_index: int = IGNORE_INDEX) -> None:
        check_names(classes)
        check_template(template)
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
