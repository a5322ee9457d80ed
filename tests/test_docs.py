"""The pages of docs/en: Sphinx builds them, no class is missing, what they name exists, their configs load."""
import ast
import itertools
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mmseg
import numpy as np
import pytest
from mmengine.config import Config
from page_examples import DOCS, PAGES, blocks, files
from PIL import Image
from small_run import ROOT, command
from test_configs import STABLE_DIFFUSION_1, STABLE_DIFFUSION_3, replace_backbone, resolves, walk

import mmsynth
from mmsynth.registry import DATASETS, MODELS
from mmsynth.sampling import SAMPLERS

GET_STARTED = DOCS / 'get_started.md'
NEWCOMER = ROOT / 'tools' / 'dev' / 'newcomer.sh'
CONFIGS = [(page, name) for page in PAGES for name in files(page) if '_base_' in files(page)[name]]


# ---- the reference


@pytest.fixture(scope='module')
def extension() -> dict[str, Any]:
    """What docs/en/registered.py defines."""
    return runpy.run_path(str(DOCS / 'registered.py'))


def registered_in_the_sources() -> set[str]:
    """The names that `register_module` decorators give, found without importing anything."""
    names = set()
    for path in (ROOT / 'mmsynth').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            for decorator in getattr(node, 'decorator_list', ()):
                text = ast.unparse(decorator)
                if '.register_module(' in text:
                    given = re.search(r"name='(\w+)'|register_module\('(\w+)'", text)
                    names.add(next(filter(None, given.groups())) if given else node.name)
    return names


def test_every_registered_class_is_documented_once(extension: dict[str, Any]) -> None:
    documented = [name for page in extension['registered']().values() for name, _ in page]
    assert len(documented) == len(set(documented)) > 60
    assert set(documented) == registered_in_the_sources()


def test_every_kind_has_its_page(extension: dict[str, Any]) -> None:
    asked = {name: re.findall(r'^\.\. registered:: (\w+)$', (DOCS / 'reference' / f'{name}.md').read_text(), re.M)
             for name in extension['PAGES'].keys() | {'apis'}}
    assert asked == {name: [name] for name in asked}
    assert all(page for page in extension['registered']().values())


def test_public_names_are_documented(extension: dict[str, Any]) -> None:
    documented = {name for page in extension['registered']().values() for name, _ in page}
    by_hand = {path.rsplit('.', 1)[-1] for page in (DOCS / 'reference').glob('*.md')
               for path in re.findall(r'^\.\. auto\w+:: ([\w.]+)$', page.read_text(), re.M)}
    assert {name for name in mmsynth.__all__ if not name.startswith('_')} <= documented | by_hand


def test_a_class_of_no_page_is_named(extension: dict[str, Any]) -> None:
    forgotten = type('Forgotten', (), dict(__module__='mmsynth.somewhere_new'))
    MODELS.register_module(module=forgotten)
    try:
        with pytest.raises(ValueError, match='Forgotten.*mmsynth.somewhere_new.*PAGES'):
            extension['registered']()
    finally:
        MODELS.module_dict.pop('Forgotten')


@pytest.mark.slow
def test_sphinx_builds_every_page_without_warnings(tmp_path: Path, extension: dict[str, Any]) -> None:
    """Links, references between classes, docstrings' markup; and every page is in the index's tables of contents."""
    if missing := [name for name in ('sphinx', 'myst_parser', 'furo') if find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} not installed: pip install 'mmsynth[docs]'")
    line, env = command('-m', 'sphinx', '-W', '--keep-going', '-q', DOCS, tmp_path / 'html')
    result = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-5000:]
    pages = {path.relative_to(DOCS).with_suffix('.html').as_posix() for path in DOCS.rglob('*.md')} - {'index.html'}
    index = (tmp_path / 'html' / 'index.html').read_text()
    body = index.split('<article', 1)[1].split('</article>')[0]
    assert {page for page in pages if f'toctree-l1"><a class="reference internal" href="{page}"' in body} == pages
    for page, entries in extension['registered']().items():
        html = (tmp_path / 'html' / 'reference' / f'{page}.html').read_text()
        assert not [name for name, value in entries if f'id="{extension["public_path"](value)}"' not in html]


# ---- what the pages name


def expand(text: str) -> Iterator[str]:
    """``a{b,c}d`` → abd, acd."""
    parts = [part.split(',') if index % 2 else [part] for index, part in enumerate(re.split(r'\{([^{}]*)\}', text))]
    return (''.join(choice) for choice in itertools.product(*parts))


def text_of(page: Path) -> str:
    return page.read_text(encoding='utf-8').replace("mmseg's `tools/", '`').replace("mmseg's tools/", '')


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    folders = r'(?<![\w/.-])(?:tools|configs|projects|tests|docs|requirements)/'
    named = {path for match in re.findall(folders + r'[\w./{},-]+\.(?:py|sh|md|txt)\b', text_of(page))
             for path in expand(match)}
    written = {path for path in named if f'# {Path(path).name}' in text_of(page)}  # what it tells to write
    assert not sorted(path for path in named - written if not (ROOT / path).is_file())


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_classes_that_a_page_names_are_registered(page: Path) -> None:
    named = set(re.findall(r"type='(mmsynth\.\w+)'", text_of(page)))
    assert not sorted(name for name in named if not resolves(name))


# ---- configs that the reader is told to write


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder as the pages have it: the repository's configs, mmseg's, and data in the layout described."""
    for name in ('configs', 'projects'):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / 'mmseg_configs').symlink_to(Path(mmseg.__file__).parent / '.mim' / 'configs')
    for folder in ('images', 'masks', 'references'):
        (tmp_path / 'data/mine' / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 3, (40, 40), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    Image.fromarray(mask).save(tmp_path / 'data/mine/masks/a.png')
    for name in ('images/a.png', 'references/b.png'):
        Image.fromarray(rng.integers(0, 255, (640, 640, 3), dtype=np.uint8)).save(tmp_path / 'data/mine' / name)
    layout = re.search(r'meta\.json +(\{.*\})', (DOCS / 'train_todsynth.md').read_text()).group(1)
    (tmp_path / 'data/mine/meta.json').write_text(json.dumps(json.loads(layout)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(page: Path) -> None:
    for name, text in files(page).items():
        Path(name).write_text(text)


@pytest.mark.parametrize('page, name', CONFIGS, ids=lambda value: getattr(value, 'name', value))
def test_a_config_on_a_page_loads(page: Path, name: str, checkout: Path) -> None:
    for own in ('my_segmentor', 'my_generator'):  # the reader's own, unless the page writes it
        Path(f'{own}.py').write_text("train_dataloader = dict(dataset=dict(type='X'))\nmodel = dict(type='X')\n"
                                     "synthesis = dict(dataset=dict(type='X'))\n")
    write(page)
    cfg = Config.fromfile(name, import_custom_modules=False)
    named = {part['type'] for part in walk(cfg._cfg_dict) if 'type' in part} - {'X', *SAMPLERS}
    own = {unknown for unknown in named if '.' not in unknown.removeprefix('mmsynth.')}
    assert own and [unknown for unknown in sorted(own) if not resolves(unknown)] == []


@pytest.mark.slow
@pytest.mark.parametrize('name', ['my_todsynth', 'my_tisynth'])
def test_a_generator_on_your_own_data(name: str, checkout: Path, tiny_sd3: Path, tiny_sd15: Path) -> None:
    """Its model builds on a tiny backbone, and reads the folder that the page describes."""
    page = DOCS / f'train_{name.removeprefix("my_")}.md'
    write(page)
    cfg = Config.fromfile(f'{name}.py', import_custom_modules=False)
    replace_backbone(cfg._cfg_dict, {STABLE_DIFFUSION_3: tiny_sd3, STABLE_DIFFUSION_1: tiny_sd15})
    cfg.model.text_encoder = cfg.prompt_encoder  # in the place of the cache that tools/encode_prompts.py fills
    model = MODELS.build(cfg.model)
    for settings, has_image in ((cfg.train_dataloader.dataset, True), (cfg.synthesis.dataset, False)):
        dataset = DATASETS.build(settings)
        sample = dataset[0]
        assert len(dataset) == 1 and len(dataset.metainfo['classes']) == model.num_classes == 3
        assert sample['data_samples'].gt_sem_seg.data.shape[-2:] == (512, 512)
        assert ('inputs' in sample) == has_image and sample['data_samples'].prompt.startswith('a satellite image of')


# ---- Get started


def marked_blocks() -> list[str]:
    """The text of the blocks under <!-- newcomer -->, by another reader of Markdown than the script's."""
    lines = GET_STARTED.read_text().splitlines()
    return [block.text for block in blocks(GET_STARTED) if lines[block.line - 2] == '<!-- newcomer -->']


def newcomer(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(['bash', str(NEWCOMER), *arguments], env={'PATH': '/usr/bin:/bin', **env},
                          capture_output=True, text=True)


@pytest.mark.skipif(shutil.which('bash') is None or shutil.which('awk') is None, reason='needs bash and awk')
class TestNewcomer:

    def test_it_finds_the_commands_of_the_page(self) -> None:
        result = newcomer('--list')
        assert result.returncode == 0, result.stderr
        place = 0
        for text in marked_blocks():  # all of them, in order
            place = result.stdout.index(text, place)
        commands = ('install torch', "install -e '.[onedl]'", 'projects/demo --smoke', 'train.py my_segmentor.py',
                    'train.py my_generator.py', 'synthesize.py my_generator.py', 'train.py my_mixed.py')
        places = [result.stdout.index(text) for text in commands]
        assert places == sorted(places)
        assert 'MMCV_WITH_OPS' not in result.stdout  # the half hour of the other stack is not marked
        assert result.stdout.count('cat > ') == len(files(GET_STARTED))

    def test_what_it_would_run_is_bash(self) -> None:
        checked = subprocess.run(['bash', '-n'], input=newcomer('--list').stdout, capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, '')

    def test_it_ends_with_the_first_command_that_fails(self, tmp_path: Path) -> None:
        page = tmp_path / 'page.md'
        page.write_text('<!-- newcomer -->\n```python\n# a.py\nprint("$HOME")\n```\n\n<!-- newcomer -->\n```bash\n'
                        'grep -c HOME a.py\nfalse\necho too far\n```\n\n```bash\necho not marked\n```\n')
        result = newcomer(PAGE=str(page), FOLDER=str(tmp_path / 'copy'))
        assert result.returncode != 0 and (tmp_path / 'copy' / 'setup.py').is_file()
        assert re.search(r'page.md:9: grep.*\n1\n', result.stdout) and 'page.md:10: false' in result.stdout
        assert 'too far' not in result.stdout and 'not marked' not in result.stdout and 'holds' not in result.stdout

    @pytest.mark.parametrize('text, message', [
        ('```bash\ntrue\n```\n', 'no block'),
        ('<!-- newcomer -->\n```text\ntrue\n```\n', 'page.md:2: a block of `text`'),
        ('<!-- newcomer -->\nWords.\n', 'page.md:2: no code block'),
        ('<!-- newcomer -->\n```python\nimport os\n```\n', 'page.md:3: a file begins with'),
    ])
    def test_a_page_that_is_marked_wrongly_is_refused(self, text: str, message: str, tmp_path: Path) -> None:
        (tmp_path / 'page.md').write_text(text)
        result = newcomer('--list', PAGE=str(tmp_path / 'page.md'))
        assert result.returncode != 0 and message in result.stderr

    def test_a_folder_that_is_not_empty_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / 'mine').touch()
        result = newcomer(FOLDER=str(tmp_path))
        assert result.returncode != 0 and 'FOLDER' in result.stderr and [*tmp_path.iterdir()] == [tmp_path / 'mine']


def test_the_drawn_scenes_are_as_loveda_has_them(tmp_path: Path) -> None:
    script = tmp_path / 'draw_scenes.py'
    script.write_text(files(GET_STARTED)['draw_scenes.py'])
    subprocess.run([sys.executable, script], cwd=tmp_path, check=True)
    labels = {path.name: np.asarray(Image.open(path)) for path in (tmp_path / 'data/scenes/ann_dir/train').iterdir()}
    assert len(labels) == 24 and set(np.unique([*labels.values()])) == {1, 2, 3, 4, 5, 6, 7}
    assert labels.keys() == {path.name for path in (tmp_path / 'data/scenes/img_dir/train').iterdir()}
