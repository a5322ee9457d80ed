"""The package as users meet it: version gate, public names, the repository's files, types, wheel, pins, Makefile."""
import ast
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
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

import mmsynth
from mmsynth import gate

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
GOOD = {'torch': '2.13.0', 'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6', 'onedl-mmsegmentation': '1.4.2',
        'diffusers': '0.42.1'}  # yapf: disable
ORIGINAL = {'torch': '2.6.0+cu124', 'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmsegmentation': '1.2.2',
            'diffusers': '0.33.0'}  # yapf: disable
MAKE = pytest.mark.skipif(shutil.which('make') is None, reason='needs make')
GIT = pytest.mark.skipif(shutil.which('git') is None, reason='needs git')


def setup_lists(name: str) -> dict | list:
    """A constant of setup.py, read without running it."""
    for node in ast.parse((ROOT / 'setup.py').read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f'setup.py has no {name}')


# ---- version gate


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, versions: dict[str, str], compiled: bool = True,
            without_metadata: tuple[str, ...] = ()) -> None:
    """Let the gate see these distributions, and modules for them and for ``without_metadata``."""
    def version(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    names = {package.module: {*(Requirement(text).name for text in package.requirements), *package.others}
             for package in gate.HOST_STACK}
    modules = {module for module, known in names.items() if known & versions.keys()} | set(without_metadata)
    if compiled:
        (folder / '_ext.cpython-311-x86_64-linux-gnu.so').touch()
    spec = SimpleNamespace(submodule_search_locations=[str(folder)])
    monkeypatch.setattr(gate, 'version', version)
    monkeypatch.setattr(gate, 'find_spec', lambda name: spec if name in modules else None)


@pytest.mark.parametrize('versions, compiled', [
    (GOOD, False), (ORIGINAL, True), ({**ORIGINAL, 'mmcv': '2.0.0'}, True),
    ({'mmengine-lite' if name == 'mmengine' else name: number for name, number in ORIGINAL.items()}, True),
])
def test_gate_accepts_both_families(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, versions: dict[str, str],
                                    compiled: bool) -> None:
    install(monkeypatch, tmp_path, versions, compiled)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        gate.check_host_stack()


def test_gate_accepts_a_checkout_without_metadata(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    versions = {name: number for name, number in GOOD.items() if name != 'onedl-mmsegmentation'}
    install(monkeypatch, tmp_path, versions, without_metadata=('mmseg', ))
    gate.check_host_stack()


@pytest.mark.parametrize('stack, change, problems, repair', [
    (GOOD, {'onedl-mmcv': None}, ['mmcv (not installed)'], 'pip install "onedl-mmcv>=2.3"'),
    (GOOD, {'onedl-mmcv': '2.0.0rc4'}, ['(found onedl-mmcv 2.0.0rc4)'], '"onedl-mmcv>=2.3"'),
    (GOOD, {'onedl-mmcv': None, 'mmcv-full': '1.7.1'}, ['(found mmcv-full 1.7.1)'], '"mmcv>=2.0.0,<2.2.0"'),
    (GOOD, {'diffusers': '0.32.2'}, ['diffusers>=0.33 (found diffusers 0.32.2)'], '"diffusers>=0.33"'),
    (GOOD, {'torch': '2.0.1', 'onedl-mmengine': None}, ['torch>=2.6 (found torch 2.0.1)', 'mmengine (not installed)'],
     '"torch>=2.6" "onedl-mmengine>=0.10.8"'),
    (ORIGINAL, {'mmcv': '2.2.0'}, ['(found mmcv 2.2.0)'], 'pip install --no-build-isolation "mmcv>=2.0.0,<2.2.0"'),
    (ORIGINAL, {'mmcv': None, 'onedl-mmcv': '2.3.6'}, ['(found onedl-mmcv 2.3.6)'], '"mmcv>=2.0.0,<2.2.0"'),
    (ORIGINAL, {'mmcv': None, 'mmcv-lite': '2.1.0'}, ['(found mmcv-lite 2.1.0)'], '"mmcv>=2.0.0,<2.2.0"'),
])  # yapf: disable
def test_gate_says_in_one_line_what_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stack: dict[str, str],
                                             change: dict[str, str | None], problems: list[str], repair: str) -> None:
    install(monkeypatch, tmp_path, {name: number for name, number in {**stack, **change}.items() if number})
    with pytest.raises(ImportError) as caught:
        gate.check_host_stack()
    message = str(caught.value)
    assert all(part in message for part in [*problems, repair]) and '\n' not in message


def test_gate_refuses_mmcv_without_the_ops_that_the_original_mmseg_imports(monkeypatch: pytest.MonkeyPatch,
                                                                           tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, ORIGINAL, compiled=False)
    with pytest.raises(ImportError, match='compiled ops.*found mmcv 2.1.0.*MMCV_WITH_OPS=1'):
        gate.check_host_stack()


def test_gate_warns_of_two_distributions_of_one_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, {**GOOD, 'mmengine': '0.10.7'})
    with pytest.warns(UserWarning, match='installed twice, by onedl-mmengine 0.10.12 and mmengine 0.10.7.*uninstall'):
        gate.check_host_stack()


def test_gate_imports_nothing_heavy() -> None:
    heavy = '{"torch", "mmengine", "mmcv", "mmseg", "diffusers"}'
    code = (f'import runpy, sys; runpy.run_path({str(ROOT / "mmsynth/gate.py")!r})["check_host_stack"](); '
            f'assert not {heavy} & set(sys.modules)')
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_gate_asks_for_what_setup_installs() -> None:
    extras = setup_lists('EXTRAS_REQUIRE')
    offered = {*setup_lists('INSTALL_REQUIRES'), *extras['onedl'], *extras['openmmlab']}
    asked = {text for package in gate.HOST_STACK for text in package.requirements[:2]}
    assert asked <= offered


# ---- names


@pytest.mark.parametrize('name', [name for name in mmsynth.__all__ if not name.startswith('_')])
def test_public_name_is_its_class(name: str) -> None:
    value = getattr(mmsynth, name)
    assert name in dir(mmsynth) and isinstance(value, type) and value.__name__ == name
    assert getattr(importlib.import_module(value.__module__), name) is value


def test_unknown_name_lists_the_public_ones() -> None:
    with pytest.raises(AttributeError, match="'TODSynt'.*TODSynth"):
        mmsynth.TODSynt  # noqa: B018


@GIT
@pytest.mark.parametrize('linked', [False, True])
def test_git_ignores_the_environment(tmp_path: Path, linked: bool) -> None:
    shutil.copy2(ROOT / '.gitignore', tmp_path)
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / '.venv').symlink_to('elsewhere') if linked else (tmp_path / '.venv').mkdir()
    subprocess.run(['git', 'init', '-q'], cwd=tmp_path, check=True)
    assert subprocess.run(['git', 'check-ignore', '-q', '.venv'], cwd=tmp_path).returncode == 0


# ---- the repository's own files

TOP = {'.ci', '.github', '.gitignore', '.pre-commit-config.yaml', 'CHANGELOG.md', 'CITATION.cff', 'CONTRIBUTING.md',
       'LICENSE', 'MANIFEST.in', 'Makefile', 'README.md', 'configs', 'docker', 'docs', 'mmsynth', 'model-index.yml',
       'projects', 'pyproject.toml', 'requirements', 'setup.py', 'tests', 'tools'}


@GIT
def test_the_top_level_is_tidy() -> None:
    result = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        pytest.skip('not a checkout')
    assert {line.split('/')[0] for line in result.stdout.splitlines()} <= TOP


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*ROOT.glob('*.md'), *(page for folder in ('docs', 'configs', 'projects')
                                   for page in (ROOT / folder).rglob('*.md'))]
    broken = [f'{page.relative_to(ROOT)}: {target}' for page in pages
              for target in re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', page.read_text(encoding='utf-8'))
              if not (page.parent / target).exists()]
    assert broken == []


def test_the_picture_has_the_layers_that_are_held() -> None:
    """CONTRIBUTING.md draws an arrow from each layer of import-linter's contract to the next."""
    [layers] = re.findall(r'^layers = \[(.*?)\]', (ROOT / 'pyproject.toml').read_text(), re.M | re.S)
    held = [sorted(re.findall(r'mmsynth\.(\w+)', layer)) for layer in re.findall(r'"(.*?)"', layers)]
    [picture] = re.findall(r'```mermaid\n(.*?)```', (ROOT / 'CONTRIBUTING.md').read_text(), re.S)
    plain = re.sub(r'\[".*?"\]', '', picture)
    arrows = {(left, right) for lefts, rights in re.findall(r'^ *(.+) --> (.+)$', plain, re.M)
              for left in lefts.split(' & ') for right in rights.split(' & ')}
    assert {(one, other) for above, below in zip(held, held[1:]) for one in above for other in below} <= arrows


def test_what_is_said_twice_agrees() -> None:
    """The version, what continuous integration runs, and the checks before a commit."""
    read = {name: (ROOT / name).read_text() for name in (
        'CITATION.cff', 'CHANGELOG.md', '.github/workflows/ci.yml', '.pre-commit-config.yaml')}
    assert f'\nversion: {mmsynth.__version__}\n' in read['CITATION.cff']
    assert f'\n## {mmsynth.__version__}' in read['CHANGELOG.md']
    assert re.findall(r'run: (.+)', read['.github/workflows/ci.yml']) == ['bash .ci/run']
    checks = re.findall(r'entry: ([\w-]+)', read['.pre-commit-config.yaml'])
    assert checks == ['ruff', 'lint-imports', 'mypy']
    dev = {Requirement(text).name for text in setup_lists('EXTRAS_REQUIRE')['dev']}
    assert {'ruff', 'import-linter', 'mypy'} <= dev


@pytest.mark.skipif(shutil.which('mypy', path=str(Path(sys.executable).parent)) is None,
                    reason="mypy is not installed: pip install 'mmsynth[dev]'")
def test_types_hold() -> None:
    """What is checked, and how, is in pyproject.toml."""
    result = subprocess.run([sys.executable, '-m', 'mypy'], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]


# ---- wheel, pins, Makefile


@pytest.fixture(scope='module')
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy so that the checkout stays clean; no network, no isolated environment."""
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    no_caches = shutil.ignore_patterns('__pycache__')
    for name in ('mmsynth', 'configs', 'tools', 'requirements'):
        shutil.copytree(ROOT / name, source / name, ignore=no_caches)
    for path in [*ROOT.glob('*.py'), *ROOT.glob('*.toml'), *ROOT.glob('*.in'), *ROOT.glob('*.md'), *ROOT.glob('*.yml'),
                 ROOT / 'LICENSE']:
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
             if path.is_file() and path.suffix in ('.py', '.j2', '.sh', '.yaml', '.md', '.typed')]
    missing = {f'{target}/{path.as_posix()}' for path in files} - set(wheel.namelist())
    assert not missing


def test_wheel_holds_what_mim_and_type_checkers_read(wheel: zipfile.ZipFile) -> None:
    assert {'mmsynth/py.typed', 'mmsynth/.mim/model-index.yml', 'mmsynth/.mim/configs/todsynth/metafile.yaml',
            'mmsynth/.mim/tools/dist_train.sh'} <= set(wheel.namelist())


def test_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    info = f'mmsynth-{mmsynth.__version__}.dist-info/'
    assert not [name for name in wheel.namelist() if not name.startswith(('mmsynth/', info)) or '__pycache__' in name]


def test_wheel_requires_no_host_distribution(wheel: zipfile.ZipFile) -> None:
    """They would overwrite each other: extras offer them."""
    text = wheel.read(f'mmsynth-{mmsynth.__version__}.dist-info/METADATA').decode()
    required = [Requirement(line) for line in re.findall(r'^Requires-Dist: (.+)', text, re.MULTILINE)]
    outright = {requirement.name for requirement in required if not requirement.marker}
    assert {'torch', 'diffusers'} <= outright
    assert not [name for name in outright if 'mm' in name or name in ('torchvision', 'xformers')]


def read_pins(name: str) -> list[Requirement]:
    lines = (ROOT / 'requirements' / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith('#')]


@pytest.mark.parametrize('python', ['3.10', '3.11', '3.12', '3.13'])
def test_pins_cover_the_requirements_once(python: str) -> None:
    pins = read_pins('pins.txt')
    here = [pin.name for pin in pins if not pin.marker or pin.marker.evaluate({'python_version': python})]
    assert len(here) == len(set(here)) and set(here) == {pin.name for pin in pins}
    required = map(Requirement, [*setup_lists('INSTALL_REQUIRES'), *setup_lists('EXTRAS_REQUIRE')['onedl']])
    assert {requirement.name for requirement in required} <= set(here)


@pytest.mark.parametrize('name, extra', [('pins.txt', 'onedl'), ('openmmlab.txt', 'openmmlab')])
def test_pins_are_exact_and_within_the_ranges(name: str, extra: str) -> None:
    pins = read_pins(name)
    assert all(str(pin.specifier).startswith('==') for pin in pins)
    ranges = {Requirement(text).name: Requirement(text).specifier
              for text in [*setup_lists('INSTALL_REQUIRES'), *setup_lists('EXTRAS_REQUIRE')[extra]]}
    assert not [str(pin) for pin in pins if not ranges.get(pin.name, pin.specifier).contains(str(pin.specifier)[2:])]


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
    assert dry_run('test', 'PYTEST_ARGS=-x') == '.venv/bin/python -m pytest tests -q -n auto --dist loadfile -x'
