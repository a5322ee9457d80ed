"""The package as users meet it: version gate, public names, tools/train.py, wheel, Makefile."""
import importlib
import os
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

import mmsynth
from mmsynth import host

ROOT = Path(__file__).resolve().parents[1]
GOOD = {'torch': '2.13.0', 'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6', 'onedl-mmsegmentation': '1.4.2',
        'diffusers': '0.42.1'}  # yapf: disable
ORIGINAL = {'torch': '2.6.0+cu124', 'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmsegmentation': '1.2.2',
            'diffusers': '0.31.0'}  # yapf: disable
MAKE = pytest.mark.skipif(shutil.which('make') is None, reason='needs make')


def install(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], without_metadata: tuple[str, ...] = ()) -> None:
    """Let the gate see these distributions, and modules for them and for ``without_metadata``."""
    def version(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    modules = {p.module for p in host.HOST_STACK if versions.keys() & set(p.distributions)} | set(without_metadata)
    monkeypatch.setattr(host, 'version', version)
    monkeypatch.setattr(host, 'find_spec', lambda name: object() if name in modules else None)


def check_quietly() -> None:
    """Run the gate, with a warning counting as an error."""
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        host.check_host_stack()


# ---- version gate


@pytest.mark.parametrize('versions', [GOOD, ORIGINAL, {**ORIGINAL, 'mmcv': '2.0.0'}])
def test_gate_lets_both_families_pass(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    install(monkeypatch, versions)
    check_quietly()


def test_gate_takes_a_checkout_without_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {k: v for k, v in GOOD.items() if k != 'onedl-mmsegmentation'}, without_metadata=('mmseg', ))
    check_quietly()


@pytest.mark.parametrize('change, message', [
    ({'onedl-mmcv': None},
     'mmsynth needs mmcv >= 2.0.0 (not installed). Install with: pip install "onedl-mmcv>=2.0.0"'),
    ({'onedl-mmcv': '1.7.1'}, 'mmcv >= 2.0.0 (found onedl-mmcv 1.7.1). Install'),
    ({'onedl-mmcv': '2.0.0rc4'}, 'found onedl-mmcv 2.0.0rc4'),
    ({'diffusers': '0.30.3'}, 'diffusers >= 0.31.0 (found diffusers 0.30.3)'),
    ({'torch': '2.0.1', 'onedl-mmengine': None}, 'torch >= 2.6 (found torch 2.0.1); mmengine >= 0.10.4 (not inst'),
    ({'onedl-mmcv': None, 'mmcv-full': '1.7.1'}, '(found mmcv-full 1.7.1). Install with: pip install "mmcv>=2.0.0"'),
])  # yapf: disable
def test_gate_says_what_is_wrong_in_one_line(monkeypatch: pytest.MonkeyPatch, change: dict[str, str | None],
                                             message: str) -> None:
    install(monkeypatch, {name: number for name, number in {**GOOD, **change}.items() if number})
    with pytest.raises(ImportError, match=re.escape(message)) as caught:
        host.check_host_stack()
    assert '\n' not in str(caught.value)


def test_gate_warns_of_two_distributions_of_one_module(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {**GOOD, 'mmengine': '0.10.7'})
    with pytest.warns(UserWarning, match='installed twice, by onedl-mmengine 0.10.12 and mmengine 0.10.7') as caught:
        host.check_host_stack()
    message = str(caught[0].message)
    assert len(caught) == 1 and '\n' not in message and 'pip uninstall mmengine, then' in message


# ---- names


@pytest.mark.parametrize('name', [name for name in mmsynth.__all__ if not name.startswith('_')])
def test_public_name_is_its_class(name: str) -> None:
    assert name in dir(mmsynth)
    value = getattr(mmsynth, name)
    assert isinstance(value, type) and value.__name__ == name
    assert getattr(importlib.import_module(value.__module__), name) is value


def test_all_and_homes_agree() -> None:
    assert set(mmsynth.__all__) == {'__version__', *mmsynth._HOMES}


def test_unknown_name_lists_the_public_ones() -> None:
    with pytest.raises(AttributeError, match="no attribute 'TODSynt'; public names: .*TODSynth"):
        mmsynth.TODSynt  # noqa: B018


def test_import_is_light_and_fills_the_registries() -> None:
    code = ('import sys, mmsynth; assert not {"torch", "mmcv", "mmseg", "diffusers"} & set(sys.modules)\n'
            'from mmengine.registry import DATASETS, HOOKS, MODELS, TRANSFORMS\n'
            'assert all("mmsynth" in parent.children for parent in (DATASETS, HOOKS, MODELS, TRANSFORMS))')
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


# ---- tools/train.py


def test_train_names_what_it_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / 'tools')
    train = importlib.import_module('train')
    monkeypatch.delitem(sys.modules, 'train')
    spec = importlib.util.spec_from_file_location('mmseg', tmp_path / 'mmseg' / '__init__.py')
    monkeypatch.setattr(train.importlib.util, 'find_spec', lambda name: spec)
    with pytest.raises(SystemExit, match='without its tools .*mmseg/.mim/tools/train.py and .*/tools/train.py'):
        train.host_script('train.py')
    (tmp_path / 'tools').mkdir()
    script = tmp_path / 'tools' / 'train.py'
    script.touch()
    assert train.host_script('train.py') == script
    monkeypatch.setattr(train.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(SystemExit, match='mmseg is not installed: pip install'):
        train.host_script('train.py')


# ---- wheel, pins, Makefile


@pytest.fixture(scope='module')
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy so that the checkout stays clean; no network, no isolated environment."""
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    no_caches = shutil.ignore_patterns('__pycache__')
    for name in ('mmsynth', 'configs', 'tools', 'requirements'):
        shutil.copytree(ROOT / name, source / name, ignore=no_caches)
    for path in [*ROOT.glob('*.py'), *ROOT.glob('*.toml'), *ROOT.glob('*.in'), *ROOT.glob('*.md'), ROOT / 'LICENSE']:
        shutil.copy2(path, source)
    code = f'from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})'
    result = subprocess.run([sys.executable, '-c', code], cwd=source, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert not (source / 'mmsynth' / '.mim').exists()
    with zipfile.ZipFile(next(folder.glob('*.whl'))) as archive:
        yield archive


@pytest.mark.parametrize('folder, target', [('mmsynth', 'mmsynth'), ('configs', 'mmsynth/.mim/configs'),
                                            ('tools', 'mmsynth/.mim/tools')])
def test_wheel_holds_every_file(wheel: zipfile.ZipFile, folder: str, target: str) -> None:
    files = [path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob('*')
             if path.is_file() and path.suffix in ('.py', '.j2')]
    missing = {f'{target}/{path.as_posix()}' for path in files} - set(wheel.namelist())
    assert not missing


def test_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    info = f'mmsynth-{mmsynth.__version__}.dist-info/'
    assert not [name for name in wheel.namelist() if not name.startswith(('mmsynth/', info)) or '__pycache__' in name]


def test_wheel_requires_no_host_distribution(wheel: zipfile.ZipFile) -> None:
    text = wheel.read(f'mmsynth-{mmsynth.__version__}.dist-info/METADATA').decode()
    required = re.findall(r'^Requires-Dist: ([\w-]+)([^\n]*)', text, re.MULTILINE)
    outright = {name for name, rest in required if 'extra ==' not in rest}
    assert {'torch', 'diffusers'} <= outright
    assert not [name for name in outright if 'mm' in name or name in ('torchvision', 'xformers')]
    assert {('onedl', 'onedl-mmcv'), ('openmmlab', 'mmcv')} <= {
        (extra.group(1), name) for name, rest in required if (extra := re.search('extra == [\'"](.+)[\'"]', rest))}


def test_pins_satisfy_the_gate_and_cover_the_requirements() -> None:
    from packaging.requirements import Requirement
    lines = (ROOT / 'requirements' / 'pins.txt').read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith('#')]
    assert all(str(pin.specifier).startswith('==') for pin in pins)
    for python in ('3.10', '3.11', '3.12', '3.13'):
        here = [pin.name for pin in pins if not pin.marker or pin.marker.evaluate({'python_version': python})]
        assert len(here) == len(set(here)), f'{python}: pinned twice'
        assert set(here) == {pin.name for pin in pins}, f'{python}: not pinned'
    source = (ROOT / 'setup.py').read_text()
    runtime = re.findall(r"'([\w-]+)>=", source.split('EXTRAS_REQUIRE')[0])
    assert set(runtime) | set(GOOD) <= {pin.name for pin in pins}


def dry_run(*arguments: str) -> str:
    """Return the last command that make would run."""
    variables = ('MAKEFLAGS', 'MAKELEVEL', 'MFLAGS', 'DATA', 'SMOKE', 'SEED', 'OUT', 'DEMO_ARGS',
                 'PYTEST_ARGS')  # this test may itself run under make
    env = {name: value for name, value in os.environ.items() if name not in variables}
    result = subprocess.run(['make', '-n', *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[-1].strip()


@MAKE
@pytest.mark.parametrize('arguments, options', [
    ((), ''),
    (('SMOKE=1', ), ' --smoke'),
    (('SMOKE=0', 'SEED=7'), ' --seeds 7'),
    (('DATA=/a b', 'OUT=o', 'DEMO_ARGS=--x 1'), " --data '/a b' --out-dir 'o' --x 1"),
])  # yapf: disable
def test_make_demo_passes_on_what_is_set(arguments: tuple[str, ...], options: str) -> None:
    assert dry_run('demo', *arguments) == f'.venv/bin/python projects/demo{options}'


@MAKE
def test_make_test_runs_pytest() -> None:
    assert dry_run('test', 'PYTEST_ARGS=-x') == '.venv/bin/python -m pytest tests -q -x'
