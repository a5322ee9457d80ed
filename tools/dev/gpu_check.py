"""Check mmsynth on a GPU: ``make gpu-check``, or ``python tools/dev/gpu_check.py`` in an environment of your own.

Runs tests/gpu, then times Stable Diffusion 3.5 medium's shapes and measures their memory. Needs a checkout and a torch
that sees the card; no weights and no data.
"""
import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TINY = dict(sample_size=8, num_layers=2, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16,
            caption_projection_dim=16, pooled_projection_dim=16, pos_embed_max_size=16, dual_attention_layers=(0, ))
TINY_VAE = dict(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=' '.join(__doc__.split('\n\n')[1].split()))
    parser.add_argument('--device', default='cuda', help='cuda, cuda:1 … or cpu; default: cuda')
    parser.add_argument('--tiny', action='store_true', help='tiny shapes, to see that everything runs')
    parser.add_argument('--no-tests', action='store_true', help='measure only')
    parser.add_argument('--out-dir', type=Path, default=Path('work_dirs/gpu_check'),
                        help='where the markdown goes; default: work_dirs/gpu_check')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / 'tools' / 'analysis_tools')]
    import torch
    if torch.device(args.device).type == 'cuda' and not torch.cuda.is_available():
        raise SystemExit(f'--device {args.device}: torch {torch.__version__} sees no CUDA device; install the build of '
                         'torch for your driver (https://pytorch.org/get-started), or give --device cpu --tiny')
    from benchmarks.gpu import describe, report
    from benchmarks.parts import SD3_VAE
    from benchmarks.shapes import SD35_MEDIUM
    start, failed, lines = time.monotonic(), 0, [f'# {describe(args.device)}', '']
    if not args.no_tests:
        command = [sys.executable, '-m', 'pytest', str(ROOT / 'tests' / 'gpu'), '-q', '-n', '0', '-rf', '-W', 'ignore']
        print('tests/gpu …', flush=True)
        result = subprocess.run(command, cwd=ROOT, env=os.environ | dict(MMSYNTH_TEST_DEVICE=args.device),
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(result.stdout[-6000:])
        failed = result.returncode
        summary = [line for line in result.stdout.splitlines() if re.match(r'FAILED|ERROR|\d+ (passed|failed)', line)]
        lines += ['`pytest tests/gpu`: ' + '; '.join(summary), '']
    print('time and memory at full shape …', flush=True)
    shapes = dict(settings=SD35_MEDIUM | TINY, vae=SD3_VAE | TINY_VAE, size=64) if args.tiny else {}
    lines += [report(args.device, **shapes),
              f'`python tools/dev/gpu_check.py {" ".join(sys.argv[1:])}`, {time.monotonic() - start:.0f} s.']
    args.out_dir.mkdir(parents=True, exist_ok=True)
    name = re.sub(r'\W+', '_', describe(args.device).split(',')[0]).strip('_')
    file = args.out_dir / f'{name}.md'
    file.write_text('\n'.join(lines) + '\n')
    print('\n'.join(lines), f'\nwritten to {file}')
    return failed


if __name__ == '__main__':
    sys.exit(main())
