"""Measure what guidance costs with each way of asking the critic, as ratios to the full decode."""
import argparse
import sys
from pathlib import Path

from mmengine.config import DictAction

ROOT = Path(__file__).resolve().parents[2]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + ' Prints a markdown table: seconds and peak memory of a corrected step, without the '
        'network\'s own pass; on a CPU the seconds are of processor time. Without a config: Stable Diffusion 3\'s '
        'VAE, TAESD3 and DeepLabV3+ (ResNet-50), with random weights, which cost the same.',
        epilog='Example: python tools/analysis_tools/benchmark.py projects/demo/configs/todsynth.py --size 48')
    parser.add_argument('config', nargs='?', help='synthesis config whose codec and critic are measured')
    parser.add_argument('checkpoint', nargs='?', help="the generator's weights; not needed for the figures")
    parser.add_argument('--size', type=int, default=256, help='side of the square images in pixels; default: 256')
    parser.add_argument('--batch-size', type=int, default=1, help='images corrected together; default: 1')
    parser.add_argument('--rounds', type=int, default=5,
                        help='steps of each way, made in turn, of whose times the median counts; default: 5')
    parser.add_argument('--device', help='cpu, cuda, cuda:1 …; default: cuda where there is one')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='override settings of the config')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if (ROOT / 'mmsynth').is_dir() and str(ROOT) not in sys.path:  # a checkout that is not installed
        sys.path.insert(0, str(ROOT))
    import torch
    from benchmarks.guidance import Setting, benchmark, table

    from mmsynth.synthesis.build import load_config
    cfg = None if args.config is None else load_config(args.config, args.cfg_options)
    device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    costs = benchmark(
        Setting(cfg, args.checkpoint, args.size, args.batch_size, device), rounds=args.rounds)
    print(f'{args.size} x {args.size} pixels, batch of {args.batch_size}, {device}, '
          f'{torch.get_num_threads()} threads, torch {torch.__version__}\n\n{table(costs)}')


if __name__ == '__main__':
    main()
