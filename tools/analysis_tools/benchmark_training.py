"""Measure where the time of a generator's training iteration goes: data, encoding, network, optimizer."""
import argparse

from checkout import find_package
from mmengine.config import DictAction


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + ' Trains by the config for a moment, saves nothing, and prints a markdown table: median '
        '[quartiles] over the iterations, of the clock. Read it before buying a faster disk, more workers or '
        'tools/encode_latents.py.',
        epilog='Example: python tools/analysis_tools/benchmark_training.py CONFIG --cfg-options '
        'train_dataloader.num_workers=4')
    parser.add_argument('config', help="config of a generator's training")
    parser.add_argument('--iterations', type=int, default=50, help='iterations that count; default: 50')
    parser.add_argument('--warmup', type=int, default=10, help='iterations before them; default: 10')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='override settings of the config')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    find_package()
    from benchmarks.training import time_training, training_table

    from mmsynth.synthesis.build import load_config
    cfg = load_config(args.config, args.cfg_options)
    seconds = time_training(cfg, args.iterations, args.warmup)
    print(f'{cfg.model.type}, batch of {cfg.train_dataloader.get("batch_size")}, {args.iterations} iterations\n\n'
          f'{training_table(seconds)}')


if __name__ == '__main__':
    main()
