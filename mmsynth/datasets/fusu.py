"""FUSU: fine-grained urban land use, 17 classes."""
from mmsynth.datasets.manifest import ManifestDataset
from mmsynth.registry import DATASETS


@DATASETS.register_module()
class FUSUDataset(ManifestDataset):
    """FUSU with its 17 classes, in the order of the release of TISynth and TODSynth.

    Two released files disagree on ids 7 and 8; these are the names of the dataset file ('orchard', 'park'), not those
    of the resampler ('park', 'greenbelt'). Labels start at 0 = traffic land. Those that FUSU itself publishes are one
    higher: read them with ``reduce_zero_label=True``. Arguments as in :class:`ManifestDataset`.
    """

    METAINFO = dict(
        classes=(
            'traffic land', 'inland water', 'residential land', 'cropland', 'agriculture construction', 'blank',
            'industrial land', 'orchard', 'park', 'public management and service', 'commercial land',
            'public construction', 'special', 'forest', 'storage', 'wetland', 'grass',
        ),
        palette=[
            [233, 133, 133], [8, 51, 230], [255, 0, 30], [126, 211, 33], [135, 126, 20], [94, 47, 4], [10, 82, 77],
            [184, 233, 134], [219, 170, 230], [255, 199, 2], [252, 232, 5], [245, 107, 0], [243, 229, 176],
            [3, 100, 0], [127, 123, 127], [52, 205, 249], [18, 227, 180],
        ])
