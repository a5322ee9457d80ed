"""Images that are cut off, of another mode, or claim a size that no memory holds: the error names the file."""
import io
import os
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pool_samples import CLASSES, write_pool

from mmsynth.datasets import ManifestDataset
from mmsynth.datasets.partly_labelled import UnlabelledDataset
from mmsynth.datasets.transforms import LoadReference, LoadSegMap, PickReference
from mmsynth.pool import Pool
from mmsynth.pool.reader import FileCheck

SIDE = 64
PIXELS = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
LABELS = np.random.default_rng(1).integers(0, 3, (SIDE, SIDE), dtype=np.uint8)
EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n'


def png(array: np.ndarray, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(buffer, format='PNG')
    return buffer.getvalue()


def bomb(side: int = 50_000, channels: int = 3) -> bytes:
    """A PNG file of a few hundred bytes whose header claims a side of so many pixels."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = struct.pack('>IIBBBBB', side, side, 8, 2 if channels == 3 else 0, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'\0' * 100_000)) + chunk(
        b'IEND', b'')


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, format='JPEG')
    return buffer.getvalue()


FAULTS: dict[str, Callable[[bytes], bytes]] = {
    'empty': lambda whole: b'',
    'cut in the header': lambda whole: whole[:20],
    'cut in the middle': lambda whole: whole[:len(whole) // 2],
    'cut before the end': lambda whole: whole[:-60],
    'text': lambda whole: b'no image at all',
    'one byte wrong': lambda whole: whole[:len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 255]) + whole[
        len(whole) // 2 + 1:],
    'bomb': lambda whole: bomb(),
    'grey bomb': lambda whole: bomb(channels=1),
    'bomb that OpenCV would read': lambda whole: bomb(30_000),
    'EPS': lambda whole: EPS,
}


def manifest_set(path: Path, pipeline: list[dict]) -> ManifestDataset:
    """A labelled image and its mask, one of which is at ``path``, which is below ``images/`` or ``masks/``."""
    root = path.parents[1]
    for folder, content in (('images', png(PIXELS)), ('masks', png(LABELS))):
        (root / folder).mkdir(exist_ok=True)
        if not (root / folder / 'a.png').exists():
            (root / folder / 'a.png').write_bytes(content)
    return ManifestDataset(data_root=str(root), data_prefix=dict(img_path='images', seg_map_path='masks'),
                           img_suffix='.png', metainfo=dict(classes=CLASSES), pipeline=pipeline)


def read_mask(path: Path) -> np.ndarray:
    return manifest_set(path, [dict(type='mmsynth.LoadSegMap')])[0]['gt_seg_map']


def read_training_image(path: Path) -> np.ndarray:
    return manifest_set(path, [dict(type='LoadImageFromFile')])[0]['img'][..., ::-1]


def read_reference(path: Path) -> np.ndarray:
    return LoadReference()(dict(reference_path=str(path)))['reference'][..., ::-1]


def read_picked_reference(path: Path) -> np.ndarray:
    results = dict(sample_id='x', seg_map_path='x.png', gt_seg_map=LABELS)
    return PickReference(str(path.parent))(results)['reference'][..., ::-1]


def read_unlabelled(path: Path) -> np.ndarray:
    return UnlabelledDataset(str(path.parent), [dict(type='LoadImageFromFile')])[0]['img'][..., ::-1]


def pool_with(path: Path) -> Pool:
    """A pool whose first sample's files are those of :data:`PIXELS` and :data:`LABELS`, or the broken ``path``."""
    return Pool.open(path.parents[1])


def read_pool_image(path: Path) -> np.ndarray:
    pool = pool_with(path)
    fault = FileCheck(pool.root, len(pool.classes)).fault(pool.records[0])  # of training, which takes another sample
    assert fault is None or str(path) in fault
    return pool.load_image(pool.records[0])


def read_pool_mask(path: Path) -> np.ndarray:
    pool = pool_with(path)
    fault = FileCheck(pool.root, len(pool.classes)).fault(pool.records[0])
    assert fault is None or str(path) in fault
    return pool.load_mask(pool.records[0])


ROLES: Mapping[str, tuple[Callable[[Path], np.ndarray], np.ndarray, str]] = {
    'mask': (read_mask, LABELS, 'masks'),
    'training image': (read_training_image, PIXELS, 'images'),
    'unlabelled image': (read_unlabelled, PIXELS, 'raw'),
    'reference': (read_reference, PIXELS, 'references'),
    'picked reference': (read_picked_reference, PIXELS, 'references'),
    'pool image': (read_pool_image, PIXELS, 'img_dir'),
    'pool mask': (read_pool_mask, LABELS, 'ann_dir'),
}


@pytest.fixture
def place(tmp_path: Path) -> Callable[[str, bytes], Path]:
    """Writes a file where a role has it."""
    def at(folder: str, content: bytes) -> Path:
        if folder in ('img_dir', 'ann_dir'):
            record = write_pool(tmp_path, [dict(image=PIXELS, mask=LABELS)]).records[0]
            path = tmp_path / (record.image if folder == 'img_dir' else record.mask)
        else:
            path = tmp_path / folder / 'a.png'
            path.parent.mkdir()
        path.write_bytes(content)
        return path

    return at


@pytest.fixture
def ghostscript(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a ``gs`` on the path would leave if it were started."""
    folder = tmp_path_factory.mktemp('bin')
    (folder / 'gs').write_text(f'#!/bin/sh\ntouch {folder}/started\n')
    (folder / 'gs').chmod(0o755)
    monkeypatch.setenv('PATH', f'{folder}:{os.environ["PATH"]}')
    monkeypatch.setattr('PIL.EpsImagePlugin.gs_binary', None)
    return folder / 'started'


@pytest.mark.parametrize('role', ROLES)
@pytest.mark.parametrize('fault', FAULTS)
def test_the_error_names_the_file(role: str, fault: str, place: Callable, ghostscript: Path,
                                  survived: Callable) -> None:
    """Or what is read is the image, where a decoder does not need the bytes that are wrong."""
    read, expected, folder = ROLES[role]
    path = place(folder, FAULTS[fault](png(expected)))
    try:
        found = read(path)
    except (ValueError, AssertionError) as error:  # mmcv asserts that it has an image
        assert str(path) in str(error)
    else:
        assert np.array_equal(found, expected)
        assert fault in ('one byte wrong', 'cut before the end')
    assert not ghostscript.exists()
    survived(f'broken image: {fault}')


@pytest.mark.parametrize('role', ROLES)
def test_whole_images_are_read(role: str, place: Callable) -> None:
    """Without this, the test above would pass for a reader that refuses everything."""
    read, expected, folder = ROLES[role]
    assert np.array_equal(read(place(folder, png(expected))), expected)


@pytest.mark.parametrize('role, mode', [
    *((role, mode) for role in ('mask', 'pool mask') for mode in ('RGB', 'RGBA', 'LA', 'F')),
    *((role, mode) for role in ('reference', 'picked reference') for mode in ('RGBA', 'L', 'LA', 'I;16'))])
def test_wrong_modes_are_named(role: str, mode: str, place: Callable, survived: Callable) -> None:
    read, expected, folder = ROLES[role]
    if mode == 'F':
        buffer = io.BytesIO()
        Image.fromarray(expected.astype(np.float32)).save(buffer, format='TIFF')
        content = buffer.getvalue()
    else:
        content = png((expected if expected.ndim == 2 else expected[..., 0]).astype(np.uint16) * 9) if mode == 'I;16' \
            else png(expected, mode)
    path = place(folder, content)
    with pytest.raises(ValueError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    survived('broken image: wrong mode')


@pytest.mark.parametrize('role', ['training image', 'unlabelled image', 'pool image'])
@pytest.mark.parametrize('mode', ['RGBA', 'L', 'P'])
def test_other_modes_of_images_are_read_in_colour(role: str, mode: str, place: Callable) -> None:
    read, expected, folder = ROLES[role]
    content = png(expected, mode)
    assert np.array_equal(read(place(folder, content)), np.asarray(Image.open(io.BytesIO(content)).convert('RGB')))


def test_a_label_loader_alone(tmp_path: Path, survived: Callable) -> None:
    """A mask that would fit in memory but not the limit, by the transform itself."""
    path = tmp_path / 'a.png'
    path.write_bytes(bomb(14_000, channels=1))
    with pytest.raises(ValueError, match=str(path)):
        LoadSegMap(num_classes=3)(dict(seg_map_path=str(path)))
    survived('broken image: bomb')
