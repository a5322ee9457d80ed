"""GID-24 / Five-Billion-Pixels: land cover from Gaofen-2, 24 classes."""
from mmsynth.datasets.manifest import ManifestDataset
from mmsynth.registry import DATASETS


@DATASETS.register_module()
class GIDDataset(ManifestDataset):
    """GID with its 24 classes, in the order of the release of TISynth; labels may be 16-bit, 255 is unlabelled.

    The palette is ours, not a published one. Arguments as in :class:`ManifestDataset`.
    """

    METAINFO = dict(
        classes=(
            'industrial land', 'paddy field', 'irrigated field', 'dry cropland', 'garden land', 'arbor forest',
            'shrub forest', 'park land', 'natural meadow', 'artificial meadow', 'river', 'urban residential', 'lake',
            'pond', 'fish pond', 'snow', 'bareland', 'rural residential', 'stadium', 'square', 'road', 'overpass',
            'railway station', 'airport',
        ),
        palette=[
            [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128], [128, 128, 128],
            [64, 0, 0], [192, 0, 0], [64, 128, 0], [192, 128, 0], [64, 0, 128], [192, 0, 128], [64, 128, 128],
            [192, 128, 128], [0, 64, 0], [128, 64, 0], [0, 192, 0], [128, 192, 0], [0, 64, 128], [128, 64, 128],
            [0, 192, 128], [128, 192, 128], [64, 64, 0],
        ])
