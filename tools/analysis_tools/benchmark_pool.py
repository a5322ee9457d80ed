"""Measure what opening a large pool costs, for a training and for a tool, and storing a filter's results."""
import argparse
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from checkout import find_package


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + ' Writes a manifest of so many records (no images) to a temporary folder; builds its '
        'index, which happens once; then opens it as a RatioBatchSampler does, as PoolDataset and as tools do, and '
        'draws from it; at last stores a filter\'s result for every record and opens it once more.',
        epilog='Example: python tools/analysis_tools/benchmark_pool.py --records 1000000')
    parser.add_argument('--records', type=int, default=100_000, help='records in the pool; default: 100000')
    parser.add_argument('--steps', type=int, default=0,
                        help='guided steps in each record, as CRFM leaves them; default: 0')
    parser.add_argument('--inline', action='store_true',
                        help='write these into the manifest, as earlier versions did; default: into traces.jsonl')
    parser.add_argument('--no-filter', action='store_true', help="leave out storing a filter's results")
    parser.add_argument('--dir', type=Path, help='where the temporary folder is made; default: the system\'s')
    return parser.parse_args()


def write_lists(root: Path, records: int, steps: int, inline: bool) -> None:
    """Write a pool's lists and header; a tenth of the samples is dropped by a filter."""
    from mmsynth.pool.manifest import PoolRecord
    numbers = dict(loss_before=0.731264, loss_after=0.702311, wrong_before=0.211, wrong_after=0.2, relative_change=0.1,
                   skipped=0.0)
    trace = [dict(step=step, sigma=1 - step / 23, **numbers) for step in range(steps)]
    guidance = dict(name='CRFM') | (dict(trace=trace) if inline else {})
    line = PoolRecord(
        id='NUMBER', image='img_dir/NUMBER.png', mask='ann_dir/NUMBER.png', source_mask='masks/tile.png',
        prompt='a satellite image of building, land, road, vegetation, water', reference=None, seed=12345678901234567,
        generator=dict(type='TODSynth', config_sha256='0123456789abcdef', weights_sha256='0123456789abcdef'),
        guidance=guidance if steps else None,
        filter=dict(keep='KEEP', valid=0.93, reason='93 % valid'), mask_origin=None).to_json()
    with open(root / 'manifest.jsonl', 'w', encoding='ascii') as file:
        for number in range(records):
            keep = 'false' if number % 10 == 0 else 'true'
            file.write(line.replace('NUMBER', f'{number:012x}').replace('"KEEP"', keep) + '\n')
    if steps and not inline:
        line = json.dumps(dict(id='NUMBER', trace=trace))
        with open(root / 'traces.jsonl', 'w', encoding='ascii') as file:
            file.writelines(line.replace('NUMBER', f'{number:012x}') + '\n' for number in range(records))
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


def build_index(root: str) -> str:
    """Do what the first one does who opens a large pool; its writer usually was the first."""
    from mmsynth.pool.index import LineIndex, describe_trace
    before, start = peak_memory(), time.perf_counter()
    LineIndex(Path(root) / 'manifest.jsonl')
    text = f'of the manifest in {time.perf_counter() - start:.1f} s'
    if (path := Path(root) / 'traces.jsonl').is_file():
        start = time.perf_counter()
        LineIndex(path, describe_trace, unique=False)
        text += f', of the traces in {time.perf_counter() - start:.1f} s'
    return f'{text}; peak memory {peak_memory():.0f} MiB, of it {before:.0f} before'


def open_dataset(root: str) -> str:
    """Open a pool as an mmseg data set of its own, and draw from it."""
    from mmsynth.datasets import PoolDataset
    before, start = peak_memory(), time.perf_counter()
    dataset = PoolDataset(root, [])
    seconds, draws = time.perf_counter() - start, random.Random(0).sample(range(len(dataset)), 1000)
    start = time.perf_counter()
    for number in draws:
        dataset.get_data_info(number)
    return (f'{len(dataset):,} samples in {seconds:.2f} s, {(time.perf_counter() - start) * 1e3:.0f} µs per sample '
            f'drawn; peak memory {peak_memory():.0f} MiB, of it {before:.0f} before')


def open_pool(root: str) -> str:
    """Open a pool as tools do; ask for records, traces, and for ids."""
    from mmsynth.pool import Pool
    before, start = peak_memory(), time.perf_counter()
    pool = Pool.open(root)
    seconds, records = time.perf_counter() - start, pool.records
    draws, start = random.Random(0).sample(range(len(pool)), 1000), time.perf_counter()
    pool.load_trace(records[0])  # which opens their index
    traces, start = time.perf_counter() - start, time.perf_counter()
    for number in draws:
        pool.load_trace(pool.get(records[number].id))
    end = time.perf_counter()
    return (f'{len(pool):,} records in {seconds:.2f} s, its traces in {traces:.2f} s more, then '
            f'{(end - start) * 1e3:.0f} µs per record by number, by id and with its trace; peak memory '
            f'{peak_memory():.0f} MiB, of it {before:.0f} before')


def store_filter(root: str) -> str:
    """Store a filter's result for every record, as tools/filter_pool.py does, but for the images."""
    from dataclasses import replace

    from mmsynth.apis.filter_pool import CHUNK
    from mmsynth.pool import Pool
    from mmsynth.pool.header import read_header
    from mmsynth.pool.records import RecordTable
    from mmsynth.utils.files import FolderLock
    before, start = peak_memory(), time.perf_counter()
    path = Path(root)
    pool = Pool(path, read_header(path), RecordTable(path), FolderLock(path))
    records = pool.records
    for first in range(0, len(records), CHUNK):
        pool.update([replace(record, filter=dict(keep=True, valid=0.9, reason='90 % valid'))
                     for record in records[first:first + CHUNK]])
        if first < len(records) // 2 <= first + CHUNK:
            half = time.perf_counter() - start
    whole = time.perf_counter() - start
    pool.write_kept()
    pool.close()
    return (f'{half:.0f} s for the first half, {whole - half:.0f} s for the second, '
            f'{time.perf_counter() - start - whole:.0f} s to merge them and list what is kept; peak memory '
            f'{peak_memory():.0f} MiB, of it {before:.0f} before')


def peak_memory() -> float:
    """Of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == 'darwin' else 2**10)


def main() -> None:
    args = parse_args()
    find_package()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        write_lists(Path(folder), args.records, args.steps, args.inline)
        size = (Path(folder) / 'manifest.jsonl').stat().st_size
        print(f'{args.records:,} records, manifest of {size / 2**30:.2f} GiB', flush=True)
        opened = [('PoolReader', open_reader), ('PoolDataset', open_dataset), ('Pool.open', open_pool)]
        steps = [('index, once', build_index), *opened]
        if not args.no_filter:
            steps += [("a filter's results", store_filter), *opened]
        for name, measure in steps:
            with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as process:  # memory of its own
                print(f'{name}: {process.submit(measure, folder).result()}', flush=True)


if __name__ == '__main__':
    main()
