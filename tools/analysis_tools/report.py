"""Write the report of a finished pool anew: one HTML file with samples, class balance, filter, guidance, measures."""
import argparse

from checkout import find_package


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + ' Synthesis writes one too, but knows no judge and no real set.',
        epilog='Example: python tools/analysis_tools/report.py work_dirs/pool --judge-config judge.py '
        '--judge-checkpoint judge.pth --real-config judge.py')
    parser.add_argument('pool', help='folder of the pool')
    parser.add_argument('--judge-config', metavar='C',
                        help='segmentation config of a segmentor that did not guide; its readings are shown beside the '
                        'samples')
    parser.add_argument('--judge-checkpoint', metavar='W', help="the judge's weights")
    real = parser.add_mutually_exclusive_group()
    real.add_argument('--real-config', metavar='C',
                      help='segmentation config whose train_dataloader has the real set, for the class balance')
    real.add_argument('--real-masks', metavar='DIR',
                      help='the same from a folder of masks: PNG files of class ids, 255 unlabelled')
    parser.add_argument('--metrics', metavar='FILE',
                        help='JSON file with measures of the pool; default: metrics.json in the pool, if there is one')
    parser.add_argument('--max-samples', type=int, default=16, help='samples shown; default: 16')
    parser.add_argument('--out', metavar='FILE', help='the HTML file; default: report.html in the pool')
    args = parser.parse_args()
    if (args.judge_config is None) != (args.judge_checkpoint is None):
        parser.error('--judge-config and --judge-checkpoint go together: give both, or neither')
    return args


def main() -> None:
    args = parse_args()
    find_package()
    from mmsynth.apis.report import write_report
    path = write_report(
        args.pool,
        args.out,
        judge_config=args.judge_config,
        judge_checkpoint=args.judge_checkpoint,
        real_config=args.real_config,
        real_masks=args.real_masks,
        metrics=args.metrics,
        max_samples=args.max_samples)
    print(f'report: {path}')


if __name__ == '__main__':
    main()
