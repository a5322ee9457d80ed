"""Finding config files that configs name."""
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED = (_PACKAGE / '.mim', _PACKAGE.parent)  # below which ``configs/`` lies: in a wheel, and in a checkout


def find_config(path: str | Path) -> Path:
    """Find a config file: as it is given, or among the configs that are shipped with mmsynth.

    A shipped config names others as ``configs/segmentation/NAME.py``, so it can be inherited from any folder.

    Args:
        path: Absolute, relative to the working folder, or relative to what holds mmsynth's ``configs/``.

    Raises:
        FileNotFoundError: If there is no such file; names the places.
    """
    places = [Path(path), *(folder / path for folder in SHIPPED if not Path(path).is_absolute())]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f'config {path} does not exist; looked for {", ".join(map(str, places))}. Give the '
                            'path of a config file.')
