"""Manifests, labels, configs and checkpoints with anything changed: a named error or a correct result.

Never a hang, a half-written pool, or code that runs.
"""
import copy
import io
import json
import os
import random
import shutil
import signal
import struct
import sys
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from forks import LONG
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from PIL import Image
from pool_samples import CLASSES, filter_entry, write_pool
from safetensors.torch import save

from mmsynth.datasets import ManifestDataset
from mmsynth.pool import Pool
from mmsynth.pool.reader import FileCheck
from mmsynth.pool.rounds import Round, read_rounds, write_rounds
from mmsynth.utils import read_checkpoint
from mmsynth.utils.checkpoint import read_training_state

if TYPE_CHECKING:
    from small_run import SmallRun

pytestmark = pytest.mark.slow

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


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here ends the machine, and a disk that is busy makes every fsync wait."""
    monkeypatch.setattr(os, 'fsync', lambda descriptor: None)


# ---- the manifest of masks


@pytest.fixture(scope='module')
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of three masks; its manifest is ``list.jsonl``."""
    root = tmp_path_factory.mktemp('masks')
    lines = []
    for name in 'abc':
        Image.fromarray(np.full((8, 8), ord(name) % 3, np.uint8)).save(root / f'{name}.png')
        lines.append(dict(source=f'{name}.png', prompt=f'a picture of {name}'))
    (root / 'list.jsonl').write_bytes(dump(lines))
    return root


def load_all(root: Path, name: str) -> None:
    """Every mask of a manifest, or an error that names the manifest or one of its masks."""
    with no_hang(), nothing_runs():
        try:
            dataset = ManifestDataset(data_root=str(root), ann_file=name, metainfo=dict(classes=CLASSES),
                                      pipeline=[dict(type='mmsynth.LoadSegMap')])
            samples = [dataset[index] for index in range(len(dataset))]
        except (ValueError, FileNotFoundError) as error:
            assert str(root) in str(error), error
            return
    for sample in samples:
        assert Path(os.path.realpath(sample['seg_map_path'])).is_relative_to(root)
        assert sample['gt_seg_map'].shape == (8, 8) and set(np.unique(sample['gt_seg_map'])) <= {0, 1, 2, 255}
        assert isinstance(sample.get('prompt', ''), str)


@examples(30, 2000)
@given(edit=edits())
def test_bytes_of_a_manifest_of_masks(edit: Callable, masks: Path, survived: Callable) -> None:
    (masks / 'edited.jsonl').write_bytes(edit((masks / 'list.jsonl').read_bytes()))
    load_all(masks, 'edited.jsonl')
    survived('mutated: manifest of masks')


@examples(30, 1500)
@given(edit=json_edits())
def test_values_of_a_manifest_of_masks(edit: Callable, masks: Path, survived: Callable) -> None:
    lines = [json.loads(line) for line in (masks / 'list.jsonl').read_text().splitlines()]
    (masks / 'edited.jsonl').write_bytes(dump(edit(lines)))
    load_all(masks, 'edited.jsonl')
    survived('mutated: manifest of masks')


# ---- the lists of a pool


@pytest.fixture(scope='module')
def pool_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool with traces, results of a filter, and rounds."""
    root = tmp_path_factory.mktemp('pools') / 'pool'
    trace = [dict(step=0, loss_before=1.5, loss_after=1.25, skipped=0)]
    filtered = np.zeros((16, 24), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        write_pool(root, [dict(guidance=dict(name='CRFM', trace=trace), filter=filter_entry(index), filtered=filtered)
                          for index in range(3)])
    write_rounds(root, [Round(0, 2, ('s0', 's1')), Round(1, 4, ('s2', ), ('s0', ))])
    return root


def check_pool(root: Path) -> None:
    """Read a pool, let a writer open it, and read it again; each gives whole samples or names a file of it."""
    pictures = sum(path.suffix == '.png' for path in root.rglob('*'))

    def read() -> None:
        pool = Pool.open(root)
        for record in pool.records:
            for path in record.files:
                assert Path(os.path.realpath(root / path)).is_relative_to(root)
            pool.load_trace(record)
            if FileCheck(root, len(pool.classes)).fault(record) is None:
                assert pool.load_image(record).shape == (16, 24, 3) and pool.load_mask(record).shape == (16, 24)
        read_rounds(root)

    for step in (read, lambda: Pool.resume(root).close(), read):
        with no_hang(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try:
                step()
            except (ValueError, FileNotFoundError) as error:
                assert str(root) in str(error), error
            else:
                if step is not read:  # what a writer has opened is sound
                    pool = Pool.open(root)
                    assert all((root / path).is_file() for record in pool.records for path in record.files)
    assert sum(path.suffix == '.png' for path in root.rglob('*')) == pictures  # no image is ever lost


@examples(30, 1000)
@given(edit=edits(), name=st.sampled_from(['manifest.jsonl', 'pool.json', 'traces.jsonl', 'rounds.jsonl']))
def test_bytes_of_a_pools_lists(edit: Callable, name: str, pool_folder: Path, survived: Callable) -> None:
    root = copy_of(pool_folder)
    (root / name).write_bytes(edit((root / name).read_bytes()))
    check_pool(root)
    survived('mutated: lists of a pool')


@examples(30, 1000)
@given(edit=json_edits(), name=st.sampled_from(['manifest.jsonl', 'pool.json', 'traces.jsonl', 'rounds.jsonl']))
def test_values_of_a_pools_lists(edit: Callable, name: str, pool_folder: Path, survived: Callable) -> None:
    root = copy_of(pool_folder)
    text = (root / name).read_text()
    if name == 'pool.json':
        (root / name).write_text(json.dumps(edit(json.loads(text))))
    else:
        (root / name).write_bytes(dump(edit([json.loads(line) for line in text.splitlines()])))
    check_pool(root)
    survived('mutated: lists of a pool')


def copy_of(folder: Path) -> Path:
    shutil.rmtree(folder.parent / 'copy', ignore_errors=True)
    return Path(shutil.copytree(folder, folder.parent / 'copy'))


# ---- labels


def with_checksums(data: bytes) -> bytes:
    """A PNG file with the checksums that its chunks ought to have, so that a decoder takes what they say."""
    out, place = bytearray(data), 8
    while place + 12 <= len(data):
        length = struct.unpack('>I', data[place:place + 4])[0]
        end = place + 8 + length
        if end + 4 > len(data):
            break
        out[end:end + 4] = struct.pack('>I', zlib.crc32(data[place + 4:end]))
        place = end + 4
    return bytes(out)


@examples(60, 3000)
@given(edit=edits(), repaired=st.booleans(), bits=st.sampled_from(['L', 'I;16', 'P', '1']))
def test_bytes_of_a_label(edit: Callable, repaired: bool, bits: str, masks: Path, survived: Callable) -> None:
    buffer = io.BytesIO()
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) % 3
    image = Image.fromarray(pixels.astype(np.uint16)) if bits == 'I;16' else Image.fromarray(pixels).convert(bits)
    image.save(buffer, format='PNG')
    data = edit(buffer.getvalue())
    if len(data) >= 24 and np.prod(struct.unpack('>II', data[16:24]), dtype=float) > 1e6:
        data = data[:16] + buffer.getvalue()[16:24] + data[24:]  # sizes are the matter of test_broken_images.py
    (masks / 'edited.png').write_bytes(with_checksums(data) if repaired else data)
    (masks / 'label.jsonl').write_bytes(dump([dict(source='edited.png')]))
    with no_hang(), nothing_runs():
        dataset = ManifestDataset(data_root=str(masks), ann_file='label.jsonl', metainfo=dict(classes=CLASSES),
                                  pipeline=[dict(type='mmsynth.LoadSegMap')])
        try:
            label = dataset[0]['gt_seg_map']
        except ValueError as error:
            assert str(masks / 'edited.png') in str(error), error
            survived('mutated: label')
            return
    assert label.dtype == np.uint8 and label.ndim == 2 and set(np.unique(label)) <= {0, 1, 2, 255}
    survived('mutated: label')


# ---- checkpoints


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self.call


def dangers(marker: str) -> list[Calls]:
    """What leaves a file or starts a process if a checkpoint is unpickled; by detours too."""
    from mmengine import fileio
    from mmengine.registry import FUNCTIONS

    from mmsynth.utils.files import atomic_write
    return [
        Calls(os.mkdir, marker), Calls(os.system, f'touch {marker}'), Calls(exec, f'open({marker!r}, "w")'),
        Calls(eval, f'open({marker!r}, "w")'), Calls(open, marker, 'w'), Calls(shutil.copy, '/etc/hostname', marker),
        Calls(getattr, Calls(__import__, 'os'), 'mkdir'), Calls(partial, os.mkdir, marker),
        Calls(np.save, marker, np.zeros(1)), Calls(torch.save, 1, marker), Calls(atomic_write, marker, b'x'),
        Calls(fileio.put_text, 'x', marker), Calls(fileio.dump, {}, f'{marker}.json'),
        Calls(FUNCTIONS.build, dict(type='x')), Calls(Config.fromfile, marker), Calls(np.load, marker),
        Calls(torch.hub.load, marker, 'x'), Calls(torch.utils.cpp_extension.load, marker, marker)
        if hasattr(torch.utils, 'cpp_extension') else Calls(print, marker)]


def checkpoint() -> dict[str, Any]:
    """What mmengine saves, of a tiny model."""
    history = HistoryBuffer()
    for value in (1.0, 0.5):
        history.update(value)
    weight = torch.arange(6.0).reshape(2, 3)
    return dict(
        meta=dict(iter=2, epoch=0, seed=3, time='20260101_000000', dataset_meta=dict(classes=CLASSES)),
        state_dict={'layer.weight': weight, 'layer.bias': torch.zeros(2), 'layer.half': weight.half()},
        optimizer=dict(state={0: dict(step=torch.tensor(2.0), exp_avg=weight)},
                       param_groups=[dict(lr=0.1, params=[0])]),
        message_hub=dict(log_scalars=dict(loss=history), runtime_info=dict(scalar=np.float64(2), array=np.arange(3))))


def read_as_data(path: Path) -> None:
    """Read a checkpoint by both readers; nothing runs, and errors name it."""
    marker = path.with_name('marker')
    for read in (read_checkpoint, read_training_state):
        with no_hang(), nothing_runs(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try:
                found = read(path)
            except ValueError as error:
                assert str(path) in str(error), error
                continue
        if read is read_checkpoint:
            assert found and all(isinstance(value, torch.Tensor) for value in found.values())
    assert not marker.exists()


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('checkpoints')
    torch.save(checkpoint(), folder / 'whole.pth')
    (folder / 'whole.safetensors').write_bytes(save(checkpoint()['state_dict']))
    read_training_state(folder / 'whole.pth')  # imports what it needs
    return folder


@examples(30, 600)
@given(edit=edits(), suffix=st.sampled_from(['.pth', '.safetensors']))
def test_bytes_of_a_checkpoint(edit: Callable, suffix: str, checkpoints: Path, survived: Callable) -> None:
    path = checkpoints / f'edited{suffix}'
    path.write_bytes(edit((checkpoints / f'whole{suffix}').read_bytes()))
    read_as_data(path)
    survived('mutated: checkpoint')


@examples(30, 400)
@given(edit=edits(), entry=st.integers(0, 20))
def test_bytes_inside_a_checkpoint(edit: Callable, entry: int, checkpoints: Path, survived: Callable) -> None:
    """In a zip file that is whole again; half of them in the pickle."""
    path = checkpoints / 'inside.pth'
    with zipfile.ZipFile(checkpoints / 'whole.pth') as whole, zipfile.ZipFile(path, 'w') as edited:
        names = whole.namelist()
        chosen = names[entry % len(names)] if entry % 2 else next(name for name in names if name.endswith('data.pkl'))
        for name in names:
            edited.writestr(name, edit(whole.read(name)) if name == chosen else whole.read(name))
    read_as_data(path)
    survived('mutated: checkpoint')


@examples(20, 200)
@given(which=st.integers(0, 17), seed=st.integers(0, 2**16), protocol=st.integers(2, 5))
def test_a_checkpoint_that_would_run_code(which: int, seed: int, protocol: int, checkpoints: Path,
                                           survived: Callable) -> None:
    """At any place in it, in torch's format, the one before it, or as a bare pickle."""
    import pickle
    path, rng, content = checkpoints / 'trapped.pth', random.Random(seed), checkpoint()
    danger = dangers(str(checkpoints / 'marker'))[which]
    node = content
    while rng.random() < 0.6 and (below := [value for value in node.values() if isinstance(value, dict)]):
        node = rng.choice(below)
    node[rng.choice(list(node))] = rng.choice([danger, [danger], (danger, 1), {'x': danger}])
    match seed % 3:
        case 0:
            torch.save(content, path, pickle_protocol=protocol)
        case 1:
            torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
        case _:
            path.write_bytes(pickle.dumps(dict(state_dict=danger), protocol))
    read_as_data(path)  # weights may be read beside what is left unread
    with nothing_runs(), pytest.raises(ValueError, match=str(path)):
        read_training_state(path)
    survived('checkpoint that would run code')


# ---- configs


def places(node: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all values in a config."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


@examples(15, 300)
@given(number=st.integers(0, 10_000), kind=st.sampled_from(['replaced', 'replaced', 'missing', 'added']),
       odd=st.sampled_from([None, True, -1, 0, 1, 3, 0.5, float('nan'), '', 'x', [], {}, [None], 'mmsynth.CRFM']))
def test_values_of_a_config(number: int, kind: str, odd: Any, small_run: 'SmallRun', checkpoints: Path,
                            survived: Callable) -> None:
    """Synthesis by it: an image, or an error whose traceback names the key or what it was given to, and no pool."""
    cfg = Config.fromfile(small_run.config_file)
    parts = dict(model=cfg.model.to_dict(), synthesis=cfg.synthesis.to_dict())
    found = list(places(parts))
    path = found[number % len(found)]
    node = parts
    for key in path[:-1]:
        node = node[key]
    if kind == 'added' and isinstance(node, dict):
        node['more'] = odd
    elif kind == 'missing' and isinstance(node, dict):
        del node[path[-1]]
    elif isinstance(node, (dict, list)):
        node[path[-1]] = odd
    else:
        return
    for key in ('model', 'synthesis'):
        cfg.pop(key)
        if key in parts:
            cfg[key] = parts[key]
    root = checkpoints / 'pool'
    shutil.rmtree(root, ignore_errors=True)
    with no_hang(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            pool = small_run.synthesize(root, cfg, limit=1)
        except Exception as error:
            assert not root.exists() or not (root / 'pool.json').exists(), f'{path}: half a pool is left: {error}'
            words = {str(word) for word in (*path, 'more' if kind == 'added' else path[-1])} | {
                str(node.get('type')).rpartition('.')[2] if isinstance(node, dict) else str(path[-2])}
            seen = ''.join(traceback.format_exception(error))
            assert type(error) is not AssertionError and any(word in seen for word in words), (
                f'{".".join(map(str, path))} {kind} {odd!r}: {type(error).__name__}: {error}')
        else:
            assert [pool.load_image(record).dtype for record in pool.records] == [np.uint8]
    survived('mutated: config')
