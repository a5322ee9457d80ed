"""The manifest of a data set and the lists of a pool with anything changed: a named error, or whole samples."""
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import dump, edits, examples, json_edits, no_hang, nothing_runs
from pool_samples import CLASSES, filter_entry, write_pool

from mmsynth.datasets import ManifestDataset
from mmsynth.pool import Pool
from mmsynth.pool.reader import FileCheck
from mmsynth.pool.rounds import Round, read_rounds, write_rounds

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('no_fsync')]


# ---- the manifest of masks


def load_all(root: Path, name: str) -> None:
    """Every mask of a manifest, or an error that names the manifest or one of its masks."""
    with no_hang(), nothing_runs():
        try:
            dataset = ManifestDataset(data_root=str(root), ann_file=name, metainfo=dict(classes=CLASSES),
                                      pipeline=[dict(type='mmsynth.LoadSegMap')])
            samples = [dataset[index] for index in range(len(dataset))]
        except (ValueError, FileNotFoundError) as error:
            assert str(root) in str(error), error
            return
    for sample in samples:
        assert Path(os.path.realpath(sample['seg_map_path'])).is_relative_to(root)
        assert sample['gt_seg_map'].shape == (8, 8) and set(np.unique(sample['gt_seg_map'])) <= {0, 1, 2, 255}
        assert isinstance(sample.get('prompt', ''), str)


@examples(30, 2000)
@given(edit=edits())
def test_bytes_of_a_manifest_of_masks(edit: Callable, masks: Path, survived: Callable) -> None:
    (masks / 'edited.jsonl').write_bytes(edit((masks / 'list.jsonl').read_bytes()))
    load_all(masks, 'edited.jsonl')
    survived('mutated: manifest of masks')


@examples(30, 1500)
@given(edit=json_edits())
def test_values_of_a_manifest_of_masks(edit: Callable, masks: Path, survived: Callable) -> None:
    lines = [json.loads(line) for line in (masks / 'list.jsonl').read_text().splitlines()]
    (masks / 'edited.jsonl').write_bytes(dump(edit(lines)))
    load_all(masks, 'edited.jsonl')
    survived('mutated: manifest of masks')


# ---- the lists of a pool


@pytest.fixture(scope='module')
def pool_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool with traces, results of a filter, and rounds."""
    root = tmp_path_factory.mktemp('pools') / 'pool'
    trace = [dict(step=0, loss_before=1.5, loss_after=1.25, skipped=0)]
    filtered = np.zeros((16, 24), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        write_pool(root, [dict(guidance=dict(name='CRFM', trace=trace), filter=filter_entry(index), filtered=filtered)
                          for index in range(3)])
    write_rounds(root, [Round(0, 2, ('s0', 's1')), Round(1, 4, ('s2', ), ('s0', ))])
    return root


def check_pool(root: Path) -> None:
    """Read a pool, let a writer open it, and read it again; each gives whole samples or names a file of it."""
    pictures = sum(path.suffix == '.png' for path in root.rglob('*'))

    def read() -> None:
        pool = Pool.open(root)
        for record in pool.records:
            for path in record.files:
                assert Path(os.path.realpath(root / path)).is_relative_to(root)
            pool.load_trace(record)
            if FileCheck(root, len(pool.classes)).fault(record) is None:
                assert pool.load_image(record).shape == (16, 24, 3) and pool.load_mask(record).shape == (16, 24)
        read_rounds(root)

    for step in (read, lambda: Pool.resume(root).close(), read):
        with no_hang(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try:
                step()
            except (ValueError, FileNotFoundError) as error:
                assert str(root) in str(error), error
            else:
                if step is not read:  # what a writer has opened is sound
                    pool = Pool.open(root)
                    assert all((root / path).is_file() for record in pool.records for path in record.files)
    assert sum(path.suffix == '.png' for path in root.rglob('*')) == pictures  # no image is ever lost


@examples(30, 1000)
@given(edit=edits(), name=st.sampled_from(['manifest.jsonl', 'pool.json', 'traces.jsonl', 'rounds.jsonl']))
def test_bytes_of_a_pools_lists(edit: Callable, name: str, pool_folder: Path, survived: Callable) -> None:
    root = copy_of(pool_folder)
    (root / name).write_bytes(edit((root / name).read_bytes()))
    check_pool(root)
    survived('mutated: lists of a pool')


@examples(30, 1000)
@given(edit=json_edits(), name=st.sampled_from(['manifest.jsonl', 'pool.json', 'traces.jsonl', 'rounds.jsonl']))
def test_values_of_a_pools_lists(edit: Callable, name: str, pool_folder: Path, survived: Callable) -> None:
    root = copy_of(pool_folder)
    text = (root / name).read_text()
    if name == 'pool.json':
        (root / name).write_text(json.dumps(edit(json.loads(text))))
    else:
        (root / name).write_bytes(dump(edit([json.loads(line) for line in text.splitlines()])))
    check_pool(root)
    survived('mutated: lists of a pool')


def copy_of(folder: Path) -> Path:
    shutil.rmtree(folder.parent / 'copy', ignore_errors=True)
    return Path(shutil.copytree(folder, folder.parent / 'copy'))
