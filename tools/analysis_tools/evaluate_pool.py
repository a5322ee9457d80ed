"""Measure a pool: mask consistency, Fréchet distance to real images, diversity among siblings, spread of
class colours, class shares."""
import argparse

from checkout import find_package


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__ + ' docs/en/metrics.md says what the numbers mean. Under torchrun each process reads its '
        'share of the images.',
        epilog='Example: python tools/analysis_tools/evaluate_pool.py work_dirs/pool --judge-config judge.py '
        '--judge-checkpoint judge.pth --real-config judge.py --out work_dirs/pool/evaluation.json')
    parser.add_argument('pool', help="the pool's folder")
    parser.add_argument('--judge-config', required=True, metavar='C',
                        help='segmentation config of the judge, which must not be the critic that guided')
    parser.add_argument('--judge-checkpoint', required=True, metavar='W', help="the judge's weights")
    parser.add_argument('--real-config', metavar='C',
                        help='config whose data loader names the real images for the Fréchet distance; without it '
                        'there is none')
    parser.add_argument('--real-split', choices=['train', 'val', 'test'], default='train',
                        help='which data loader of --real-config; default: train')
    parser.add_argument('--num-real', type=int, default=1000,
                        help='real images, spread over the data set; default: 1000')
    parser.add_argument('--inception', metavar='FILE',
                        help='weights of the Inception network of the FID, to give that too')
    parser.add_argument('--out', metavar='FILE.json', help='write the results here')
    parser.add_argument('--batch-size', type=int, default=8,
                        help='images read together; changes speed and memory, and the results by rounding at most; '
                        'default: 8')
    parser.add_argument('--device', help='cpu, cuda, cuda:1 …; default: cuda where there is one (under torchrun that '
                        'of the local rank)')
    parser.add_argument('--allow-critic', action='store_true',
                        help='let the critic that guided judge its own images; the results say so')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    find_package()
    import torch
    from mmengine.dist import is_main_process

    from mmsynth.apis.evaluate_pool import RealImages, evaluate_pool, print_evaluation, write_evaluation
    from mmsynth.pool import Pool
    from mmsynth.utils.shards import Shard, default_device
    if Shard.of_environment() is not None:
        torch.distributed.init_process_group('gloo')  # results are collected on the CPU
    evaluation = evaluate_pool(
        args.pool,
        args.judge_config,
        args.judge_checkpoint,
        real=RealImages(args.real_config, args.real_split, args.num_real) if args.real_config else None,
        inception=args.inception,
        batch_size=args.batch_size,
        device=args.device or default_device(),
        allow_critic=args.allow_critic)
    if not is_main_process():
        return
    print_evaluation(evaluation, Pool.open(args.pool).classes)
    if args.out:
        write_evaluation(evaluation, args.out)
        print(f'written to {args.out}')


if __name__ == '__main__':
    main()
