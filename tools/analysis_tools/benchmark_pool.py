"""Measure what opening a large pool costs, for a training and for a tool: seconds and memory."""
import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + ' Writes a manifest of so many records (no images) to a temporary folder; opens it as a '
        'RatioBatchSampler does and draws from it, without and with the index of a closed pool, then as '
        'PoolDataset and as tools do.',
        epilog='Example: python tools/analysis_tools/benchmark_pool.py --records 1000000')
    parser.add_argument('--records', type=int, default=100_000, help='records in the pool; default: 100000')
    parser.add_argument('--steps', type=int, default=0,
                        help='guided steps in each record, as CRFM leaves them; default: 0')
    parser.add_argument('--reader-only', action='store_true',
                        help='leave out PoolDataset and Pool.open, which take much memory')
    parser.add_argument('--dir', type=Path, help='where the temporary folder is made; default: the system\'s')
    return parser.parse_args()


def write_manifest(root: Path, records: int, steps: int) -> None:
    """Write a pool's manifest and header; a tenth of the samples is dropped by a filter."""
    from mmsynth.pool.manifest import PoolRecord
    numbers = dict(loss_before=0.731264, loss_after=0.702311, wrong_before=0.211, wrong_after=0.2, relative_change=0.1,
                   skipped=0.0)
    trace = [dict(step=step, sigma=1 - step / 23, **numbers) for step in range(steps)]
    line = PoolRecord(
        id='NUMBER', image='img_dir/NUMBER.png', mask='ann_dir/NUMBER.png', source_mask='masks/tile.png',
        prompt='a satellite image of building, land, road, vegetation, water', reference=None, seed=12345678901234567,
        generator=dict(type='TODSynth', config_sha256='0123456789abcdef', weights_sha256='0123456789abcdef'),
        guidance=dict(name='CRFM', trace=trace) if steps else None,
        filter=dict(keep='KEEP', valid=0.93, reason='93 % valid'), mask_origin=None).to_json()
    with open(root / 'manifest.jsonl', 'w', encoding='ascii') as file:
        for number in range(records):
            keep = 'false' if number % 10 == 0 else 'true'
            file.write(line.replace('NUMBER', f'{number:012x}').replace('"KEEP"', keep) + '\n')
    (root / 'pool.json').write_text(json.dumps(dict(settings={}, classes=['a'], palette=[[0, 0, 0]], format_version=1)))


def open_reader(root: str) -> str:
    """Open a pool as a RatioBatchSampler does, and draw from it."""
    from mmsynth.datasets.samplers.walk import SyntheticWalk
    from mmsynth.pool.reader import PoolReader
    before, start = peak_memory(), time.perf_counter()
    reader = PoolReader(root)
    reader.update()
    opened = time.perf_counter()
    walk = SyntheticWalk(0, lambda iterations: 4 * iterations, reader.changes)
    first = [reader.record(number).id for number in walk.numbers(0)]
    drawn = time.perf_counter()
    for iteration in range(1, 1001):
        for number in walk.numbers(iteration):
            reader.record(number)
    end = time.perf_counter()
    return (f'opened in {opened - start:.2f} s, first batch of {len(first)} after {drawn - opened:.2f} s more, then '
            f'{(end - drawn) / 4000 * 1e6:.0f} µs per record drawn; peak memory {peak_memory():.0f} MiB, of it '
            f'{before:.0f} before')


def save_index(root: str) -> str:
    """Do what the writer of a large pool does when it closes it."""
    from mmsynth.pool.reader import ManifestIndex
    start = time.perf_counter()
    ManifestIndex(Path(root) / 'manifest.jsonl').save()
    return f'written in {time.perf_counter() - start:.2f} s'


def open_dataset(root: str) -> str:
    """Open a pool as an mmseg data set of its own, whose list of files the host keeps in memory."""
    from mmsynth.datasets import PoolDataset
    before, start = peak_memory(), time.perf_counter()
    count = len(PoolDataset(root, []))
    seconds = time.perf_counter() - start
    return f'{count:,} samples in {seconds:.1f} s; peak memory {peak_memory():.0f} MiB, of it {before:.0f} before'


def open_pool(root: str) -> str:
    """Open a pool as tools do, with all records in memory."""
    from mmsynth.pool import Pool
    before, start = peak_memory(), time.perf_counter()
    count = len(Pool.open(root))
    seconds = time.perf_counter() - start
    return f'{count:,} records in {seconds:.1f} s; peak memory {peak_memory():.0f} MiB, of it {before:.0f} before'


def peak_memory() -> float:
    """Of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == 'darwin' else 2**10)


def main() -> None:
    args = parse_args()
    if (ROOT / 'mmsynth').is_dir() and str(ROOT) not in sys.path:  # a checkout that is not installed
        sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        write_manifest(Path(folder), args.records, args.steps)
        size = (Path(folder) / 'manifest.jsonl').stat().st_size
        print(f'{args.records:,} records, manifest of {size / 2**30:.2f} GiB', flush=True)
        steps = [('PoolReader, which reads the manifest', open_reader), ('index', save_index),
                 ('PoolReader with the index', open_reader)]
        if not args.reader_only:
            steps += [('PoolDataset', open_dataset), ('Pool.open', open_pool)]
        for name, measure in steps:
            with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as process:  # memory of its own
                print(f'{name}: {process.submit(measure, folder).result()}', flush=True)


if __name__ == '__main__':
    main()
