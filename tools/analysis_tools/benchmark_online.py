"""Measure what mixing a pool into the training data costs: time per iteration, against real images only."""
import argparse
from pathlib import Path

from checkout import find_package
from mmengine.config import DictAction


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + ' Both are measured in one run, in blocks that take turns; prints a markdown table. No '
        'generator is needed: the pool is warm, and a stand-in made of real crops unless one is given.',
        epilog='Example: python tools/analysis_tools/benchmark_online.py projects/demo/configs/segmentor_online.py')
    parser.add_argument('config', help='training config whose data set is a mmsynth.SyntheticAugmentDataset')
    parser.add_argument('--pool', type=Path, help='folder of a pool to mix in; default: a stand-in')
    parser.add_argument('--pool-size', type=int, default=64, help='samples of the stand-in; default: 64')
    parser.add_argument('--pairs', type=int, default=12, help='blocks of each kind; default: 12')
    parser.add_argument('--iterations', type=int, default=20, help='iterations of a block that count; default: 20')
    parser.add_argument('--num-workers', type=int, help="of each data loader; default: the config's")
    parser.add_argument('--batch-size', type=int, help="default: the config's")
    parser.add_argument('--device', help='cpu, cuda, cuda:1 …; default: cuda where there is one')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='override settings of the config')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    find_package()
    import torch
    from benchmarks.online import LoadingSetting, benchmark_online, table

    from mmsynth.synthesis.build import load_config
    from mmsynth.utils.shards import default_device
    cfg = load_config(args.config, args.cfg_options)
    device = args.device or default_device()
    setting = LoadingSetting(cfg, args.pool, args.pool_size, args.num_workers, args.batch_size, device)
    times = benchmark_online(setting, pairs=args.pairs, iterations=args.iterations)
    loader = cfg.train_dataloader
    workers = loader.num_workers if args.num_workers is None else args.num_workers
    print(f'{args.config}: batch of {args.batch_size or loader.batch_size}, {workers} workers, {args.pairs} pairs of '
          f'{args.iterations} iterations, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}\n\n'
          f'{table(times)}')


if __name__ == '__main__':
    main()
