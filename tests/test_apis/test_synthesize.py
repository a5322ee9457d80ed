"""Synthesis of a pool: what stands in it, what it does not depend on, and what a killed run leaves to the next."""
import json
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_run import CLASSES, GUIDED_STEPS, NAMES, PALETTE, ROOT, SIDE, SmallRun, command

from mmsynth.apis.synthesize import list_requests
from mmsynth.pool import Pool
from mmsynth.utils import derive_seed


def images(pool: Pool) -> dict[str, np.ndarray]:
    """Record id → image, as signed numbers that can be subtracted."""
    return {record.id: pool.load_image(record).astype(int) for record in pool.records}


def largest_difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> int:
    assert one.keys() == other.keys()
    return max(abs(one[name] - other[name]).max() for name in one)


@pytest.fixture(scope='module')
def guided(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return small_run.synthesize(tmp_path_factory.mktemp('pools') / 'guided')


@pytest.fixture(scope='module')
def plain(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return small_run.synthesize(tmp_path_factory.mktemp('pools') / 'plain', guidance='none')


# ---- what stands in a pool


def test_pool_holds_one_image_per_mask(guided: Pool) -> None:
    assert [record.id for record in guided.records] == [f'masks/{name}' for name in NAMES]
    assert guided.classes == CLASSES and guided.palette == PALETTE
    for record in guided.records:
        image = guided.load_image(record)
        assert image.shape == (SIDE, SIDE, 3) and image.dtype == np.uint8 and image.std() > 0
    assert (guided.root / 'preview.png').stat().st_size and (guided.root / 'report.html').stat().st_size


def test_pool_masks_equal_their_sources(guided: Pool, small_run: SmallRun) -> None:
    for name, record in zip(NAMES, guided.records):
        source = small_run.data / 'masks' / f'{name}.png'
        assert record.source_mask == str(source)
        assert np.array_equal(guided.load_mask(record), np.asarray(Image.open(source)))


def test_records_say_where_samples_come_from(guided: Pool, plain: Pool) -> None:
    for record in guided.records:
        assert record.seed == derive_seed(0, record.id, 0)
        assert record.prompt.startswith('a satellite image of ')
        assert record.generator['type'] == 'TODSynth'
        assert len(record.generator['config_sha256']) == len(record.generator['weights_sha256']) == 16
        assert record.generator == guided.settings['generator']
        assert record.guidance['name'] == 'CRFM'
        assert [step['step'] for step in guided.load_trace(record)] == list(range(GUIDED_STEPS))
    assert len({record.seed for record in guided.records}) == len(NAMES)
    assert all(record.guidance is None for record in plain.records)
    assert guided.settings['guidance']['settings']['steps'] == GUIDED_STEPS and plain.settings['guidance'] is None


def test_guidance_lowers_the_critics_loss_and_changes_images(guided: Pool, plain: Pool) -> None:
    steps = [step for record in guided.records for step in guided.load_trace(record)]
    assert all(step['skipped'] == 0 and step['relative_change'] > 0 for step in steps)
    assert np.mean([step['loss_after'] - step['loss_before'] for step in steps]) < 0
    assert largest_difference(images(guided), images(plain)) > 1


# ---- what it does not depend on


def test_guidance_of_no_steps_is_no_guidance(small_run: SmallRun, plain: Pool, tmp_path: Path) -> None:
    idle = small_run.synthesize(tmp_path / 'pool', small_run.config(synthesis__guidance__steps=0), guidance='crfm')
    assert largest_difference(images(idle), images(plain)) == 0
    assert [idle.load_trace(record) for record in idle.records] == [[]] * len(NAMES)


@pytest.mark.parametrize('batch_size', [1, 3])
def test_images_do_not_depend_on_the_batch(small_run: SmallRun, guided: Pool, tmp_path: Path, batch_size: int) -> None:
    other = small_run.synthesize(tmp_path / 'pool', batch_size=batch_size)
    assert largest_difference(images(other), images(guided)) <= 1  # a value may round the other way


def test_another_seed_gives_other_images(small_run: SmallRun, plain: Pool, tmp_path: Path) -> None:
    other = images(small_run.synthesize(tmp_path / 'pool', guidance='none', seed=1))
    assert all(np.abs(image - other[name]).max() > 1 for name, image in images(plain).items())


def test_masks_of_several_sizes_are_generated(small_run: SmallRun, tmp_path: Path) -> None:
    lines = []
    for name, size in dict(first=(16, 16), wide=(16, 24), last=(16, 16)).items():
        Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / f'{name}.png')
        lines.append(json.dumps(dict(source=f'{name}.png')))
    (tmp_path / 'masks.jsonl').write_text('\n'.join(lines))
    cfg = small_run.config(synthesis__dataset__data_root=str(tmp_path), synthesis__dataset__ann_file='masks.jsonl',
                           synthesis__dataset__meta_file=str(small_run.data / 'meta.json'))
    pool = small_run.synthesize(tmp_path / 'pool', cfg)
    assert [pool.load_image(record).shape for record in pool.records] == [(16, 16, 3), (16, 24, 3), (16, 16, 3)]


# ---- several images per mask, limit, and more of both later


def test_several_images_per_mask_differ(small_run: SmallRun, plain: Pool, tmp_path: Path) -> None:
    pool = small_run.synthesize(tmp_path / 'pool', guidance='none', num_per_mask=3, limit=2)
    assert [record.id for record in pool.records] == ['masks/a', 'masks/b', 'masks/a~2', 'masks/b~2', 'masks/a~3',
                                                      'masks/b~3']
    generated = images(pool)
    assert np.array_equal(generated['masks/a'], images(plain)['masks/a'])
    assert all(np.abs(generated['masks/a'] - generated[f'masks/a~{repeat}']).max() > 1 for repeat in (2, 3))
    assert len({pool.load_mask(record).tobytes() for record in pool.records}) == 2
    assert len({record.seed for record in pool.records}) == 6


def test_a_pool_can_grow(small_run: SmallRun, tmp_path: Path) -> None:
    first = small_run.synthesize(tmp_path / 'pool', guidance='none', limit=1)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / 'pool' / 'img_dir').iterdir()}
    grown = small_run.synthesize(tmp_path / 'pool', guidance='none', limit=2, num_per_mask=2)
    assert sorted(images(grown)) == ['masks/a', 'masks/a~2', 'masks/b', 'masks/b~2']
    assert grown.records[0] == first.records[0] and all(path.stat().st_mtime_ns == t for path, t in times.items())
    whole = small_run.synthesize(tmp_path / 'whole', guidance='none', limit=2, num_per_mask=2)
    assert largest_difference(images(grown), images(whole)) <= 1
    smaller = small_run.synthesize(tmp_path / 'pool', guidance='none', limit=1)
    assert len(smaller) == 4  # asking for less takes nothing away


def test_repeats_do_not_collide_with_masks_listed_twice(small_run: SmallRun) -> None:
    from mmsynth.datasets import ManifestDataset
    listed = small_run.data / 'synthesis.jsonl'
    again = small_run.folder / 'listed_thrice.jsonl'
    again.write_text((listed.read_text().splitlines()[0] + '\n') * 3)
    dataset = ManifestDataset(ann_file=str(again), data_root=str(small_run.data))
    requests = list_requests(dataset, seed=0, num_per_mask=3)
    assert len({request.id for request in requests}) == len({request.seed for request in requests}) == 9


# ---- killed, and called again


def test_a_killed_run_continues(small_run: SmallRun, tmp_path: Path) -> None:
    """Many sampling steps, so that the tool is far from its end when it is killed."""
    line, env = command(
        ROOT / 'tools' / 'synthesize.py', small_run.config_file, small_run.generator, '--out-dir', tmp_path / 'pool',
        '--guidance', 'none', '--num-per-mask', 4, '--batch-size', 1, '--device', 'cpu', '--cfg-options',
        'model.num_steps=100')
    with (tmp_path / 'log').open('w') as log:
        process = subprocess.Popen(line, env=env, cwd=tmp_path, stdout=log, stderr=log)
        try:
            done_before = wait_for_samples(process, tmp_path / 'pool', at_least=3)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == -signal.SIGKILL, (tmp_path / 'log').read_text()
    assert len(Pool.open(tmp_path / 'pool')) in (done_before, done_before + 1)
    cfg, options = small_run.config(model__num_steps=100), dict(guidance='none', num_per_mask=4, batch_size=16)
    pool, whole = (small_run.synthesize(tmp_path / name, cfg, **options) for name in ('pool', 'whole'))
    assert len(pool) == 4 * len(NAMES) > done_before
    assert [record.id for record in pool.records] == [record.id for record in whole.records]
    assert largest_difference(images(pool), images(whole)) <= 1
    for folder in ('img_dir', 'ann_dir'):
        assert {path.name for path in (pool.root / folder).iterdir()} == {
            path.name for path in (whole.root / folder).iterdir()}


def wait_for_samples(process: subprocess.Popen, root: Path, at_least: int, seconds: float = 240) -> int:
    """Wait until a running tool has stored so many samples; how many it has."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        manifest = root / 'manifest.jsonl'
        count = manifest.read_text().count('\n') if manifest.is_file() else 0
        if count >= at_least:
            return count
        time.sleep(0.005)
    raise AssertionError(f'no samples within {seconds} s; the tool ended with {process.poll()}')
