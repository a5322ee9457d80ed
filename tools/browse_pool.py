"""Look through a pool in the browser, and keep or drop samples by hand."""
import argparse

from tool_options import find_package


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + ' Serves a page on this machine (127.0.0.1) until Ctrl-C: masks, images, labels and what '
        'is recorded of each sample, in any order. What is kept or dropped there is written to selected.txt in the '
        'pool, as tools/select_samples.py does; samples that are not touched stay listed as often as they are.',
        epilog="Train on the choice: dict(type='mmsynth.PoolDataset', data_root='POOL', ann_file='selected.txt', "
        'pipeline=...)')
    parser.add_argument('pool', help='folder of the pool')
    parser.add_argument('--port', type=int, default=0, help='port of the page; default: a free one')
    parser.add_argument('--no-open', action='store_true', help='print the address and open no browser')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    find_package()
    from mmsynth.apis import browse_pool
    browse_pool(args.pool, port=args.port, open_page=not args.no_open)


if __name__ == '__main__':
    main()
