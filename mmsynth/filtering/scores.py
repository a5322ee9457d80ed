"""Scores per class of an evaluation, and the worst classes by them."""
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

_ROW = re.compile(r'^\|(.+)\|\s*$')


def worst_classes(scores: Mapping[str, float], count: int) -> tuple[str, ...]:
    """The classes with the lowest scores, the worst first; of equals the first. NaN (class not evaluated) is left out.

    Raises:
        ValueError: If ``count`` is not between 1 and the number of scores.
    """
    valid = {name: score for name, score in scores.items() if not math.isnan(score)}
    if not 1 <= count <= len(valid):
        raise ValueError(f'`count` of worst classes must be between 1 and {len(valid)}, the number of classes with a '
                         f'score; got {count}.')
    return tuple(sorted(valid, key=lambda name: valid[name])[:count])


def read_scores(path: str | Path, classes: Sequence[str]) -> dict[str, float]:
    """Read each class's IoU from what an evaluation left.

    - JSON: ``{"road": 41.2, ...}``, null for a class that was not evaluated.
    - The same or JSON lines with ``IoU.road`` for keys, also behind a prefix (``consistency/IoU.road``): what
      ``mmsynth.MaskConsistency`` leaves in ``vis_data/scalars.json``. The last value counts.
    - The log of mmseg (``TIMESTAMP.log``), whose ``IoUMetric`` writes each class's IoU into a table there and nowhere
      else. The last table counts.

    Args:
        path: The file.
        classes: Names that must all be there.

    Returns:
        Name → score, in the unit of the file; NaN where a class was not evaluated.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file has no scores, or not for all classes.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'scores {path} do not exist; give a JSON file {{"class": IoU}}, or the log of an '
                                'evaluation by mmseg.')
    text = path.read_text(encoding='utf-8')
    found = _from_json(text) or _from_table(text)
    missing = [name for name in classes if name not in found]
    if missing:
        raise ValueError(f'{path} has no score of {", ".join(missing)}; it must hold the IoU of every class, as JSON '
                         '{"class": IoU} or as the table in the log (TIMESTAMP.log) of an evaluation by mmseg, whose '
                         'scalars.json has the means only.')
    return {name: found[name] for name in classes}


def _from_json(text: str) -> dict[str, float]:
    """Numbers of a JSON object, or of JSON lines; empty if the text is neither."""
    try:
        objects = [json.loads(text)]
    except ValueError:
        try:
            objects = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError:
            return {}
    scores = {}
    for pairs in objects:
        for key, value in pairs.items() if isinstance(pairs, dict) else ():
            name = re.sub(r'^(.*/)?IoU\.', '', key)
            if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
                scores[name] = math.nan if value is None else float(value)
    return scores


def _from_table(text: str) -> dict[str, float]:
    """The column IoU of the last table with the columns Class and IoU; empty if there is none."""
    scores: dict[str, float] = {}
    column = None
    for line in text.splitlines():
        row = _ROW.match(line)
        if row is None:
            continue
        cells = [cell.strip() for cell in row[1].split('|')]
        if cells[0] == 'Class':
            scores, column = {}, cells.index('IoU') if 'IoU' in cells else None
        elif column is not None and column < len(cells):
            scores[cells[0]] = float(cells[column])
    return scores
