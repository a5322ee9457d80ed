"""How many processors this process may use."""
import math
import os
from pathlib import Path

_CGROUP = Path('/sys/fs/cgroup')


def available_cpus() -> int:
    """Count the processors that this process may use, at least 1: its affinity, and the quota of its container.

    torch and ``os.cpu_count`` look at neither quota, and start a thread for every processor of the machine.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return max(1, math.ceil(min(affinity, _quota())))


def _quota() -> float:
    """Processors that the container's quota stands for; infinite without one."""
    try:
        quota, period = (_CGROUP / 'cpu.max').read_text().split()  # cgroup v2
    except (OSError, ValueError):
        try:
            quota, period = ((_CGROUP / 'cpu' / f'cpu.cfs_{name}_us').read_text() for name in ('quota', 'period'))
        except OSError:
            return math.inf
    return float(quota) / float(period) if quota.strip() not in ('max', '-1') else math.inf
