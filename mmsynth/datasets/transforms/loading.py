"""Loading label maps and reference images.

Legend: H W pixels of the label, h w pixels of the reference, K classes in the files.
"""
import numpy as np
from mmcv.transforms import BaseTransform
from numpy.typing import NDArray

from mmsynth.registry import TRANSFORMS
from mmsynth.utils.images import decode_bgr
from mmsynth.utils.labels import IGNORE_INDEX, read_bytes, read_label
from mmsynth.utils.messages import first_few


@TRANSFORMS.register_module()
class LoadSegMap(BaseTransform):
    """Load a label map of 8 or 16 bits and check every value of it.

    Stands after ``LoadImageFromFile`` where images are loaded. mmseg's ``LoadAnnotations`` keeps the lower 8 bits only
    and takes any value. As there, ``reduce_zero_label`` and ``label_map`` of the dataset are applied, in this order.

    Reads ``seg_map_path``, ``reduce_zero_label``, ``label_map``, ``num_classes``, ``ignore_index``, ``ori_shape``.
    Writes ``gt_seg_map`` (H, W), uint8: class ids, 255 where unlabelled; its name into ``seg_fields``; and without an
    image ``img_shape`` and ``ori_shape``.

    Args:
        num_classes: Count K of the classes in the files, before ``label_map``. :class:`ManifestDataset` says it; for
            other datasets it must be given.
        ignore_index: Value of unlabelled pixels in the files; by default what the dataset says, or else 255.
        backend_args: The host's file backend.

    Raises:
        ValueError: If K is unknown, over 255 or other than the dataset's; if the ignore index is a class; if the file
            is no single-band integer image, has another size than its image, or holds a value that is neither a class
            nor the ignore index.
    """

    def __init__(self,
                 num_classes: int | None = None,
                 ignore_index: int | None = None,
                 backend_args: dict | None = None) -> None:
        if num_classes is not None and not 1 <= num_classes <= IGNORE_INDEX:
            raise ValueError(f'`num_classes` must be in 1 … {IGNORE_INDEX}, got {num_classes}.')
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        path = results['seg_map_path']
        first = 1 if results.get('reduce_zero_label') else 0
        count = self._setting('num_classes', results)
        ignore_index = self._setting('ignore_index', results)
        ignore_index = IGNORE_INDEX if ignore_index is None else ignore_index
        _check_settings(path, first, count, ignore_index)
        assert count is not None

        label = read_label(path, self.backend_args)
        _check_size(label, path, results)
        ignored = label == ignore_index
        if first:
            ignored |= label == 0
        _check_values(label, ignored, path, first, count, ignore_index)
        ids = np.where(ignored, IGNORE_INDEX, label - first).astype(np.uint8)
        results['gt_seg_map'] = _new_ids(results.get('label_map'))[ids]
        results['seg_fields'] = [*(name for name in results.get('seg_fields', ()) if name != 'gt_seg_map'),
                                 'gt_seg_map']
        if 'img' not in results:
            results['img_shape'] = results['ori_shape'] = label.shape
        return results

    def _setting(self, name: str, results: dict) -> int | None:
        """The option, or what the dataset says; both may be given only if they agree."""
        own, given = getattr(self, name), results.get(name)
        if own is not None and given is not None and own != given:
            raise ValueError(f'`{name}` of LoadSegMap is {own}, the dataset has {given}; leave the option out.')
        return given if own is None else own

    def __repr__(self) -> str:
        return f'{type(self).__name__}(num_classes={self.num_classes}, ignore_index={self.ignore_index})'


@TRANSFORMS.register_module()
class LoadReference(BaseTransform):
    """Load the reference (style) image: ``reference_path`` → ``reference`` (h, w, 3), uint8, [0, 255], BGR.

    Args:
        required: Refuse samples without ``reference_path``; they pass unchanged otherwise.
        backend_args: The host's file backend.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If there must be a reference and the sample has none, or the file is no 8-bit colour image.
    """

    def __init__(self, required: bool = True, backend_args: dict | None = None) -> None:
        self.required = required
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        path = results.get('reference_path')
        if path is None:
            if self.required:
                name = results.get('sample_id', results.get('seg_map_path', 'a sample'))
                raise ValueError(f"{name} has no reference image; give it 'ref_image' in the manifest, or set "
                                 '`required=False` of LoadReference.')
            return results
        image = decode_bgr(read_bytes(path, 'reference', self.backend_args), path, 'reference', flag='unchanged')
        found = _unlike_bgr(image)
        if found:
            raise ValueError(f'reference {path} must be an image of 8 bits and 3 bands, found {found}; convert it.')
        results['reference'] = image
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(required={self.required})'


def _check_settings(path: str, first: int, count: int | None, ignore_index: int) -> None:
    if count is None:
        raise ValueError(f'{path}: the class count is unknown; set `num_classes` of LoadSegMap, or give the dataset '
                         'class names (`metainfo` or `meta_file` of ManifestDataset).')
    if count > IGNORE_INDEX:
        raise ValueError(f'`num_classes` must be in 1 … {IGNORE_INDEX}, got {count} from the dataset.')
    if first <= ignore_index < first + count:
        raise ValueError(f'`ignore_index` {ignore_index} is a class (the files hold {first} … {first + count - 1}); '
                         'choose a value that no class has, or leave the class out with `metainfo` of the dataset.')


def _check_size(label: NDArray, path: str, results: dict) -> None:
    # The size as loaded: mmseg's test pipelines load labels after the image was resized.
    if 'img' not in results:
        return
    size = tuple(results.get('ori_shape', results['img'].shape)[:2])
    if size != label.shape:
        raise ValueError(f'image {results.get("img_path")} is {size[0]} x {size[1]} (height x width), its label '
                         f'{path} is {label.shape[0]} x {label.shape[1]}; they must cover the same pixels.')


def _check_values(label: NDArray, ignored: NDArray, path: str, first: int, count: int, ignore_index: int) -> None:
    wrong = ~ignored & ((label < first) | (label >= first + count))
    if not wrong.any():
        return
    values = np.unique(label[wrong]).tolist()
    raise ValueError(
        f'label {path} holds {first_few(values, count=8)} in {int(wrong.sum())} pixels, but its {count} classes are '
        f'{first} … {first + count - 1} and unlabelled is {"0 or " if first else ""}{ignore_index}. Correct the labels '
        f'or the class count, set `ignore_index` to the value of unlabelled pixels, or, if ids '
        f'{"start at 0" if first else "start at 1"}, `reduce_zero_label={not first}` of the dataset.')


def _new_ids(label_map: dict[int, int] | None) -> NDArray[np.uint8]:
    """Lookup table (256,): class id → id after ``label_map``, 255 where that drops the class."""
    table = np.arange(256, dtype=np.uint8)
    for old, new in (label_map or {}).items():
        table[old] = new if 0 <= new < IGNORE_INDEX else IGNORE_INDEX
    return table


def _unlike_bgr(image: NDArray | None) -> str | None:
    """What an image is instead of (h, w, 3), uint8."""
    if image is None:
        return 'a file that is no image'
    bands = image.shape[2] if image.ndim == 3 else 1
    if image.dtype == np.uint8 and bands == 3:
        return None
    return f'{bands} band{"s" if bands > 1 else " (grey)"} of {image.dtype}'
