"""The processors that a process may use: its affinity, and the quota of its container."""
import os
from pathlib import Path

import pytest

from mmsynth.utils import cpu


@pytest.mark.parametrize('files, expected', [
    ({}, 4),
    ({'cpu.max': 'max 100000'}, 4),
    ({'cpu.max': '150000 100000'}, 2),
    ({'cpu.max': '20000 100000'}, 1),
    ({'cpu/cpu.cfs_quota_us': '-1', 'cpu/cpu.cfs_period_us': '100000'}, 4),
    ({'cpu/cpu.cfs_quota_us': '300000', 'cpu/cpu.cfs_period_us': '100000'}, 3),
])
def test_a_quota_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str],
                              expected: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + '\n')
    monkeypatch.setattr(cpu, '_CGROUP', tmp_path)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {0, 1, 2, 3}, raising=False)
    assert cpu.available_cpus() == expected
