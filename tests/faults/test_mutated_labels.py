"""Labels with any bytes changed: an error that names the file, or a class map."""
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import dump, edits, examples, no_hang, nothing_runs
from PIL import Image
from pool_samples import CLASSES

from mmsynth.datasets import ManifestDataset

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('no_fsync')]


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
