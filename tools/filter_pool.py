"""Filter a pool: which pixels and which samples a segmentor trusts."""
import argparse

from tool_options import add_config_options, add_device_option, add_shard_option, find_package, shard_of


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + " The generated labels stay; filtered/ (with soft weights also weights/) and kept.txt, "
        'an ann_file for mmseg, come beside them. A run that was killed continues where it was when called again.',
        epilog='The config names the filter: synthesis = dict(filter=dict(type=\'mmsynth.ClassLossFilter\', '
        "segmentor=dict(type='mmsynth.SegmentorCritic', config=..., checkpoint=...), class_losses='FILE.json')). "
        'Example: python tools/filter_pool.py work_dirs/pool projects/demo/configs/todsynth.py --cfg-options '
        'synthesis.filter.mode=soft')
    parser.add_argument('pool', help='folder of the pool')
    parser.add_argument('config', help='config with `synthesis.filter`; if its `model` is a generator, that '
                        'must have generated the pool')
    parser.add_argument('--overwrite', action='store_true',
                        help='replace results of other filters, and of labels that were changed since')
    parser.add_argument('--batch-size', type=int, default=8,
                        help='images read together; changes the losses by rounding at most; default: 8')
    add_shard_option(parser, 'filter one pool; the last to finish writes kept.txt')
    add_device_option(parser)
    add_config_options(parser, 'synthesis.filter.margin=1.5')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    find_package()
    from rich.console import Console

    from mmsynth.apis.filter_pool import build_filter, filter_pool, generator_of
    from mmsynth.filtering.summary import class_table, sample_table
    from mmsynth.synthesis.build import load_config
    from mmsynth.utils.shards import default_device
    cfg = load_config(args.config, args.cfg_options)
    report = filter_pool(
        args.pool,
        build_filter(cfg, args.device or default_device()),
        generator=generator_of(cfg),
        overwrite=args.overwrite,
        batch_size=args.batch_size,
        shard=shard_of(args))
    if report.kept is not None:
        for table in (class_table(report.pool), sample_table(report.pool)):
            Console().print(table)
    print(report)


if __name__ == '__main__':
    main()
