"""Measure how close to its limit a generator's images come by each sampler and number of passes of the network."""
import argparse

from checkout import find_package
from mmengine.config import DictAction


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + ' Without guidance by a critic. Prints a markdown table: root mean square distance in '
        'grey levels to the images of the fastest sampler with 200 steps, from the same noise.',
        epilog='Example: python tools/analysis_tools/compare_samplers.py CONFIG CHECKPOINT --limit 16')
    parser.add_argument('config', help='synthesis config')
    parser.add_argument('checkpoint', help="the generator's weights")
    parser.add_argument('--limit', type=int, default=16, help='masks to generate for; default: 16')
    parser.add_argument('--passes', type=int, nargs='+', default=[6, 12, 23, 46],
                        help='passes of the network per image; default: 6 12 23 46')
    parser.add_argument('--seed', type=int, default=0, help='of the noise; default: 0')
    parser.add_argument('--device', help='cpu, cuda, cuda:1 …; default: cuda where there is one')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='override settings of the config')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    find_package()
    from benchmarks.samplers import compare_samplers, table

    from mmsynth.apis.synthesize import list_requests
    from mmsynth.synthesis.build import build_dataset, build_generator, load_config
    from mmsynth.synthesis.generate import load_sample
    from mmsynth.utils.shards import default_device
    cfg = load_config(args.config, args.cfg_options)
    dataset = build_dataset(cfg.synthesis.dataset)
    generator = build_generator(cfg, args.checkpoint, args.device or default_device())
    requests = list_requests(dataset, args.seed, 1, args.limit)
    data = generator.data_preprocessor(dict(data_samples=[load_sample(dataset, request) for request in requests]))
    distances = compare_samplers(generator, data['data_samples'], [request.seed for request in requests], args.passes)
    print(f'{type(generator).__name__}, {len(requests)} images, seed {args.seed}\n\n{table(distances, args.passes)}')


if __name__ == '__main__':
    main()
