"""The version gate: which packages of the host stack are here, and are they new enough (DESIGN, decision 1).

It runs first on ``import mmsynth``, so it imports none of the packages that it judges: whether a module exists comes
from its import spec, its version from the metadata of the distribution that installed it. The two are told apart
because the OpenMMLab modules exist under two names on the index: ``mmengine`` is installed by ``onedl-mmengine`` or
by ``mmengine``.
"""
import warnings
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import NamedTuple

from packaging.version import Version


class HostPackage(NamedTuple):
    """A module of the host stack.

    Attributes:
        module: The name to import.
        distributions: The names under which pip may have installed it, the preferred one first.
        minimum: The oldest version that works.
    """

    module: str
    distributions: tuple[str, ...]
    minimum: str


HOST_STACK = (
    HostPackage('torch', ('torch', ), '2.6'),
    HostPackage('mmengine', ('onedl-mmengine', 'mmengine', 'mmengine-lite'), '0.10.4'),
    HostPackage('mmcv', ('onedl-mmcv', 'mmcv', 'mmcv-lite', 'mmcv-full'), '2.0.0'),
    HostPackage('mmseg', ('onedl-mmsegmentation', 'mmsegmentation'), '1.0.0'),
    HostPackage('diffusers', ('diffusers', ), '0.31.0'),  # the first with SD3.5's dual attention
)


def check_host_stack() -> None:
    """Refuse to go on without the packages that mmsynth stands on.

    A module without distribution metadata (a source checkout on ``PYTHONPATH``) is taken as it is.

    Raises:
        ImportError: If a module is missing or too old. One line names each of them, what was found instead, and the
            pip command that repairs it.
    """
    problems, broken, original_family = [], [], False
    for package in HOST_STACK:
        found = installed_distributions(package)
        original_family |= any(name.startswith('mm') for name in found)
        _warn_of_twins(package, found)
        problem = _problem(package, found)
        if problem:
            problems.append(problem)
            broken.append(package)
    if problems:
        repair = ' '.join(_requirement(package, original_family) for package in broken)
        raise ImportError(f'mmsynth needs {"; ".join(problems)}. Install with: pip install {repair}')


def installed_distributions(package: HostPackage) -> dict[str, str]:
    """Return name and version of every installed distribution that provides the module, in the order of preference."""
    found = {}
    for name in package.distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _problem(package: HostPackage, found: dict[str, str]) -> str | None:
    """Say in a few words what is wrong with one package, or None."""
    wanted = f'{package.module} >= {package.minimum}'
    if find_spec(package.module) is None:
        return f'{wanted} (not installed)'
    if found and max(map(Version, found.values())) < Version(package.minimum):
        return f'{wanted} (found {_listed(found)})'
    return None


def _warn_of_twins(package: HostPackage, found: dict[str, str]) -> None:
    """Warn when two distributions have written the same module over each other."""
    if len(found) > 1:
        keep, *others = found
        warnings.warn(
            f'`{package.module}` is installed twice, by {_listed(found)}, and their files overwrite each other: '
            f'pip uninstall {" ".join(others)}, then pip install --force-reinstall --no-deps {keep}',
            stacklevel=4)


def _requirement(package: HostPackage, original_family: bool) -> str:
    """What pip should install, from the family of distributions that is here already."""
    family = package.distributions[1:2] if original_family else ()
    return f'"{(*family, *package.distributions)[0]}>={package.minimum}"'


def _listed(found: dict[str, str]) -> str:
    return ' and '.join(f'{name} {number}' for name, number in found.items())
