"""Measure what guidance costs with each way of asking the critic, or what a generator costs beside diffusers' own."""
import argparse
import sys

from checkout import find_package
from mmengine.config import DictAction


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + ' Prints markdown tables. By default: seconds and peak memory of a corrected step, '
        'without the network\'s own pass, for each way of asking the critic; without a config those of Stable '
        'Diffusion 3\'s VAE, TAESD3 and DeepLabV3+ (ResNet-50). With --generator: a pass, a training step, an image '
        'and the parts of a corrected step, beside diffusers\' own network of that shape. Weights are random, which '
        'cost the same; on a CPU the seconds are of processor time.',
        epilog='Examples: python tools/analysis_tools/benchmark.py projects/demo/configs/todsynth.py --size 48; '
        'python tools/analysis_tools/benchmark.py --generator todsynth --shape full --depth 2')
    parser.add_argument('config', nargs='?', help='synthesis config whose codec and critic are measured')
    parser.add_argument('checkpoint', nargs='?', help="the generator's weights; not needed for the figures")
    parser.add_argument('--generator', choices=('todsynth', 'tisynth'), help='measure this generator')
    parser.add_argument('--shape', choices=('demo', 'mid', 'full'), default='demo',
                        help='its size: the demo\'s, one between, or the published one; default: demo')
    parser.add_argument('--depth', type=int, help='with --generator: only so many transformer blocks, or layers per '
                        'level of the U-Net; default: all')
    parser.add_argument('--count', action='store_true', help='with --generator: count parameters and operations only')
    parser.add_argument('--presets', action='store_true', help='with --generator: only whole images, as released, with '
                        'every step guided, and in the fast preset of docs/en/samplers.md')
    parser.add_argument('--size', type=int, help='side of the square images in pixels; default: 256')
    parser.add_argument('--batch-size', type=int, help='images corrected together; default: 1')
    parser.add_argument('--rounds', type=int, default=5,
                        help='steps of each way, made in turn, of whose times the median counts; default: 5')
    parser.add_argument('--device', help='cpu, cuda, cuda:1 …; default: cuda where there is one')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='override settings of the config')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    find_package()
    _check_options(args)
    import torch

    from mmsynth.utils.shards import default_device
    device = args.device or default_device()
    where = f'{device}, {torch.get_num_threads()} threads, torch {torch.__version__}'
    print(_generator_tables(args, device, where) if args.generator else _guidance_table(args, device, where))


def _check_options(args: argparse.Namespace) -> None:
    """Refuse options that have no effect beside the others."""
    guidance = [f'`{name}`' for name in ('config', 'size', 'batch_size', 'cfg_options') if getattr(args, name)]
    generator = [f'`--{name}`' for name in ('depth', 'count', 'presets') if getattr(args, name)] + (
        ['`--shape`'] if args.shape != 'demo' else [])
    if args.generator and guidance:
        sys.exit(f'{", ".join(guidance)} has no effect with `--generator`, whose `--shape` says all; leave it out.')
    if not args.generator and generator:
        sys.exit(f'{", ".join(generator)} is for a generator; add `--generator todsynth` or tisynth.')


def _guidance_table(args: argparse.Namespace, device: str, where: str) -> str:
    from benchmarks.guidance import Setting, benchmark, table

    from mmsynth.synthesis.build import load_config
    cfg = None if args.config is None else load_config(args.config, args.cfg_options)
    size = 256 if args.size is None else args.size
    batch_size = 1 if args.batch_size is None else args.batch_size
    costs = benchmark(Setting(cfg, args.checkpoint, size, batch_size, device), rounds=args.rounds)
    return f'{size} x {size} pixels, batch of {batch_size}, {where}\n\n{table(costs)}'


def _generator_tables(args: argparse.Namespace, device: str, where: str) -> str:
    from benchmarks.generator import count_generator, count_table, tables, time_generator
    from benchmarks.presets import presets_table, time_presets
    from benchmarks.shapes import load_shape
    shape = load_shape(args.generator, args.shape)
    if args.depth is not None:
        shape = shape.at_depth(args.depth)
    elif args.shape == 'full' and not device.startswith('cuda') and not args.count:
        sys.exit('`--shape full` takes hours and tens of GiB on a CPU: give `--depth`, of which 1 is the least, or '
                 '`--count`.')
    what = f'{args.generator}, {args.shape} shape, {shape.size} x {shape.size} pixels, batch of 1'
    if args.depth is not None:
        what += f', depth {args.depth}'
    if args.presets:
        return f'{what}, {args.rounds} rounds, {where}\n\n' + presets_table(
            shape.generator, time_presets(shape, rounds=args.rounds, device=device))
    counts = count_table(count_generator(shape))
    if args.count:
        return f'{what}\n\n{counts}'
    seconds = time_generator(shape, rounds=args.rounds, device=device)
    return (f'{what}, {shape.num_steps} sampling steps, {args.rounds} rounds, {where}\n\n{tables(seconds)}\n\n{counts}')


if __name__ == '__main__':
    main()
