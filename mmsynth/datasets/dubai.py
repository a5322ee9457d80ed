"""Semantic segmentation of aerial imagery of Dubai (MBRSC, Humans in the Loop), 5 classes."""
from mmsynth.datasets.manifest import ManifestDataset
from mmsynth.registry import DATASETS


@DATASETS.register_module()
class DubaiDataset(ManifestDataset):
    """The Dubai tiles with their 5 classes. Arguments as in :class:`ManifestDataset`.

    The nine parts of a tile are neighbours: split by tile, not by part.
    """

    METAINFO = dict(
        classes=(
            'building', 'land', 'road', 'vegetation', 'water',
        ),
        palette=[
            [60, 16, 152], [132, 41, 246], [110, 193, 228], [254, 221, 58], [226, 169, 41],
        ])
