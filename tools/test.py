"""Test a segmentor: ``python tools/test.py CONFIG CHECKPOINT [options]``.

Runs MMSegmentation's own ``tools/test.py``, as ``tools/train.py`` does; the checkpoint is read as data.
"""
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    if (ROOT / 'mmsynth').is_dir() and str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from mmsynth.host import host_script
    runpy.run_path(str(host_script('test.py')), run_name='__main__')  # as the program, to launchers and --help


if __name__ == '__main__':
    main()
