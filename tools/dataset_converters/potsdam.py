"""Convert ISPRS Potsdam to what mmseg's Potsdam configs read."""
import argparse
from collections.abc import Sequence

from converter_options import find_package, make_parser, run


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, out_dir='data/potsdam', tile_size=512, epilog=(
        'Example: python tools/dataset_converters/potsdam.py downloads/Potsdam'))
    parser.add_argument('--labels', choices=['no-boundary', 'all'],
                        help='without or with the pixels next to boundaries; default: without, if there are such files')
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    find_package()
    from mmsynth.datasets.conversion.archives import potsdam
    run(args, lambda: potsdam(args.source, args.labels))


if __name__ == '__main__':
    main()
