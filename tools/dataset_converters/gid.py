"""Convert GID with 5 or 15 classes, or Five-Billion-Pixels with 24, to what the gid config reads."""
import argparse
from collections.abc import Sequence

from converter_options import (
    add_split_options,
    add_stretch_options,
    find_package,
    make_parser,
    run,
    split_rule,
    stretch_rule,
)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, out_dir='data/gid', tile_size=512, epilog=(
        'Example: python tools/dataset_converters/gid.py downloads/Five-Billion-Pixels --classes 24'))
    parser.add_argument('--classes', type=int, choices=[5, 15, 24], default=24, help='default: 24')
    parser.add_argument('--images', choices=['rgb', '8bit', '16bit'],
                        help='which images, where there are several kinds; default: the first of these that is there')
    add_split_options(parser, val_share=0.2)
    add_stretch_options(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    find_package()
    from mmsynth.datasets.conversion.archives import gid
    run(args, lambda: gid(args.source, args.classes, args.images, split_rule(args, val_share=0.2), stretch_rule(args)))


if __name__ == '__main__':
    main()
