"""The converters as tools: their options, and a user's own folder on the way to a config and to `make demo`."""
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from archives import labels, picture, save, write_dubai, write_fusu, write_gid
from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image
from small_run import ROOT, run

from mmsynth.datasets import DubaiDataset
from mmsynth.datasets.conversion.archives import GID_CLASSES
from projects.demo.prepare import split_folder

TOOLS = ROOT / 'tools' / 'dataset_converters'
COMMON = ['source', '--out-dir', '--dry-run', '--tile-size', '--stride', '--min-labelled', '--unknown-labels']
SPLIT = ['--places', '--val', '--test', '--val-share', '--test-share', '--train-list', '--val-list', '--test-list',
         '--seed']
STRETCH = ['--stretch {auto,none,percentile,range}', '--percentiles', '--stretch-over {set,image}', '--range']
OPTIONS = dict(
    loveda=[], isaid=[], dubai=[], potsdam=['--labels {no-boundary,all}'], fusu=SPLIT,
    gid=['--classes {5,15,24}', '--images {rgb,8bit,16bit}', *SPLIT, *STRETCH],
    folder=['--images', '--masks', '--mask-suffix', '--class-table', '--colour-tolerance',
            '--layout {manifest,folders}', '--skip-unlabelled', '--name', '--bands', *SPLIT, *STRETCH])  # yapf: disable
COLOURS = [(0, 0, 0), *2 * [(10, 20, 30), (200, 0, 0), (0, 0, 200)]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> object:
    """A tool's own main function, in this process."""
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.chdir(tmp_path)

    def main(tool: str, *arguments: object) -> None:
        runpy.run_path(str(TOOLS / f'{tool}.py'))['main'](list(map(str, arguments)))
    return main


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Twelve images of three places, masks in colours of which one is not quite that of the table."""
    for place in ('north', 'east', 'south'):
        for number in range(4):
            save(tmp_path / f'mine/images/{place}_{number}.jpg', picture((64, 80)))
            save(tmp_path / f'mine/masks/{place}_{number}_label.png', labels((64, 80), COLOURS))
    (tmp_path / 'mine/classes.csv').write_text(
        'red,green,blue,class\n0,0,0,ignore\n10,20,33,field\n200,0,0,building\n0,0,200,water\n')
    return tmp_path / 'mine'


def own_options(mine: Path) -> list:
    return [mine, '--class-table', mine / 'classes.csv', '--colour-tolerance', 3, '--mask-suffix', '_label']


@pytest.mark.slow
@pytest.mark.parametrize('tool', sorted(OPTIONS))
def test_help_names_the_options(tool: str, tmp_path: Path) -> None:
    """Wherever it is called from, and without mmsynth being installed."""
    text = run(TOOLS / f'{tool}.py', '--help', cwd=tmp_path)
    assert f'usage: {tool}.py' in text
    assert [option for option in [*COMMON, *OPTIONS[tool]] if option not in text] == []


def test_every_tool_is_listed() -> None:
    assert {path.stem for path in TOOLS.glob('*.py')} == {*OPTIONS, 'converter_options'}


def test_a_dry_run_prints_the_summary_alone(call: object, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_dubai(tmp_path / 'raw', [(0, 0, 0), *map(tuple, DubaiDataset.METAINFO['palette'])])
    call('dubai', 'raw', '--dry-run')
    output = capsys.readouterr()
    assert re.search(r'images +│ +4 +│ +2 ', output.out) and 'vegetation' in output.out and '16.75 %' in output.out
    assert 'nothing was written' in output.out and 'checking: 100%' in output.err and not (tmp_path / 'data').exists()
    call('dubai', 'raw')
    assert 'written: data/dubai_mbrsc' in capsys.readouterr().out and Path('data/dubai_mbrsc/meta.json').is_file()


def test_a_mistake_ends_with_its_message(call: object, mine: Path) -> None:
    message = r'error: mine cannot be converted:\n- .*_0_label.png .*#0A141E in 14\d\d pixels.*colour_tolerance'
    with pytest.raises(SystemExit, match=message):
        call('folder', mine, '--class-table', mine / 'classes.csv', '--mask-suffix', '_label', '--out-dir', 'out')
    with pytest.raises(SystemExit, match='error: `class_table`: there is no file .*meta.json'):
        call('folder', mine, '--out-dir', 'out')
    with pytest.raises(SystemExit, match='error: `percentiles`'):
        call('folder', *own_options(mine), '--out-dir', 'out', '--percentiles', 9, 1)
    assert not Path('out').exists()


def test_places_of_gid_and_fusu(call: object, tmp_path: Path) -> None:
    write_fusu(tmp_path / 'fusu')
    call('fusu', 'fusu', '--out-dir', 'a', '--val', '6', '7')
    names = set(re.findall(r'masks/(\d+)_', Path('a/val.jsonl').read_text()))
    assert names == {'6', '7'}
    write_gid(tmp_path / 'gid', 5, list(GID_CLASSES[5].values()))
    Path('val.txt').write_text('GF2_PMS0__L1A000-MSS1.tif\n')
    call('gid', 'gid', '--classes', 5, '--out-dir', 'b', '--val-list', 'val.txt', '--tile-size', 32, '--stride', 16)
    assert len(Path('b/val.jsonl').read_text().splitlines()) == 2 * 3
    assert len(Path('b/train.jsonl').read_text().splitlines()) == 5 * 6


@pytest.mark.parametrize('options, stride', [([], 512), (['--tile-size', '20'], None), (['--stride', '300'], 300)])
def test_the_usual_stride_belongs_to_the_usual_tiles(call: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     options: list[str], stride: int | None) -> None:
    from mmsynth.datasets import conversion
    seen = []
    monkeypatch.setattr(conversion, 'convert', lambda pairs, recipe, *rest, **more: seen.append(recipe) or exit())
    save(tmp_path / 'raw/train/images/P0001.png', picture((8, 8)))
    save(tmp_path / 'raw/train/Semantic_masks/P0001_instance_color_RGB.png', labels((8, 8), [(0, 0, 0)]))
    with pytest.raises(SystemExit):
        call('isaid', 'raw', *options)
    assert seen[0].stride == stride


def test_the_demo_reads_a_converted_folder(call: object, mine: Path) -> None:
    call('folder', *own_options(mine), '--out-dir', 'out', '--name', 'my area')
    meta = split_folder('out', 'demo', val_pattern='north_*', downscale=1, tile_size=16, piece_size=32, num_synthesis=4)
    assert (meta['name'], meta['classes']) == ('my area', ['field', 'building', 'water'])
    assert meta['counts']['val'] == 4 and meta['counts']['synthesis'] == 4


def test_the_documented_example(call: object, tmp_path: Path) -> None:
    """The command of the page, on images as it describes them, and its config on what that wrote."""
    for place in ('north', 'east', 'south'):
        save(tmp_path / f'my_area/images/{place}_1.tif', picture((600, 700)))
        save(tmp_path / f'my_area/masks/{place}_1.png', labels((600, 700), [0, 10, 20, 21]))
    text = (ROOT / 'docs/en/dataset_prepare.md').read_text()
    Path('my_area/classes.csv').write_text(re.search(r'```\n(value,class,.*?)```', text, re.S).group(1))
    [options] = re.findall(r'folder\.py my_area (.*?)```', text, re.S)
    call('folder', 'my_area', *options.replace('\\\n', ' ').replace("'", '').split())
    for name, config in re.findall(r'```python\n(?=# (my_area\w*\.py))(.*?)```', text, re.S):
        Path(name).write_text(config.replace("'../", f"'{ROOT}/configs/"))
    cfg, generator = Config.fromfile('my_area.py'), Config.fromfile('my_area_todsynth.py')
    train, val = (DATASETS.build(cfg[part].dataset) for part in ('train_dataloader', 'val_dataloader'))
    assert (len(train), len(val)) == (2 * 4, 4) and train.metainfo['classes'] == ('water', 'built-up')
    sample = train[0]
    assert tuple(sample['inputs'].shape) == (3, 512, 512)
    assert set(np.unique(val[0]['data_samples'].gt_sem_seg.data)) == {0, 1, 255}
    assert cfg.model.decode_head.num_classes == generator.model.label_codec.num_classes == 2
    pairs, masks = (DATASETS.build(generator[part].dataset) for part in ('train_dataloader', 'synthesis'))
    assert len(pairs) == len(masks) == 8 and pairs[0]['data_samples'].prompt.endswith('of water, built-up')
    assert Image.open(val.get_data_info(0)['img_path']).size == (512, 512)
