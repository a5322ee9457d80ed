"""Fill the prompt cache of a config: ``python tools/encode_prompts.py CONFIG [options]``."""
import argparse
from collections.abc import Sequence

from tool_options import add_config_options, add_device_option, add_shard_option, find_package, shard_of


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Encode every distinct prompt of a config\'s datasets once, into the folder that training and '
        'synthesis read (model.text_encoder.cache_dir). Prompts that are there already are skipped, so a killed run '
        'continues and new data only adds to it.',
        epilog='example: python tools/encode_prompts.py configs/todsynth/CONFIG.py --pretrained '
        'stabilityai/stable-diffusion-3.5-medium')
    parser.add_argument('config', help='config file')
    parser.add_argument('--cache-dir', metavar='DIR', help='cache folder (default: model.text_encoder.cache_dir)')
    parser.add_argument(
        '--pretrained',
        metavar='PATH_OR_HUB_ID',
        help='where the text encoders are, in the diffusers layout (default: prompt_encoder.pretrained)')
    parser.add_argument('--batch-size', type=int, default=8, help='prompts encoded together (default: 8)')
    add_shard_option(parser, 'fill one cache')
    add_device_option(parser)
    add_config_options(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    find_package()
    from mmsynth.synthesis.build import load_config
    from mmsynth.synthesis.encode_prompts import encode_prompts
    from mmsynth.utils.shards import default_device
    print(
        encode_prompts(
            load_config(args.config, args.cfg_options),
            cache_dir=args.cache_dir,
            pretrained=args.pretrained,
            batch_size=args.batch_size,
            shard=shard_of(args),
            device=args.device or default_device()))


if __name__ == '__main__':
    main()
