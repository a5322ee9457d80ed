"""The data sample that travels from dataset to generator to pool."""
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample


class SynthDataSample(SegDataSample):
    """A segmentation sample with what synthesis needs and makes.

    Data fields, beside those of :class:`mmseg.structures.SegDataSample`:

    - ``gt_sem_seg``: the mask (1, H, W), integer class ids, the ignore index where unlabelled.
    - ``reference``: the style image (3, H, W), uint8, BGR as loaded.
    - ``generated_img``: the synthetic image (3, H, W), uint8, RGB.

    Metainfo: ``sample_id`` (str, unique in its dataset), ``prompt`` (str), ``img_path``, ``seg_map_path``,
    ``reference_path``; after synthesis also ``seed`` (int) and ``guidance_trace`` (list of dicts, one per guided step).
    """

    @property
    def reference(self) -> PixelData:
        return self._reference

    @reference.setter
    def reference(self, value: PixelData) -> None:
        self.set_field(value, '_reference', dtype=PixelData)

    @reference.deleter
    def reference(self) -> None:
        del self._reference

    @property
    def generated_img(self) -> PixelData:
        return self._generated_img

    @generated_img.setter
    def generated_img(self, value: PixelData) -> None:
        self.set_field(value, '_generated_img', dtype=PixelData)

    @generated_img.deleter
    def generated_img(self) -> None:
        del self._generated_img
