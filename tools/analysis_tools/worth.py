"""Measure what synthetic images are worth: mIoU of segmentors trained with and without them, on places never seen."""
import argparse
import os
import sys
from pathlib import Path

from mmengine.config import DictAction

ROOT = Path(__file__).resolve().parents[2]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + ' Per seed and labelled share it trains every generator and critic of the config once, '
        'makes every pool once, and trains a segmentor for every row. A run that was killed continues; a row added to '
        'the config later costs only itself. Writes worth.md and report.html. See docs/en/worth.md.',
        epilog='Example: python tools/analysis_tools/worth.py projects/demo/configs/worth.py --data DATA --out-dir '
        'work_dirs/worth --seeds 0 1 2 3 4')
    parser.add_argument('config', type=Path, help='config with `worth`: generators, critics, segmentors, pools, rows')
    parser.add_argument('--data', type=Path, required=True, help='folder with images/, masks/ and meta.json')
    parser.add_argument('--out-dir', type=Path, required=True, help='folder of the study')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2],
                        help='one whole pipeline each, with another test place; default: 0 1 2')
    parser.add_argument('--places', default=r'^([^_]+)_',
                        help="regular expression on the images' names whose first group is their place; images of one "
                        'place never are in two parts; default: what stands before the first underscore')
    parser.add_argument('--rows', nargs='+', metavar='ROW',
                        help="those of the config's rows to run and report, and only what they need; default: all")
    parser.add_argument('--jobs', type=int, help='cases run side by side, one thread each; default: the cores')
    parser.add_argument('--report-only', action='store_true', help='write the report of what is there')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help="values in the place of the config's, such as worth.shares=[0.25,1]")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    os.environ['OMP_NUM_THREADS'] = '1'  # of the cases, which inherit it
    for path in (ROOT, Path(__file__).parent):
        if str(path) not in sys.path:
            sys.path.insert(0, str(path))
    from worth_study.plan import Study
    from worth_study.report import write_report
    from worth_study.run import run_study
    study = Study.read(args.config, args.cfg_options, args.rows)
    failed = []
    if not args.report_only:
        failed = run_study(study, args.data, args.out_dir, args.seeds, places=args.places, jobs=args.jobs)
    print(write_report(study, args.out_dir, args.seeds))
    print(args.out_dir / 'report.html')
    if failed:
        sys.exit('Failed, and missing above; the same command tries again:\n' + '\n'.join(failed))


if __name__ == '__main__':
    main()
