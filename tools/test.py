"""Test a segmentor: ``python tools/test.py CONFIG CHECKPOINT [options]``.

Runs MMSegmentation's own ``tools/test.py``, as ``tools/train.py`` does; the checkpoint is read as data.
"""
import runpy

from tool_options import find_package


def main() -> None:
    find_package()
    from mmsynth.host import end_distributed, host_script
    runpy.run_path(str(host_script('test.py')), run_name='__main__')  # as the program, to launchers and --help
    end_distributed()


if __name__ == '__main__':
    main()
