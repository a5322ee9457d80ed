"""Fill the latent cache of a training config: ``python tools/encode_latents.py CONFIG [options]``."""
import argparse

from tool_options import add_config_options, add_device_option, find_package


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Encode every image that a training config can give once, into the folder that training reads '
        '(model.latent_codec.cache_dir): each image, flipped too where the pipeline flips, and the control images of '
        'the masks where they go through the latent codec. What is there already is skipped, so a killed run continues '
        'and new data only adds to it.',
        epilog='example: python tools/encode_latents.py CONFIG.py --num-workers 4')
    parser.add_argument('config', help='config file of a generator\'s training')
    parser.add_argument('--cache-dir', metavar='DIR', help='cache folder (default: model.latent_codec.cache_dir)')
    parser.add_argument('--batch-size', type=int, default=4, help='images encoded together (default: 4)')
    parser.add_argument('--num-workers', type=int, default=0, help='processes that load images (default: 0)')
    add_device_option(parser)
    add_config_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    find_package()
    from mmsynth.synthesis.build import load_config
    from mmsynth.synthesis.encode_latents import encode_latents
    from mmsynth.utils.shards import default_device
    print(
        encode_latents(
            load_config(args.config, args.cfg_options),
            cache_dir=args.cache_dir,
            batch_size=args.batch_size,
            num_workers=args.num_workers,
            device=args.device or default_device()))


if __name__ == '__main__':
    main()
