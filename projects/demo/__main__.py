"""Run the whole loop on a small set and compare segmentors trained with and without synthetic images."""
import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + ' Trains a generator, synthesizes with and without CRFM, trains a segmentor for each row '
        'of the table, and writes report.html and preview.png.')
    parser.add_argument('--data', type=Path,
                        help='folder with images/, masks/ (8-bit class index) and meta.json (classes, palette); '
                        'default: a land-cover set drawn here')
    parser.add_argument('--generator', choices=['todsynth', 'tisynth'],
                        help='tisynth, steered by mask and reference image: on the drawn set it transfers labels to a '
                        'domain that has none; todsynth, by mask and text, the default with --data and --control')
    parser.add_argument('--out-dir', type=Path, help='where everything goes; default: work_dirs/demo[_GENERATOR][_DATA]'
                        '[_PRESET][_CONTROL][_CODEC][_N_trainings]')
    parser.add_argument('--preset', choices=['standard', 'long', 'smoke'], default='standard',
                        help='how long to train: standard, about six minutes on two cores; long, several times '
                        'that; smoke, three iterations of everything; default: standard')
    parser.add_argument('--control', choices=['triple', 'siamese', 'adapter'],
                        help='how masks steer todsynth: triple, one attention over image, text and mask; siamese, '
                        'a second attention over image and mask; adapter, a cross-attention to the mask; default: '
                        'triple')
    parser.add_argument('--codec', choices=['pca', 'autoencoder'], default='pca',
                        help='what makes latents of images: pca, square patches, fitted in seconds; autoencoder, '
                        'convolutions, fitted in about two minutes, without edges at patches; default: pca')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0],
                        help='run everything once per seed and give mean and spread; default: 0')
    parser.add_argument('--trainings', type=int, default=1,
                        help='train every segmentor of the table so often, with other weights and batches, and give '
                        'the mean: a single training scatters by about a point; default: 1')
    parser.add_argument('--val-pattern', help="images of --data for validation, such as 'tile2_*': name a place where "
                        'images are neighbours; default: a sixth of them, chosen by seed')
    parser.add_argument('--workers', type=int, help='stages at once, one thread each; default: the processors that '
                        'there are')
    parser.add_argument('--smoke', action='store_const', const='smoke', dest='preset', help='same as --preset smoke')
    args = parser.parse_args(arguments)
    args.generator = args.generator or ('todsynth' if args.control else default_generator(args))
    return args


def default_generator(args: argparse.Namespace) -> str:
    """TISynth for the drawn set, which has another domain to transfer to; other data have none."""
    return 'tisynth' if args.data is None else 'todsynth'


def default_out_dir(args: argparse.Namespace) -> Path:
    """A folder of its own for each combination of generator, data, preset, control, codec and trainings."""
    parts = [args.generator if args.generator != default_generator(args) else None,
             args.data and args.data.resolve().name,
             args.preset if args.preset != 'standard' else None, args.control if args.control != 'triple' else None,
             args.codec if args.codec != 'pca' else None,
             f'{args.trainings}_trainings' if args.trainings != 1 else None]
    return Path('work_dirs') / '_'.join(['demo', *filter(None, parts)])


def main() -> None:
    args = parse_args()
    os.environ['OMP_NUM_THREADS'] = '1'  # before torch is imported: small networks, see stages.py
    sys.path.insert(0, str(ROOT))  # for this project; and for mmsynth, in a checkout that is not installed
    from projects.demo.stages import Stages
    workers = args.workers or (1 if args.preset == 'smoke' else None)  # a process takes longer to start than to train
    with Stages(workers) as stages:
        from projects.demo.demo import Demo
        from projects.demo.report import report_demo
        demo = Demo(ROOT / 'projects/demo/configs', args.out_dir or default_out_dir(args), data=args.data,
                    preset=args.preset, generator=args.generator, control=args.control, codec=args.codec,
                    trainings=args.trainings, val_pattern=args.val_pattern)
        results = [demo.run(seed, stages) for seed in args.seeds]
    report_demo(demo, results)


if __name__ == '__main__':
    main()
