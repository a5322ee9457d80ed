"""Measure what opening a large pool costs a training's reader: seconds and memory."""
import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + ' Writes a manifest of so many records (no images) to a temporary folder, opens it as a '
        'RatioBatchSampler does, and draws from it.',
        epilog='Example: python tools/analysis_tools/benchmark_pool.py --records 1000000')
    parser.add_argument('--records', type=int, default=100_000, help='records in the pool; default: 100000')
    parser.add_argument('--steps', type=int, default=0,
                        help='guided steps in each record, as CRFM leaves them; default: 0')
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


def main() -> None:
    args = parse_args()
    if (ROOT / 'mmsynth').is_dir() and str(ROOT) not in sys.path:  # a checkout that is not installed
        sys.path.insert(0, str(ROOT))
    from mmsynth.datasets.samplers.walk import SyntheticWalk
    from mmsynth.pool.reader import PoolReader
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        write_manifest(Path(folder), args.records, args.steps)
        size = (Path(folder) / 'manifest.jsonl').stat().st_size
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        reader = PoolReader(folder)
        reader.update()
        opened = time.perf_counter()
        walk = SyntheticWalk(0, lambda iterations: 4 * iterations, reader.changes)
        first = [reader.record(number).id for number in walk.numbers(0)]
        drawn = time.perf_counter()
        for iteration in range(1, 1001):
            for number in walk.numbers(iteration):
                reader.record(number)
        end = time.perf_counter()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f'{args.records:,} records, manifest of {size / 2**30:.2f} GiB: opened in {opened - start:.2f} s, first '
          f'batch of {len(first)} after {drawn - opened:.2f} s more, then {(end - drawn) / 4000 * 1e6:.0f} µs per '
          f'record drawn; peak memory {memory / 1024:.0f} MiB, of it {before / 1024:.0f} before')


if __name__ == '__main__':
    main()
