"""FolderLock: held by one process, and by none of its forked workers once that process is gone."""
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mmsynth.utils.files import FolderLock

OWNER = """
import multiprocessing, sys, time
from pathlib import Path
from mmsynth.utils.files import FolderLock
lock = FolderLock(Path(sys.argv[1]))
worker = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60, ))
worker.start()
print(worker.pid, flush=True)
time.sleep(60)
"""


def test_one_holds_it_at_a_time(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    with pytest.raises(RuntimeError, match=f'process {os.getpid()}, which is this one'):
        FolderLock(tmp_path)
    lock.release()
    lock.release()
    FolderLock(tmp_path).release()


def test_several_share_it_and_none_alone_beside_them(tmp_path: Path) -> None:
    shared = [FolderLock(tmp_path, shared=True) for _ in range(2)]
    with pytest.raises(RuntimeError, match='is being written'):
        FolderLock(tmp_path)
    FolderLock(tmp_path, file='.other').release()
    for lock in shared:
        lock.release()
    with FolderLock(tmp_path), pytest.raises(RuntimeError, match='is being written'):
        FolderLock(tmp_path, shared=True)


def test_who_waits_gets_it(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    threading.Timer(0.1, lock.release).start()
    FolderLock(tmp_path, wait=30).release()


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_a_worker_that_outlives_a_killed_owner_does_not_hold_it(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    owner = subprocess.Popen([sys.executable, '-c', OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=root)
    worker = int(owner.stdout.readline())
    try:
        time.sleep(0.2)  # the worker is past its start
        with pytest.raises(RuntimeError, match=f'process {owner.pid}'):
            FolderLock(tmp_path)
        owner.kill()
        owner.wait()
        os.kill(worker, 0)  # it is still there
        FolderLock(tmp_path).release()
    finally:
        os.kill(worker, signal.SIGKILL)
        owner.kill()
        owner.stdout.close()
