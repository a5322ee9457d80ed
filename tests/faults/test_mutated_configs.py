"""Configs of a synthesis with a value changed: an image, or an error that names the place, and no half-written pool."""
import shutil
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config
from mutations import examples, no_hang

if TYPE_CHECKING:
    from small_run import SmallRun

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('no_fsync')]


def places(node: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all values in a config."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


@examples(15, 300)
@given(number=st.integers(0, 10_000), kind=st.sampled_from(['replaced', 'replaced', 'missing', 'added']),
       odd=st.sampled_from([None, True, -1, 0, 1, 3, 0.5, float('nan'), '', 'x', [], {}, [None], 'mmsynth.CRFM']))
def test_values_of_a_config(number: int, kind: str, odd: Any, small_run: 'SmallRun', tmp_path: Path,
                            survived: Callable) -> None:
    """Synthesis by it: an image, or an error whose traceback names the key or what it was given to, and no pool."""
    cfg = Config.fromfile(small_run.config_file)
    parts = dict(model=cfg.model.to_dict(), synthesis=cfg.synthesis.to_dict())
    found = list(places(parts))
    path = found[number % len(found)]
    node = parts
    for key in path[:-1]:
        node = node[key]
    if kind == 'added' and isinstance(node, dict):
        node['more'] = odd
    elif kind == 'missing' and isinstance(node, dict):
        del node[path[-1]]
    elif isinstance(node, (dict, list)):
        node[path[-1]] = odd
    else:
        return
    for key in ('model', 'synthesis'):
        cfg.pop(key)
        if key in parts:
            cfg[key] = parts[key]
    root = tmp_path / 'pool'
    shutil.rmtree(root, ignore_errors=True)
    with no_hang(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            pool = small_run.synthesize(root, cfg, limit=1)
        except Exception as error:
            assert not root.exists() or not (root / 'pool.json').exists(), f'{path}: half a pool is left: {error}'
            words = {str(word) for word in (*path, 'more' if kind == 'added' else path[-1])} | {
                str(node.get('type')).rpartition('.')[2] if isinstance(node, dict) else str(path[-2])}
            seen = ''.join(traceback.format_exception(error))
            assert type(error) is not AssertionError and any(word in seen for word in words), (
                f'{".".join(map(str, path))} {kind} {odd!r}: {type(error).__name__}: {error}')
        else:
            assert [pool.load_image(record).dtype for record in pool.records] == [np.uint8]
    survived('mutated: config')
