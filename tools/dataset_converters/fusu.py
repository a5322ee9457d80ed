"""Convert FUSU, or the 512-pixel tiles of it that come with TISynth, to what the fusu configs read."""
import argparse
from collections.abc import Sequence

from converter_options import add_split_options, find_package, make_parser, run, split_rule


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, out_dir='data/fusu', tile_size=None, epilog=(
        'Example: python tools/dataset_converters/fusu.py downloads/FUSU --val-share 0.2'))
    add_split_options(parser, val_share=0.2)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    find_package()
    from mmsynth.datasets.conversion.archives import fusu
    run(args, lambda: fusu(args.source, split_rule(args, val_share=0.2)))


if __name__ == '__main__':
    main()
