"""Class tables and the masks that they read: values, colours, what is unknown."""
import json
from pathlib import Path

import numpy as np
import pytest

from mmsynth.datasets.conversion import ClassTable, read_class_table


def column(*values: int) -> np.ndarray:
    return np.array(values, np.uint16).reshape(-1, 1, 1)


def colours(*values: tuple[int, int, int]) -> np.ndarray:
    return np.array(values, np.uint8).reshape(-1, 1, 3)


def write(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize('name, content', [
    ('t.json', {'0': 'ignore', '7': 'road', '300': 'water', '8': 'road'}),
    ('t.csv', 'value,class\n0,ignore\n7,road\n300,water\n8,road\n'),
    ('t.csv', 'Value, Class, red, green, blue\n0, Ignore, 0, 0, 0\n7, road, 1, 2, 3\n300, water, 4, 5, 6\n'
              '8, road, 9, 9, 9\n'),
])  # yapf: disable
def test_values_become_ids_in_the_order_of_their_names(tmp_path: Path, name: str, content: object) -> None:
    table = read_class_table(write(tmp_path, name, content))
    assert table.classes == ('road', 'water')
    assert 'red' not in str(content) or table.palette == ((1, 2, 3), (4, 5, 6))
    ids, unknown = table.encode(column(0, 7, 8, 300, 9, 65535), 'm')
    assert ids.ravel().tolist() == [255, 0, 0, 1, 255, 255] and unknown.ravel().tolist() == [False] * 4 + [True] * 2


@pytest.mark.parametrize('name, content', [
    ('t.json', {'#3C1098': 'building', '254, 221, 58': 'vegetation', '#000000': 'ignore'}),
    ('t.csv', 'red,green,blue,class\n60,16,152,building\n254,221,58,vegetation\n0,0,0,ignore\n'),
])
def test_colours_become_ids(tmp_path: Path, name: str, content: object) -> None:
    table = read_class_table(write(tmp_path, name, content))
    assert (table.classes, table.palette) == (('building', 'vegetation'), ((60, 16, 152), (254, 221, 58)))
    raw = colours((60, 16, 152), (254, 221, 58), (0, 0, 0), (60, 16, 153))
    ids, unknown = table.encode(raw, 'm')
    assert ids.ravel().tolist() == [0, 1, 255, 255] and unknown.ravel().tolist() == [False, False, False, True]
    assert table.unknown_values(raw, unknown, 'm') == {'#3C1099': 1}


def test_a_meta_file_counts_from_0(tmp_path: Path) -> None:
    table = read_class_table(write(tmp_path, 'meta.json', dict(classes=['a', 'b'], palette=[[1, 1, 1], [2, 2, 2]],
                                                               licence='x')))
    ids, unknown = table.encode(column(0, 1, 2, 255), 'm')
    assert ids.ravel().tolist() == [0, 1, 255, 255] and unknown.ravel().tolist() == [False, False, True, False]


@pytest.mark.parametrize('tolerance', [0, 1, 5])
def test_tolerance_is_the_largest_difference_of_a_channel(tolerance: int) -> None:
    """Against the definition, over every colour near those of the table."""
    table = ClassTable.of_palette(['a', 'b'], [(250, 3, 128), (230, 3, 128)], tolerance=tolerance)
    raw = np.random.default_rng(0).integers(0, 10, (50, 40, 3)) + [[[225, 0, 123]]]
    raw[25:, :, 0] = np.minimum(raw[25:, :, 0] + 20, 255)
    ids, unknown = table.encode(raw.astype(np.uint8), 'm')
    near = [np.abs(raw - colour).max(axis=2) <= tolerance for colour in table.palette]
    np.testing.assert_array_equal(ids, np.where(near[0], 0, np.where(near[1], 1, 255)))
    np.testing.assert_array_equal(unknown, ~(near[0] | near[1]))


def test_grey_masks_stored_as_rgb_are_read_by_value() -> None:
    table = ClassTable.of_ids(['a', 'b'], [(0, 0, 0), (1, 1, 1)])
    assert table.encode(np.repeat(column(0, 1), 3, axis=2).astype(np.uint8), 'm')[0].ravel().tolist() == [0, 1]


@pytest.mark.parametrize('raw, table, message', [
    (colours((1, 2, 3)), {'1': 'a'}, 'm has 3 bands of colours.*names values'),
    (column(1), {'#010203': 'a'}, 'm has one band.*names colours'),
    (np.full((1, 1, 1), 0.5), {'1': 'a'}, 'm holds fractions'),
    (colours((1, 2, 3)).astype(np.uint16), {'#010203': 'a'}, 'uint16'),
])
def test_masks_of_another_kind_are_refused(tmp_path: Path, raw: np.ndarray, table: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_class_table(write(tmp_path, 't.json', table)).encode(raw, 'm')


@pytest.mark.parametrize('content, message', [
    ('{"1": "a", "1": "b"}', "'1' stands there twice"),
    ({'a': '1'}, "'a' is neither a value nor a colour"),
    ({'1': 'a', '#010101': 'b'}, 'values and colours'),
    ({'1': 'ignore'}, 'names no class'),
    ({'1': ''}, '1 has no class name'),
    ({}, 'must be an object'),
    ({'70000': 'a'}, '70000'),
    ({'1, 2, 300': 'a'}, '300'),
    ({'classes': ['a', 'b'], 'palette': [[0, 0, 0]]}, '1 colours for 2 classes'),
    ({'classes': ['a', 'a']}, 'a class twice'),
    ('not json', 'A class table is a JSON object'),
])
def test_wrong_tables_are_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(ValueError, match=f'`class_table` .*t.json: .*{message}'):
        read_class_table(write(tmp_path, 't.json', content))


@pytest.mark.parametrize('content, message', [
    ('colour,class\n1,a\n', 'its columns are colour, class'), ('value,class\n1,a\nx,b\n', 'line 3 has no whole number'),
    ('value,class\n1,a\n1,b\n', '1 stands there twice'), ('value,class\n', 'has no entries')])
def test_wrong_csv_tables_are_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_class_table(write(tmp_path, 't.csv', content))


def test_tolerance_mistakes() -> None:
    with pytest.raises(ValueError, match='`colour_tolerance` 3 has no effect'):
        ClassTable(('a', ), ((0, 0, 0), ), values={0: 0}, tolerance=3)
    with pytest.raises(ValueError, match=r'`colour_tolerance` 6 makes .* the same'):
        ClassTable.of_palette(['a', 'b'], [(0, 0, 0), (0, 0, 12)], tolerance=6).encode(colours((0, 0, 0)), 'm')
    with pytest.raises(FileNotFoundError, match='`class_table`.*no file'):
        read_class_table('nowhere.json')
