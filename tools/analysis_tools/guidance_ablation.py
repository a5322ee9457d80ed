"""Compare rules of guidance over the steps that they guide: mask consistency, Fréchet distance, what they change."""
import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from checkout import find_package

if TYPE_CHECKING:
    from ablation.plan import TrainedParts

RULES = ('none', 'clamp', 'gradient', 'released', 'relative', 'relative-0.3', 'best-of-n')
PARTS = ('config', 'checkpoint', 'judge_config', 'judge_checkpoint')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + ' All rules have the same masks and noise. A run that was killed '
        'continues; several processes may measure different --seeds in one --out-dir, and a last call with all seeds '
        'reports.',
        usage='%(prog)s CONFIG CHECKPOINT --judge-config C --judge-checkpoint W --out-dir DIR [options]\n'
        '       %(prog)s --demo-dir OUT --out-dir DIR [options]')
    parser.add_argument('config', nargs='?', type=Path,
                        help='config with `model` (a generator), `synthesis` (masks, guidance with its critic) and '
                        '`train_dataloader` (the real images that the synthetic ones are compared with)')
    parser.add_argument('checkpoint', nargs='?', type=Path, help="the generator's weights")
    parser.add_argument('--judge-config', type=Path, metavar='C',
                        help='segmentation config of the judge, which must not be the critic')
    parser.add_argument('--judge-checkpoint', type=Path, metavar='W', help="the judge's weights")
    parser.add_argument('--demo-dir', type=Path, metavar='OUT',
                        help="instead of these four: a demo's --out-dir, whose generator, critic and judge of each "
                        'seed are taken; call from the folder that the demo was called from')
    parser.add_argument('--out-dir', type=Path, required=True, metavar='DIR',
                        help='results.jsonl, table.md, ablation.png, samples.png and all single measurements')
    parser.add_argument('--seeds', type=int, nargs='+',
                        help="seeds of the noise; default: 0, or all of the demo's, each with its own networks")
    parser.add_argument('--rules', nargs='+', choices=RULES, default=list(RULES),
                        help='rules to compare; none is always measured; default: all')
    parser.add_argument('--steps', nargs='+', type=parse_steps, default=[0, 2, 4, 6, 'all'], metavar='N',
                        help="steps guided, from the first on: numbers or 'all'; default: 0 2 4 6 all")
    parser.add_argument('--limit', type=int, help='use only the first LIMIT masks')
    parser.add_argument('--batch-size', type=int,
                        help="images generated together; the released rule depends on it; default: the config's, or 4")
    parser.add_argument('--num-real', type=int, default=1000,
                        help='real images for the Fréchet distance, spread over the training set; default: 1000')
    parser.add_argument('--device', help='cpu, cuda, cuda:1 …; default: cuda where there is one')
    args = parser.parse_args()
    given = [name for name in PARTS if getattr(args, name) is not None]
    if bool(given) == bool(args.demo_dir) or 0 < len(given) < len(PARTS):
        parser.error('give CONFIG CHECKPOINT --judge-config C --judge-checkpoint W, all four, or --demo-dir OUT alone; '
                     f'got {", ".join([*given, *(["demo_dir"] if args.demo_dir else [])]) or "neither"}')
    return args


def parse_steps(text: str) -> int | str:
    if text != 'all' and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number or 'all', got {text!r}")
    return text if text == 'all' else int(text)


def find_parts(args: argparse.Namespace) -> 'list[TrainedParts]':
    """The trained parts that the options name."""
    from ablation.plan import TrainedParts, demo_parts
    if args.demo_dir is not None:
        return demo_parts(args.demo_dir, args.seeds)
    return [TrainedParts(tuple(args.seeds or [0]), *(getattr(args, name) for name in PARTS))]


def main() -> None:
    args = parse_args()
    find_package()
    from ablation.plan import AblationOptions
    from ablation.report import report_ablation
    from ablation.run import run_ablation

    from mmsynth.utils.shards import default_device
    options = AblationOptions(
        rules=args.rules,
        steps=args.steps,
        limit=args.limit,
        batch_size=args.batch_size,
        num_real=args.num_real,
        device=args.device or default_device())
    report_ablation(run_ablation(find_parts(args), args.out_dir, options), args.out_dir)
    print(f'{args.out_dir}: table.md, ablation.png, samples.png, results.jsonl')


if __name__ == '__main__':
    main()
