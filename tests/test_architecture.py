"""The house rules of DESIGN and STYLE, read from the source: arrows, sizes, annotations, safe loading.

Nothing of mmsynth is imported here. A rule is a function from a parsed file to violations; each is reported as
``file:line: what is wrong``, and all violations of a rule at once.
"""
import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 60

NEUTRAL_ROOMS = ('mmsynth.registry', 'mmsynth.utils')
ONLINE = tuple(f'mmsynth.{room}' for room in ('online', 'synthesis', 'guidance', 'filtering', 'pool', 'structures',
                                              'visualization'))
MATHEMATICS = ('torch', 'diffusers', 'numpy')
FORBIDDEN = ('torchvision', 'xformers', 'mmcv.ops', 'cloudpickle', 'dill', 'joblib')
PICKLE_ERRORS = ('pickle.UnpicklingError', 'pickle.PickleError')  # torch.load raises them on a file that it refuses
HOST = {'mmengine', 'mmcv', 'mmseg', 'cv2'}  # extras, checked by mmsynth.host; mmcv brings cv2
MODULE_OF = {'pillow': 'PIL'}  # where a distribution's module is not called like it
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Source(NamedTuple):
    """A parsed file: its path, the name of its module, its text and its tree."""

    path: Path
    module: str
    text: str
    tree: ast.Module


class Violation(NamedTuple):
    """A line and what is wrong there."""

    line: int
    message: str


Rule = Callable[[Source], Iterator[Violation]]


def parse(path: Path, root: Path) -> Source:
    """Parse one file below root, which names the module."""
    parts = path.relative_to(root).with_suffix('').parts
    module = '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)
    text = path.read_text(encoding='utf-8')
    return Source(path, module, text, ast.parse(text, filename=str(path)))


def sources(folder: str) -> list[Source]:
    """Parse every Python file of one of the checkout's folders."""
    return [parse(path, ROOT) for path in sorted((ROOT / folder).rglob('*.py'))]


def inside(module: str, rooms: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of the rooms or lies in one."""
    return any(module == room or module.startswith(f'{room}.') for room in rooms)


def imported(source: Source) -> Iterator[tuple[int, str]]:
    """Yield line and absolute dotted name of all that is imported, also inside functions and ``TYPE_CHECKING``.

    ``from a import b`` yields ``a.b``, whether b is a module or not: prefixes then decide alike in both cases.
    """
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                package = source.module.split('.')
                drop = node.level - (source.path.name == '__init__.py')
                base = '.'.join([*package[:len(package) - drop], *filter(None, [base])])
            yield from ((node.lineno, f'{base}.{alias.name}') for alias in node.names)


def functions(tree: ast.Module) -> Iterator[Function]:
    """Yield every function and method, nested ones too."""
    yield from (node for node in ast.walk(tree) if isinstance(node, Function))


def arrows(source: Source) -> Iterator[Violation]:
    """Imports between rooms point one way."""
    for line, name in imported(source):
        own = inside(name, ('mmsynth', ))
        for room in ('mmsynth.models.networks', 'mmsynth.sampling'):
            standard = name.split('.')[0] in sys.stdlib_module_names
            allowed = standard or inside(name, (room, *NEUTRAL_ROOMS, *MATHEMATICS))
            if inside(source.module, (room, )) and not allowed:
                yield Violation(line, f'{room} imports {name}: only torch, diffusers, numpy, registry and utils')
        if inside(source.module, ('mmsynth.guidance', )) and inside(name, ('mmsynth.models', )):
            yield Violation(line, f'guidance imports {name}: it sees a prediction and a critic, never the network')
        if inside(source.module, ('mmsynth.online', )) and own and not inside(name, (*ONLINE, *NEUTRAL_ROOMS)):
            yield Violation(line, f'online imports {name}: it sees synthesis, guidance, filter and pool, no training')
        if inside(source.module, ('mmsynth.online', )) and inside(name, ('mmengine.runner', 'mmengine.hooks')):
            yield Violation(line, f'online imports {name}: the runner is the hook\'s')
        if inside(source.module, ('mmsynth.utils', )) and own and not inside(name, ('mmsynth.utils', )):
            yield Violation(line, f'utils imports {name}: it imports nothing of mmsynth but itself')
        if inside(name, ('mmsynth.apis', )) and not inside(source.module, ('mmsynth.apis', )):
            yield Violation(line, f'{source.module} imports {name}: apis is for tools and notebooks')


def no_public_shortcut(source: Source) -> Iterator[Violation]:
    """Inside the package a class is imported from its room: the lazy public names would hide an arrow."""
    for line, name in imported(source):
        head, _, tail = name.partition('.')
        rooms = {path.stem for path in (ROOT / 'mmsynth').iterdir()}
        if head == 'mmsynth' and source.module != 'mmsynth' and tail.split('.')[0] not in rooms:
            yield Violation(line, f'imports {name}: import it from the module that defines it')


def sizes(source: Source) -> Iterator[Violation]:
    """Files and functions stay short; only a constructor may be long."""
    count = len(source.text.splitlines())
    if count > MAX_FILE_LINES:
        yield Violation(count, f'{count} lines in the file, at most {MAX_FILE_LINES}')
    for function in functions(source.tree):
        length = function.end_lineno - function.lineno + 1
        if function.name != '__init__' and length > MAX_FUNCTION_LINES:
            yield Violation(function.lineno, f'{function.name}: {length} lines, at most {MAX_FUNCTION_LINES}')


def docstrings(source: Source) -> Iterator[Violation]:
    """Every module says what it is."""
    if not ast.get_docstring(source.tree):
        yield Violation(1, 'no module docstring')


def annotations(source: Source) -> Iterator[Violation]:
    """Public functions and methods annotate every argument and the result."""
    for scope in [source.tree, *(n for n in source.tree.body if isinstance(n, ast.ClassDef) and n.name[0] != '_')]:
        for function in (node for node in scope.body if isinstance(node, Function)):
            if function.name[0] == '_' and function.name not in ('__init__', '__call__'):
                continue
            missing = [a.arg for a in all_arguments(function) if a.annotation is None and a.arg not in ('self', 'cls')]
            if function.returns is None and function.name != '__init__':
                missing.append('the result')
            if missing:
                yield Violation(function.lineno, f'{function.name}: not annotated: {", ".join(missing)}')


def all_arguments(function: Function) -> list[ast.arg]:
    """Return the arguments of a function, starred ones too."""
    a = function.args
    return [*a.posonlyargs, *a.args, *filter(None, [a.vararg]), *a.kwonlyargs, *filter(None, [a.kwarg])]


def strict_signatures(source: Source) -> Iterator[Violation]:
    """No mutable defaults anywhere; no ``**kwargs`` on registered classes, where it would swallow a misspelt key."""
    for function in functions(source.tree):
        for default in filter(None, [*function.args.defaults, *function.args.kw_defaults]):
            if isinstance(default, ast.List | ast.Dict | ast.Set):
                yield Violation(default.lineno, f'{function.name}: mutable default')
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ClassDef) and any('register_module' in ast.unparse(d) for d in node.decorator_list):
            for function in (f for f in node.body if isinstance(f, Function) and f.name == '__init__'):
                if function.args.kwarg:
                    yield Violation(function.lineno, f'{node.name}: `**{function.args.kwarg.arg}`, but registered')


def forbidden_imports(source: Source) -> Iterator[Violation]:
    """What must not be needed: compiled ops, torchvision, xformers; nor what pickles under another name."""
    for line, name in imported(source):
        if inside(name, FORBIDDEN):
            yield Violation(line, f'imports {name}')


def safe_loading(source: Source) -> Iterator[Violation]:
    """Files are data: ``torch.load`` with ``weights_only=True``, numpy without pickles, pickle's errors only."""
    for line, name in imported(source):
        if name == 'torch.load' or name.startswith('pickle.') and name not in PICKLE_ERRORS:
            yield Violation(line, f'imports {name}: load weights as torch.load(..., weights_only=True)')
    for node in (node for node in ast.walk(source.tree) if isinstance(node, ast.Attribute)):
        if ast.unparse(node.value) == 'pickle' and ast.unparse(node) not in PICKLE_ERRORS:
            yield Violation(node.lineno, f'uses {ast.unparse(node)}')
    for call in (node for node in ast.walk(source.tree) if isinstance(node, ast.Call)):
        keywords = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
        if ast.unparse(call.func) == 'torch.load' and keywords.get('weights_only') is not True:
            yield Violation(call.lineno, 'torch.load without weights_only=True')
        if keywords.get('allow_pickle'):
            yield Violation(call.lineno, 'allow_pickle=True')


def declared_dependencies(source: Source) -> Iterator[Violation]:
    """What is imported outright is in setup.py's INSTALL_REQUIRES or part of the host stack."""
    known = {'mmsynth', *HOST, *declared_modules(), *sys.stdlib_module_names}
    optional = {line for node in ast.walk(source.tree) if isinstance(node, ast.Try)
                for line in range(node.body[0].lineno, node.body[-1].end_lineno + 1)}
    for line, name in imported(source):
        if name.split('.')[0] not in known and line not in optional:
            yield Violation(line, f'imports {name}, which setup.py does not require')


def declared_modules() -> set[str]:
    """Return the top-level modules of INSTALL_REQUIRES, read from setup.py without running it."""
    for node in ast.parse((ROOT / 'setup.py').read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'INSTALL_REQUIRES':
            names = [requirement.split('>')[0] for requirement in ast.literal_eval(node.value)]
            return {MODULE_OF.get(name, name) for name in names}
    raise AssertionError('setup.py has no INSTALL_REQUIRES')


SAFETY: list[Rule] = [forbidden_imports, safe_loading]
RULES: list[Rule] = [arrows, no_public_shortcut, sizes, docstrings, annotations, strict_signatures, *SAFETY,
                     declared_dependencies]


def check(rule: Rule, files: list[Source]) -> None:
    """Fail with one line per violation."""
    found = [f'{s.path.relative_to(ROOT)}:{v.line}: {v.message}' for s in files for v in rule(s)]
    assert not found, f'{rule.__doc__.splitlines()[0]}\n' + '\n'.join(found)


@pytest.fixture(scope='module')
def package() -> list[Source]:
    """Every file of mmsynth, parsed once."""
    return sources('mmsynth')


@pytest.mark.parametrize('rule', RULES, ids=lambda rule: rule.__name__)
def test_package_keeps_the_rule(rule: Rule, package: list[Source]) -> None:
    assert package
    check(rule, package)


@pytest.mark.parametrize('rule', [*SAFETY, docstrings, sizes], ids=lambda rule: rule.__name__)
def test_tools_keep_the_rule(rule: Rule) -> None:
    check(rule, sources('tools'))


@pytest.mark.parametrize('rule, place, code, message', [
    (arrows, 'mmsynth/sampling/a.py', 'import mmengine', 'sampling imports mmengine'),
    (arrows, 'mmsynth/sampling/a.py', 'from ..guidance import CRFM', 'sampling imports mmsynth.guidance.CRFM'),
    (arrows, 'mmsynth/sampling/__init__.py', 'from ..guidance import CRFM', 'imports mmsynth.guidance.CRFM'),
    (arrows, 'mmsynth/models/networks/a.py', 'from mmsynth.models import encoders', 'imports mmsynth.models.encoders'),
    (arrows, 'mmsynth/guidance/a.py', 'def f():\n    from mmsynth.models import networks', 'never the network'),
    (arrows, 'mmsynth/online/a.py', 'from mmsynth.engine.hooks import OnlineSynthesisHook', 'no training'),
    (arrows, 'mmsynth/online/a.py', 'from mmengine.runner import Runner', "the runner is the hook's"),
    (arrows, 'mmsynth/utils/a.py', 'from mmsynth.registry import MODELS', 'utils imports mmsynth.registry'),
    (arrows, 'mmsynth/pool/a.py', 'import mmsynth.apis', 'apis is for tools'),
    (no_public_shortcut, 'mmsynth/pool/a.py', 'from mmsynth import CRFM', 'from the module that defines it'),
    (no_public_shortcut, 'mmsynth/pool/a.py', 'import mmsynth', 'from the module that defines it'),
    (sizes, 'mmsynth/a.py', '\n' * 301, '301 lines in the file'),
    (sizes, 'mmsynth/a.py', 'def f():\n' + '    x = 0\n' * 60, 'f: 61 lines'),
    (docstrings, 'mmsynth/a.py', 'x = 0', 'no module docstring'),
    (annotations, 'mmsynth/a.py', 'class A:\n    def __init__(self, a, *b): ...', 'not annotated: a, b'),
    (annotations, 'mmsynth/a.py', 'def f(*, x: int): ...', 'f: not annotated: the result'),
    (strict_signatures, 'mmsynth/a.py', 'def f(x=[]): ...', 'f: mutable default'),
    (strict_signatures, 'mmsynth/a.py', '@MODELS.register_module()\nclass A:\n    def __init__(self, **k): ...', '**k'),
    (forbidden_imports, 'mmsynth/a.py', 'from mmcv import ops', 'imports mmcv.ops'),
    (forbidden_imports, 'mmsynth/a.py', 'import torchvision.transforms', 'imports torchvision.transforms'),
    (safe_loading, 'mmsynth/a.py', 'import pickle\npickle.load(f)', 'uses pickle.load'),
    (safe_loading, 'mmsynth/a.py', 'from pickle import loads', 'imports pickle.loads'),
    (safe_loading, 'mmsynth/a.py', "torch.load('x')", 'without weights_only=True'),
    (safe_loading, 'mmsynth/a.py', "torch.load('x', weights_only=False)", 'without weights_only=True'),
    (safe_loading, 'mmsynth/a.py', "np.load('x', allow_pickle=True)", 'allow_pickle'),
    (declared_dependencies, 'mmsynth/a.py', 'import timm', 'imports timm, which setup.py'),
])  # yapf: disable
def test_rule_sees_the_mistake(rule: Rule, place: str, code: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(code, encoding='utf-8')
    found = list(rule(parse(path, tmp_path)))
    assert len(found) == 1 and message in found[0].message


@pytest.mark.parametrize('rule, place, code', [
    (arrows, 'mmsynth/sampling/a.py', 'import math\nimport torch.nn\nfrom . import b\nfrom mmsynth.utils import seeds'),
    (arrows, 'mmsynth/apis/a.py', 'from mmsynth.apis import b'),
    (no_public_shortcut, 'mmsynth/pool/a.py', 'from mmsynth import registry\nfrom mmsynth.version import __version__'),
    (safe_loading, 'mmsynth/a.py', "torch.load('x', weights_only=True)"),
    (safe_loading, 'mmsynth/a.py', 'import pickle\ntry: f()\nexcept pickle.UnpicklingError: raise'),
    (declared_dependencies, 'mmsynth/a.py', 'try:\n    import mmagic\nexcept ImportError:\n    mmagic = None'),
])
def test_rule_lets_good_code_pass(rule: Rule, place: str, code: str, tmp_path: Path) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(code, encoding='utf-8')
    assert not list(rule(parse(path, tmp_path)))
