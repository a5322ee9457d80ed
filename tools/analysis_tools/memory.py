"""Count the memory that TODSynth on Stable Diffusion 3.5 medium needs, without a GPU and without its weights."""
import argparse

from checkout import find_package


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + ' Prints markdown tables. Every figure is counted from the storages that live at the '
        'same time in a run on tensors without values; what a device, libraries and allocator add is not in it.',
        epilog='Example: python tools/analysis_tools/memory.py --cards 4 --batch-size 2')
    parser.add_argument('--size', type=int, default=512, help='side of the square images in pixels; default: 512')
    parser.add_argument('--batch-size', type=int, default=1, help='training images per card; default: 1')
    parser.add_argument('--cards', type=int, default=4, help='cards that FSDP shards over; default: 4')
    args = parser.parse_args()
    for option, least in (('size', 16), ('batch_size', 1), ('cards', 1)):
        if getattr(args, option) < least or option == 'size' and args.size % 16:
            parser.error(f'--{option.replace("_", "-")} must be at least {least}, and a size a multiple of 16; got '
                         f'{getattr(args, option)}')
    return args


def main() -> None:
    args = parse_args()
    find_package()
    from benchmarks.memory import report
    print(report(size=args.size, batch=args.batch_size, cards=args.cards))


if __name__ == '__main__':
    main()
