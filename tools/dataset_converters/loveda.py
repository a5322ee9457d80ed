"""Convert LoveDA: Train.zip, Val.zip and Test.zip, or what is in them, to what the loveda configs read."""
from collections.abc import Sequence

from converter_options import find_package, make_parser, run


def main(arguments: Sequence[str] | None = None) -> None:
    args = make_parser(__doc__, out_dir='data/loveDA', tile_size=None, epilog=(
        'Example: python tools/dataset_converters/loveda.py downloads/LoveDA')).parse_args(arguments)
    find_package()
    from mmsynth.datasets.conversion.archives import loveda
    run(args, lambda: loveda(args.source))


if __name__ == '__main__':
    main()
