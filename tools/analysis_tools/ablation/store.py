"""The measurements of a guidance ablation on disk: one file each, so that a killed run continues and several may write.

::

    DIR/measurements/seed_0/relative-all.json      settings and figures
    DIR/samples/seed_0/relative-all/0.png …        a few of the images, to look at
    DIR/samples/seed_0/mask/0.png …                their masks
"""
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ablation.plan import Steps, Variant
from PIL import Image

from mmsynth.pool.header import flatten
from mmsynth.utils.files import atomic_write, encode_png

MASKS = 'mask'


@dataclass(frozen=True)
class Measurement:
    """What one variant's images of one seed are like.

    Attributes:
        rule, steps, seed: Which variant, and the seed.
        images: Synthetic images measured.
        real_images: Real images that they were compared with.
        judge_miou: How the judge reads the masks from the images, in percent.
        critic_miou: How the critic that guides does, in percent; None if it reads no images.
        frechet: Fréchet distance to the real images in the judge's features, averaged over each image.
        class_frechet: Class → the same, of the features averaged over the class's pixels; None where a class is in too
            few images for it.
        class_images: Class → synthetic images that hold it.
        class_real_images: Class → real images that hold it.
        relative_change: ‖dv‖ / ‖v‖, mean over guided steps and images; None where no step was corrected.
        seconds_per_image: Of sampling; reading and comparing is not counted.
    """

    rule: str
    steps: Steps | None
    seed: int
    images: int
    real_images: int
    judge_miou: float
    critic_miou: float | None
    frechet: float
    class_frechet: Mapping[str, float | None]
    class_images: Mapping[str, int]
    class_real_images: Mapping[str, int]
    relative_change: float | None
    seconds_per_image: float

    @property
    def variant(self) -> Variant:
        return Variant(self.rule, self.steps)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), allow_nan=False)


class AblationStore:
    """A folder of measurements.

    Args:
        root: The folder; made where it is not there.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def read(self, variant: Variant, seed: int, settings: Mapping[str, Any]) -> Measurement | None:
        """A stored measurement; None if there is none.

        Raises:
            ValueError: If it was made under other settings, or the file is damaged.
        """
        path = self._path(variant, seed)
        if not path.is_file():
            return None
        try:
            stored = json.loads(path.read_text())
            there, measurement = flatten(stored['settings']), Measurement(**stored['measurement'])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{path} is not a measurement: {error!r}. Delete it; it will be made anew.') from error
        here = flatten(json.loads(json.dumps(settings)))
        differing = [name for name in {**there, **here} if there.get(name) != here.get(name)]
        if differing:
            listed = '\n  '.join(f'{name}: {there.get(name)!r} there, {here.get(name)!r} here' for name in differing)
            raise ValueError(f'{path} was measured under other settings:\n  {listed}\nChoose another --out-dir, delete '
                             'the file, or go back to its settings.')
        return measurement

    def write(self, measurement: Measurement, settings: Mapping[str, Any]) -> None:
        """Store a measurement, with the settings that it was made under."""
        path = self._path(measurement.variant, measurement.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = dict(settings=settings, measurement=asdict(measurement))
        atomic_write(path, json.dumps(content, indent=1, allow_nan=False).encode())

    def write_pictures(self, name: str, seed: int, pictures: Sequence[np.ndarray]) -> None:
        """Store pictures (H, W, 3) or (H, W), uint8, under a variant's name, or :data:`MASKS`."""
        folder = self._pictures(name, seed)
        folder.mkdir(parents=True, exist_ok=True)
        for index, picture in enumerate(pictures):
            atomic_write(folder / f'{index}.png', encode_png(picture))

    def read_pictures(self, name: str, seed: int) -> list[np.ndarray]:
        """The pictures stored under a name."""
        paths = sorted(self._pictures(name, seed).glob('*.png'), key=lambda path: int(path.stem))
        return [np.asarray(Image.open(path)) for path in paths]

    def _path(self, variant: Variant, seed: int) -> Path:
        return self.root / 'measurements' / f'seed_{seed}' / f'{variant.name}.json'

    def _pictures(self, name: str, seed: int) -> Path:
        return self.root / 'samples' / f'seed_{seed}' / name
