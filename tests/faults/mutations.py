"""Changes of bytes and of JSON values, tried by hypothesis, and what holds for whatever reads the changed files."""
import copy
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from forks import LONG
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

SECONDS = 60  # after which an example hangs


def examples(short: int, long: int) -> settings:
    """How many mutations are tried, 10,000 in all in the long form; the same ones at every call in the short."""
    return settings(max_examples=long if LONG else short, deadline=None, database=None, derandomize=not LONG,
                    phases=[Phase.generate], suppress_health_check=list(HealthCheck))


@contextmanager
def no_hang() -> Iterator[None]:
    """Break off what takes longer than ``SECONDS``."""
    def break_off(*arguments: object) -> None:
        raise AssertionError(f'it hangs: not done within {SECONDS} s')

    before = signal.signal(signal.SIGALRM, break_off)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# What runs when something is not read as data. Audit hooks stay for ever, so this one only listens when told to.
_FORBIDDEN = ('os.system', 'os.exec', 'os.fork', 'os.posix_spawn', 'subprocess.Popen', 'os.mkdir', 'os.remove',
              'os.rename', 'os.rmdir', 'shutil.rmtree', 'socket.connect', 'webbrowser.open', 'ctypes.dlopen')
_listening: list[list[str]] = []


def _hear(event: str, arguments: tuple) -> None:
    if _listening and (event in _FORBIDDEN or event == 'open' and isinstance(arguments[2], int)
                       and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
        _listening[-1].append(f'{event} {arguments!r:.200}')


sys.addaudithook(_hear)


@contextmanager
def nothing_runs() -> Iterator[None]:
    """Fail if a process is started or the disk changed."""
    _listening.append([])
    try:
        yield
    finally:
        ran = _listening.pop()
        assert not ran, ran


@st.composite
def edits(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """One to three changes of bytes: some wrong, missing, inserted, repeated or moved, or the end cut off."""
    kinds = st.sampled_from(['wrong', 'bit', 'missing', 'inserted', 'repeated', 'moved', 'cut'])
    number = st.floats(0, 1, exclude_max=True)
    changes = draw(st.lists(st.tuples(kinds, number, number, st.binary(min_size=1, max_size=6)), min_size=1,
                            max_size=3))

    def edit(data: bytes) -> bytes:
        for kind, where, much, new in changes:
            at = int(where * len(data))
            end = at + 1 + int(much**4 * (len(data) - at))
            part = data[at:end]
            data = {
                'wrong': data[:at] + new + data[at + len(new):],
                'bit': data[:at] + bytes([(part or b'\0')[0] ^ 1 << int(much * 8)]) + data[at + 1:],
                'missing': data[:at] + data[end:],
                'inserted': data[:at] + new + data[at:],
                'repeated': data[:end] + data[at:],
                'moved': data[:at] + data[end:] + part,
                'cut': data[:at]}[kind]
        return data

    return edit


ODD = st.sampled_from([None, True, -1, 0, 1, 3, 2**70, 0.5, float('nan'), float('inf'), '', 'x', '\0',
                       '../../etc/passwd', '/etc/passwd', 'C:\\x', 'a\nb',
                       '\ud800', 'é' * 300, [], [[]], {}, {'a': 1}, [None], ['x', 3]])


@st.composite
def json_edits(draw: st.DrawFn) -> Callable[[Any], Any]:
    """A change of what JSON says: a value replaced by an odd one, a key missing, added or misspelt; at any depth."""
    kind, where, odd = draw(st.sampled_from(['replaced', 'missing', 'added', 'misspelt'])), draw(
        st.lists(st.integers(0, 30), min_size=1, max_size=4)), draw(ODD)

    def edit(value: Any) -> Any:
        value = copy.deepcopy(value)
        node, depth = value, 0
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                return value
            key = keys[where[depth] % len(keys)]
            if depth + 1 == len(where) or not isinstance(node[key], (dict, list)):
                break
            node, depth = node[key], depth + 1
        if kind == 'replaced' or isinstance(node, list):
            node[key] = odd
        elif kind == 'added':
            node['more'] = odd
        else:
            taken = node.pop(key)
            if kind == 'misspelt':
                node[f'{key}_'] = taken
        return value

    return edit


def dump(lines: list[Any]) -> bytes:
    """JSON lines; half a character of two is written as it stands, as a careless writer would."""
    return ''.join(f'{json.dumps(line)}\n' for line in lines).encode()
