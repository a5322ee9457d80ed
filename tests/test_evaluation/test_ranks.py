"""All metrics in two real processes: what they say together is what one says alone."""
import json
import subprocess
from pathlib import Path

import pytest
from small_run import ROOT, command

pytestmark = pytest.mark.process

SCRIPT = """
import json, sys
from datetime import timedelta
rank, world, tests, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
sys.path.insert(0, tests)
import numpy as np
import torch
import torch.distributed as dist
from colour_judges import CLASSES, Colours, halves, generated
from mmengine.dataset import DefaultSampler
from mmengine.evaluator import Evaluator
from mmsynth.evaluation import (
    ClassColorSpread,
    ClassHistogram,
    FrechetDistance,
    Judge,
    MaskConsistency,
    SiblingDiversity,
)

torch.set_num_threads(1)
if world > 1:
    dist.init_process_group('gloo', init_method='file://' + store, rank=rank, world_size=world,
                            timeout=timedelta(seconds=120))
rng = np.random.default_rng(0)
masks = halves(0, 1, side=4), halves(1, 2, side=4)
samples = generated(*((rng.integers(0, 255, (4, 4, 3), dtype=np.uint8), masks[n % 2]) for n in range(7)))
real = [torch.from_numpy(rng.integers(0, 255, (3, 4, 4), dtype=np.uint8)) for _ in samples]
judge = Judge(Colours().judge())
evaluator = Evaluator([
    MaskConsistency(judge, guidance={}), FrechetDistance(judge, guidance={}, min_class_samples=2),
    SiblingDiversity(judge, guidance={}), ClassHistogram(), ClassColorSpread(min_pixels=1)])
evaluator.dataset_meta = dict(classes=CLASSES)
indices = list(DefaultSampler(samples, shuffle=False))  # the last one is padded
for start in range(0, len(indices), 3):
    batch = indices[start:start + 3]
    evaluator.process([samples[n] for n in batch], dict(inputs=[real[n] for n in batch]))
print('RESULT', json.dumps(evaluator.evaluate(len(samples))))
if world > 1:
    dist.destroy_process_group()  # a process that ends with its threads running may abort
"""


def start(rank: int, world: int, folder: Path) -> subprocess.Popen:
    line, env = command('-c', SCRIPT, rank, world, ROOT / 'tests', folder / 'store', on_path=True)
    return subprocess.Popen(line, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process: subprocess.Popen) -> dict[str, float]:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(next(line for line in output.splitlines() if line.startswith('RESULT')).removeprefix('RESULT'))


def test_two_ranks_say_what_one_says(tmp_path: Path) -> None:
    alone = result(start(0, 1, tmp_path))
    assert alone['frechet/images'] == 7 and alone['diversity/masks'] == 2 and 'consistency/mIoU' in alone
    ranks = [start(rank, 2, tmp_path) for rank in range(2)]
    for own in [result(process) for process in ranks]:
        assert own.keys() == alone.keys()
        assert all(abs(own[name] - value) < 1e-4 for name, value in alone.items())
