"""Measure a segmentor's class-wise mean losses on real data, for the pixel filter."""
import argparse
from pathlib import Path

from tool_options import add_config_options, add_device_option, find_package


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + ' The file is what `class_losses` of mmsynth.ClassLossFilter takes.',
        epilog='Example: python tools/fit_class_loss.py projects/demo/configs/critic.py work_dirs/critic/iter_600.pth '
        '--out work_dirs/class_losses.json')
    parser.add_argument('config', help='config of the segmentor, with the dataloader of the real data')
    parser.add_argument('checkpoint', help="the segmentor's weights")
    parser.add_argument('--out', required=True, metavar='FILE.json', help='file to write')
    parser.add_argument('--split', choices=['train', 'val', 'test'], default='train',
                        help='whose dataloader names the images; they are read whole, without augmentation; default: '
                        'train')
    parser.add_argument('--batch-size', type=int, default=8,
                        help='images read together; does not change the result; default: 8')
    add_device_option(parser)
    add_config_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    find_package()
    from rich.console import Console

    from mmsynth.apis.fit_class_loss import fit_class_loss
    from mmsynth.filtering.summary import losses_table
    from mmsynth.synthesis.build import load_config
    from mmsynth.utils.shards import default_device
    losses = fit_class_loss(
        load_config(args.config, args.cfg_options),
        args.checkpoint,
        split=args.split,
        batch_size=args.batch_size,
        device=args.device or default_device())
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    losses.write(args.out)
    Console().print(losses_table(losses))
    print(f'{losses.provenance["num_images"]} images; written to {args.out}')


if __name__ == '__main__':
    main()
