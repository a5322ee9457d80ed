"""Train a generator or a segmentor: ``python tools/train.py CONFIG [options]``.

This is MMSegmentation's own ``tools/train.py``, found in the installed mmseg package and run with all arguments as
they are. What it adds: mmsynth is importable, also from a checkout that is not installed.
"""
import importlib.util
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def host_script(name: str) -> Path:
    """Find a script of mmseg's ``tools`` folder.

    Args:
        name: File name, such as ``'train.py'``.

    Raises:
        SystemExit: If mmseg is not installed, or has been installed without its tools.
    """
    spec = importlib.util.find_spec('mmseg')
    if spec is None or spec.origin is None:
        raise SystemExit('tools/train.py: mmseg is not installed: pip install onedl-mmsegmentation')
    package = Path(spec.origin).parent
    candidates = [package / '.mim' / 'tools' / name, package.parent / 'tools' / name]
    for script in candidates:
        if script.is_file():
            return script
    looked_for = ' and '.join(map(str, candidates))
    raise SystemExit(f'tools/train.py: mmseg is installed without its tools (looked for {looked_for}): reinstall it, '
                     'or put an mmsegmentation checkout on PYTHONPATH')


def main() -> None:
    """Hand over to mmseg's script in this process, so that launchers and ``--help`` see it as the program."""
    if (ROOT / 'mmsynth').is_dir():
        sys.path.insert(0, str(ROOT))
    runpy.run_path(str(host_script('train.py')), run_name='__main__')


if __name__ == '__main__':
    main()
