"""A Sphinx directive that documents what is registered, so that no class can be forgotten::

    .. registered:: critics

stands in ``reference/critics.md`` and takes in the docstring of every class that :data:`PAGES` assigns to that page.
"""
from importlib import import_module

from mmengine.registry import Registry

import mmsynth.registry
from mmsynth import apis

# Page → what it documents: a registry, or those of its classes that are defined in one of these modules or packages.
# Where several fit the longest name counts.
PAGES: dict[str, list[tuple[str, str]]] = {
    'generators': [('MODELS', 'mmsynth.models.generators'), ('MODELS', 'mmsynth.models.data_preprocessor')],
    'networks': [('MODELS', 'mmsynth.models.networks')],
    'codecs': [('MODELS', 'mmsynth.models.label_codecs'), ('MODELS', 'mmsynth.models.encoders')],
    'guidance': [('MODELS', 'mmsynth.guidance.crfm'), ('MODELS', 'mmsynth.guidance.best_of_n')],
    'critics': [('MODELS', 'mmsynth.guidance')],
    'filters': [('MODELS', 'mmsynth.filtering'), ('MODELS', 'mmsynth.models.weighted_segmentor')],
    'datasets': [('DATASETS', 'mmsynth')],
    'transforms': [('TRANSFORMS', 'mmsynth')],
    'samplers': [('DATA_SAMPLERS', 'mmsynth')],
    'hooks': [('HOOKS', 'mmsynth')],
    'metrics': [('METRICS', 'mmsynth')],
    'strategies': [('STRATEGIES', 'mmsynth')],
}  # yapf: disable


def registries() -> dict[str, Registry]:
    """Every registry of mmsynth, filled."""
    found = {name: value for name, value in vars(mmsynth.registry).items()
             if isinstance(value, Registry) and value.scope == mmsynth.registry.SCOPE}
    for registry in found.values():
        registry.import_from_location()
    return found


def registered() -> dict[str, list[tuple[str, object]]]:
    """Page → its classes by the name that a config gives them, in the order of the modules and of their lines.

    Raises:
        ValueError: If a registered class belongs to no page.
    """
    pages: dict[str, list[tuple[str, object]]] = {page: [] for page in PAGES}
    for registry_name, registry in registries().items():
        for name, value in registry.module_dict.items():
            if not value.__module__.startswith('mmsynth.'):
                continue  # a user's own
            fitting = [(len(prefix), page) for page, parts in PAGES.items() for source, prefix in parts
                       if source == registry_name and f'{value.__module__}.'.startswith(f'{prefix}.')]
            if not fitting:
                raise ValueError(f'{name} of the registry {registry_name} ({value.__module__}) belongs to no page; add '
                                 'its module to PAGES in docs/en/registered.py.')
            pages[max(fitting)[1]].append((name, value))
    return pages


def public_path(value: type) -> str:
    """The dotted path that users import a class or function by: of the innermost package that exports it."""
    parts = value.__module__.split('.')
    for length in (*range(len(parts) - 1, 1, -1), len(parts)):
        module = import_module('.'.join(parts[:length]))
        if getattr(module, value.__name__, None) is value:
            return f'{module.__name__}.{value.__name__}'
    raise ValueError(f'{value.__module__} has no {value.__name__}.')


def documentation(page: str) -> list[str]:
    """The lines of reStructuredText that document a page's classes, or the functions of ``mmsynth.apis``."""
    if page == 'apis':
        return [line for name in apis.__all__ for line in _auto(f'mmsynth.apis.{name}', getattr(apis, name))]
    lines = []
    for name, value in registered()[page]:
        if name != value.__name__:
            lines += [f".. rubric:: ``type='mmsynth.{name}'``", '']
        lines += _auto(public_path(value), value)
    return lines


def _auto(path: str, value: object) -> list[str]:
    return [f'.. auto{"class" if isinstance(value, type) else "function"}:: {path}', '']


def setup(app: object) -> dict[str, bool]:
    """Called by Sphinx."""
    from docutils import nodes
    from docutils.statemachine import StringList
    from sphinx.util.docutils import SphinxDirective

    class Registered(SphinxDirective):
        required_arguments = 1

        def run(self) -> list[nodes.Node]:
            self.env.note_reread()  # when the code changes, too
            node = nodes.Element()
            lines = documentation(self.arguments[0])
            self.state.nested_parse(StringList(lines, source=f'registered {self.arguments[0]}'), 0, node)
            return node.children

    app.add_directive('registered', Registered)
    return dict(parallel_read_safe=True)
