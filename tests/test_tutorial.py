"""The tutorial notebook: its cells from top to bottom with short trainings, and what of it is committed."""
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_notebook import code_cells
from small_run import ROOT, run

from mmsynth.datasets import PoolDataset
from mmsynth.pool import Pool

NOTEBOOK = ROOT / 'docs' / 'en' / 'tutorial.ipynb'
SHORT = dict(NUM_LABELLED=3, NUM_VAL=2, NUM_MASKS=4, GENERATOR_ITERS=30, SEGMENTOR_ITERS=30, NUM_STEPS=3, NUM_SHOWN=2)


@pytest.mark.slow
@pytest.mark.process
def test_it_runs_from_top_to_bottom(tmp_path: Path) -> None:
    overrides = SHORT | dict(WORK_DIR=str(tmp_path / 'work'))
    output = run(ROOT / 'tests' / 'run_notebook.py', NOTEBOOK, json.dumps(overrides), cwd=tmp_path, on_path=True)
    assert re.search(r'real only: +[\d.]+ %\n +real \+ synthetic: +[\d.]+ %', output)
    pool = Pool.open(tmp_path / 'work' / 'pool')
    assert len(pool) == 4 and all(len(pool.load_trace(record)) > 0 for record in pool.records)
    assert len(PoolDataset(str(pool.root), [])) == 4
    pictures = [np.asarray(Image.open(path)) for path in sorted(tmp_path.glob('cell-*.png'))]
    assert len(pictures) == 3 and all(len(np.unique(picture.reshape(-1, 3), axis=0)) > 100 for picture in pictures)
    assert not (NOTEBOOK.parent / 'work_dirs').exists()


def test_what_is_committed_is_small_and_whole() -> None:
    """Outputs are those of one run from top to bottom, and hold nothing of the machine that it ran on."""
    text = NOTEBOOK.read_text(encoding='utf-8')
    assert len(text) < 500_000 and not re.search(r'/root|/home|/tmp|Traceback', text)
    cells = code_cells(NOTEBOOK)
    assert [cell['execution_count'] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell['outputs']]
    assert not [output for output in outputs if output.get('name') == 'stderr' or output['output_type'] == 'error']
    assert sum('image/png' in output.get('data', {}) for output in outputs) == 3


def test_its_links_lead_somewhere() -> None:
    text = NOTEBOOK.read_text(encoding='utf-8')
    links = [link for link in re.findall(r'\]\(([^)#]+)\)', text) if not link.startswith('http')]
    assert len(links) > 5 and [link for link in links if not (NOTEBOOK.parent / link).exists()] == []
