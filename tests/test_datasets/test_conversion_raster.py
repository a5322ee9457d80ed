"""Images read without loss, whatever reads them, and stretched to 8 bits."""
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmsynth.datasets.conversion import StretchRule, raster
from mmsynth.datasets.conversion.files import SourceFile, list_files
from mmsynth.datasets.conversion.picture import Stretch, picture_bands, read_picture
from mmsynth.datasets.conversion.raster import open_raster
from mmsynth.datasets.conversion.tiling import Window

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)
ALL, PART = Window(0, 0, 9, 7), Window(2, 1, 4, 5)
GEO = pytest.mark.skipif(not raster.has_rasterio(), reason="rasterio is not installed: pip install 'mmsynth[geo]'")


@pytest.fixture(params=['Pillow', pytest.param('rasterio', marks=GEO)])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Reads TIFF files; others Pillow always reads."""
    if request.param == 'Pillow':
        monkeypatch.setattr(raster, 'has_rasterio', lambda: False)
    return request.param


def file(path: Path) -> SourceFile:
    return SourceFile(path.name, path)


def picture(path: Path, window: Window = ALL, bands: tuple[int, ...] | None = None,
            stretch: Stretch | None = None) -> np.ndarray:
    with open_raster(file(path)) as opened:
        assert opened.size == (9, 7)
        return read_picture(opened, window, picture_bands(opened, bands), stretch)[0]


def write_geotiff(path: Path, values: np.ndarray, **options: object) -> Path:
    """Bands last."""
    import rasterio
    with rasterio.open(path, 'w', driver='GTiff', height=values.shape[0], width=values.shape[1], count=values.shape[2],
                       dtype=values.dtype, **options) as opened:
        opened.write(values.transpose(2, 0, 1))
    return path


@pytest.mark.parametrize('kind', ['png', 'bmp', 'tif', 'RGBA png', 'palette png', 'grey tif', 'zip'])
def test_pictures_are_read_as_they_are(tmp_path: Path, reader: str, kind: str) -> None:
    path, expected = tmp_path / f'a.{kind.split()[-1]}', RGB
    if kind == 'RGBA png':
        Image.fromarray(np.dstack([RGB, RNG.integers(0, 256, (9, 7), dtype=np.uint8)])).save(path)
    elif kind == 'palette png':
        image = Image.fromarray(RGB[..., 0] % 4).convert('P')
        image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
        image.save(path)
        expected = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120]])[RGB[..., 0] % 4]
    elif kind == 'grey tif':
        Image.fromarray(RGB[..., 1]).save(path)
        expected = RGB[..., [1, 1, 1]]
    elif kind == 'zip':
        Image.fromarray(RGB).save(tmp_path / 'in.tif')
        with zipfile.ZipFile(path, 'w') as archive:
            archive.write(tmp_path / 'in.tif', 'sub/in.tif')
        (tmp_path / 'in.tif').unlink()
        [found] = list_files(tmp_path)
        assert found.key == 'sub/in.tif' and str(found).endswith('a.zip/sub/in.tif')
        with open_raster(found) as opened:
            np.testing.assert_array_equal(read_picture(opened, PART, (1, 2, 3), None)[0], RGB[2:6, 1:6])
        return
    else:
        Image.fromarray(RGB).save(path)
    np.testing.assert_array_equal(picture(path), expected)
    np.testing.assert_array_equal(picture(path, PART), expected[2:6, 1:6])


def test_bands_are_chosen(tmp_path: Path, reader: str) -> None:
    Image.fromarray(RGB).save(tmp_path / 'a.tif')
    np.testing.assert_array_equal(picture(tmp_path / 'a.tif', bands=(3, 2, 1)), RGB[..., ::-1])
    np.testing.assert_array_equal(picture(tmp_path / 'a.tif', bands=(2, )), RGB[..., [1, 1, 1]])
    with pytest.raises(ValueError, match=r'a.tif has 3 band\(s\), `bands` asks for 4 2 1'):
        picture(tmp_path / 'a.tif', bands=(4, 2, 1))


def test_four_bands_in_a_cmyk_tiff_stay_what_they_are(tmp_path: Path, reader: str) -> None:
    """Five-Billion-Pixels stores near infrared, red, green and blue so; GDAL would mix them."""
    values = RNG.integers(0, 256, (9, 7, 4), dtype=np.uint8)
    Image.frombytes('CMYK', (7, 9), values.tobytes()).save(tmp_path / 'a.tif')
    np.testing.assert_array_equal(picture(tmp_path / 'a.tif', bands=(2, 3, 4)), values[..., 1:])
    with pytest.raises(ValueError, match='a.tif has 4 bands; say by `bands`'):
        picture(tmp_path / 'a.tif')


@pytest.mark.parametrize('bits, values', [(1, [0, 1]), (2, [0, 1, 2, 3]), (4, [0, 3, 15])])
def test_masks_of_few_bits_hold_their_values(tmp_path: Path, bits: int, values: list[int]) -> None:
    """Grey PNG of 1, 2 and 4 bits, written by hand: Pillow stretches them to 255."""
    import struct
    import zlib
    rows = b''.join(b'\0' + bytes([value << (8 - bits)]) for value in values)  # one pixel a row

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    header = struct.pack('>IIBBBBB', 1, len(values), bits, 0, 0, 0, 0)
    (tmp_path / 'm.png').write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) +
                                     chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b''))
    with open_raster(file(tmp_path / 'm.png')) as opened:
        assert opened.read(Window(0, 0, len(values), 1)).ravel().tolist() == values


def test_masks_of_16_bits_hold_their_values(tmp_path: Path, reader: str) -> None:
    values = RNG.integers(0, 60000, (9, 7), dtype=np.uint16)
    for name in ('m.png', 'm.tif'):
        Image.fromarray(values).save(tmp_path / name)
        with open_raster(file(tmp_path / name)) as opened:
            np.testing.assert_array_equal(opened.read(PART)[..., 0], values[2:6, 1:6])


def test_stretch_in_closed_form() -> None:
    stretch = Stretch((100, 0, -1), (300, 1, 1))
    values = np.array([[[100, 0.5, -5]], [[200, 0.25, 0]], [[300, 2, 1]]])
    assert stretch.apply(values).tolist() == [[[0, 128, 0]], [[128, 64, 128]], [[255, 255, 255]]]
    pixels = np.stack([np.arange(101), 10 * np.arange(101), np.full(101, 7)], axis=1).astype(np.uint16)
    found = StretchRule(percentiles=(10, 90)).of_samples([pixels[:50], pixels[50:]])
    assert (found.low, found.high) == ((10, 100, 7), (90, 900, 7))
    assert found.apply(pixels[None, 50:51]).tolist() == [[[128, 128, 0]]], 'a constant band is black'
    with_gaps = np.concatenate([pixels.astype(np.float32), np.full((3, 3), np.nan, np.float32)])
    assert StretchRule(percentiles=(10, 90)).of_samples([with_gaps]) == found


@pytest.mark.parametrize('options, message', [
    (dict(percentiles=(5, 5)), '`percentiles`'), (dict(percentiles=(-1, 50)), '`percentiles`'),
    (dict(kind='range'), '`value_range`'), (dict(value_range=(0, 1)), '`value_range`'),
    (dict(kind='range', value_range=(3, 2)), '`value_range`')])
def test_wrong_stretches_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StretchRule(**options)


def test_when_images_are_stretched(tmp_path: Path) -> None:
    small, large = np.dtype(np.uint8), np.dtype(np.uint16)
    assert [StretchRule().needed(dtype, file(tmp_path / 'a')) for dtype in (small, large)] == [False, True]
    assert StretchRule('percentile').needed(small, file(tmp_path / 'a'))
    with pytest.raises(ValueError, match="a has values of uint16, and `stretch` is 'none'"):
        StretchRule('none').needed(large, file(tmp_path / 'a'))


def test_what_needs_rasterio_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster, 'has_rasterio', lambda: False)
    import cv2
    for name in ('a.png', 'a.tif'):
        cv2.imwrite(str(tmp_path / name), RGB.astype(np.uint16) * 200)
        with pytest.raises(ValueError, match=rf"{name}: .* need rasterio; pip install 'mmsynth\[geo\]'"):
            open_raster(file(tmp_path / name))
    (tmp_path / 'a.jp2').touch()
    with pytest.raises(ValueError, match='jp2 files need rasterio'):
        open_raster(file(tmp_path / 'a.jp2'))


@pytest.mark.parametrize('name', ['a.png', 'a.tif', 'a.jpg'])
def test_damaged_files_are_named(tmp_path: Path, name: str, reader: str) -> None:
    (tmp_path / name).write_bytes(b'nothing of the kind')
    with pytest.raises(ValueError, match=rf'{name}.*(cannot be read|need rasterio)'):
        open_raster(file(tmp_path / name))


def test_a_file_cut_off_is_named(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / 'a.png')
    content = (tmp_path / 'a.png').read_bytes()
    (tmp_path / 'a.png').write_bytes(content[:len(content) // 2])
    with open_raster(file(tmp_path / 'a.png')) as opened, pytest.raises(ValueError, match='a.png cannot be read'):
        opened.read(ALL)


def test_what_is_no_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='`source`'):
        list_files(tmp_path / 'nowhere')
    (tmp_path / 'a.zip').write_bytes(b'half')
    with pytest.raises(ValueError, match='a.zip cannot be read as a zip'):
        list_files(tmp_path)


# ---- with rasterio


@GEO
def test_16_bit_images_are_read_and_stretched(tmp_path: Path) -> None:
    values = RNG.integers(0, 4000, (9, 7, 4), dtype=np.uint16)
    path = write_geotiff(tmp_path / 'a.tif', values)
    rule = StretchRule(percentiles=(0, 100))
    with open_raster(file(path)) as opened:
        stretch = rule.of_samples([opened.sample((4, 2, 1), 10**6)])
    chosen = values[..., [3, 1, 0]].reshape(-1, 3)
    assert stretch == Stretch(tuple(chosen.min(0).tolist()), tuple(chosen.max(0).tolist()))
    scaled = 255.0 * (values[..., [3, 1, 0]] - chosen.min(0)) / (chosen.max(0) - chosen.min(0))
    assert np.abs(picture(path, bands=(4, 2, 1), stretch=stretch) - scaled).max() <= 0.501
    np.testing.assert_array_equal(picture(path, PART, (4, 2, 1), stretch),
                                  picture(path, ALL, (4, 2, 1), stretch)[2:6, 1:6])


@GEO
def test_16_bit_colour_png_is_read_in_full(tmp_path: Path) -> None:
    import cv2
    values = RNG.integers(0, 65536, (9, 7, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / 'a.png'), values[..., ::-1])
    with open_raster(file(tmp_path / 'a.png')) as opened:
        np.testing.assert_array_equal(opened.read(ALL), values)


@GEO
def test_pixels_without_data_are_left_out(tmp_path: Path) -> None:
    values = np.arange(1, 190, dtype=np.int16).reshape(9, 7, 3)
    values[:4, :] = -9999
    values[4, 0, 1] = -9999  # one band alone is a value
    path = write_geotiff(tmp_path / 'a.tif', values, nodata=-9999)
    with open_raster(file(path)) as opened:
        sample = opened.sample((1, 2, 3), 10**6)
        _, valid = read_picture(opened, ALL, (1, 2, 3), Stretch((0, ) * 3, (1, ) * 3))
    assert len(sample) == 35 and not valid[:4].any() and valid[4:].all()


@GEO
def test_samples_are_spread_over_the_image(tmp_path: Path) -> None:
    values = np.arange(60 * 80, dtype=np.uint16).reshape(60, 80, 1)
    path = write_geotiff(tmp_path / 'a.tif', values)
    with open_raster(file(path)) as opened:
        sample = opened.sample((1, ), 300)
    assert 200 < len(sample) <= 350 and abs(sample.mean() - values.mean()) < 100


@GEO
def test_colours_of_an_indexed_geotiff(tmp_path: Path) -> None:
    import rasterio
    path = write_geotiff(tmp_path / 'a.tif', RGB[..., :1] % 3)
    with rasterio.open(path, 'r+') as opened:
        opened.write_colormap(1, {0: (1, 2, 3), 1: (4, 5, 6), 2: (7, 8, 9)})
    np.testing.assert_array_equal(picture(path), np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])[RGB[..., 0] % 3])
