"""Train a generator or a segmentor: ``python tools/train.py CONFIG [options]``.

Runs MMSegmentation's own ``tools/train.py``, found in the installed mmseg package, with all arguments as they are. What
this adds: mmsynth is imported, also from a checkout that is not installed, and so checkpoints are read as data.
"""
import runpy

from tool_options import find_package


def main() -> None:
    find_package()
    from mmsynth.host import end_distributed, host_script
    runpy.run_path(str(host_script('train.py')), run_name='__main__')  # as the program, to launchers and --help
    end_distributed()


if __name__ == '__main__':
    main()
