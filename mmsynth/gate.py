"""The version gate: which packages of the host stack are here, and does mmsynth work with them.

It runs first on ``import mmsynth``, so it imports none of the packages that it checks: whether a module exists comes
from collections.abc import Iterable
from its import spec, its version from the metadata of the distribution that installed it. The two are told apart
because the OpenMMLab modules exist under two names on the index: ``mmengine`` is installed by ``onedl-mmengine`` or
by ``mmengine``.
"""
import warnings
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement


class HostPackage(NamedTuple):
    """A module of the host stack.

    Attributes:
        module: The name to import.
        requirements: What pip may install for it, the preferred one first; setup.py has the same.
        others: Further distributions that provide the module, and which setup.py does not offer.
    """

    module: str
    requirements: tuple[str, ...]
    others: tuple[str, ...] = ()


HOST_STACK = (
    HostPackage('torch', ('torch>=2.6', )),
    HostPackage('mmengine', ('onedl-mmengine>=0.10.8', 'mmengine>=0.10.4', 'mmengine-lite>=0.10.4')),
    HostPackage('mmcv', ('onedl-mmcv>=2.3', 'mmcv>=2.0.0,<2.2.0'), others=('mmcv-lite', 'mmcv-full')),
    HostPackage('mmseg', ('onedl-mmsegmentation>=1.4', 'mmsegmentation>=1.0.0')),
    HostPackage('diffusers', ('diffusers>=0.33', )),  # the first whose densities of training timesteps take a generator
)


def check_host_stack() -> None:
    """Refuse to go on without the packages that mmsynth stands on.

    A module without distribution metadata (a source checkout on ``PYTHONPATH``) is taken as it is.

    Raises:
        ImportError: If a module is missing, is of a version that does not work, or lacks the compiled ops that the
            installed mmseg imports. One line names each of them, what was found, and the pip command that repairs it.
    """
    found = {package.module: installed_distributions(package) for package in HOST_STACK}
    original = any(name.startswith('mm') for versions in found.values() for name in versions)
    original_mmseg = 'mmsegmentation' in found['mmseg']
    problems, repairs = [], []
    for package in HOST_STACK:
        versions = found[package.module]
        listed = ' and '.join(f'{name} {number}' for name, number in versions.items())
        if len(versions) > 1:
            keep, *drop = versions
            warnings.warn(
                f'`{package.module}` is installed twice, by {listed}, and their files overwrite each other: '
                f'pip uninstall {" ".join(drop)}, then pip install --force-reinstall --no-deps {keep}', stacklevel=3)
        accepted = list(map(Requirement, package.requirements))
        repair = package.requirements[:2][-1 if original else 0]
        if package.module == 'mmcv' and original_mmseg:  # it asserts mmcv < 2.2, and imports mmcv.ops
            del accepted[0]
        fits = not versions or any(
            wanted.name in versions and wanted.specifier.contains(versions[wanted.name], prereleases=True)
            for wanted in accepted)
        spec = find_spec(package.module)
        if spec is None:
            problems.append(f'{package.module} (not installed)')
        elif not fits:
            problems.append(f'{" or ".join(map(str, accepted))} (found {listed})')
        elif package.module == 'mmcv' and original_mmseg and not _has_compiled_ops(
                spec.submodule_search_locations or ()):
            problems.append(f'{accepted[0]} with compiled ops, which mmsegmentation imports (found {listed} without)')
        else:
            continue
        repairs.append(f'"{repair}"')
    if problems:
        command = f'pip install {" ".join(repairs)}'
        if any(repair.startswith('"mmcv>') for repair in repairs):  # has no wheel for torch >= 2.6
            command = ('pip install "setuptools<80" wheel ninja psutil && MMCV_WITH_OPS=1 pip install '
                       f'--no-build-isolation {" ".join(repairs)} (mmcv compiles for half an hour)')
        raise ImportError(f'mmsynth needs {"; ".join(problems)}. Install with: {command}')


def installed_distributions(package: HostPackage) -> dict[str, str]:
    """Return name and version of every installed distribution that provides the module, the preferred one first."""
    found = {}
    for name in (*(Requirement(text).name for text in package.requirements), *package.others):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _has_compiled_ops(folders: Iterable[str]) -> bool:
    return any(next(Path(folder).glob('_ext.*'), None) for folder in folders)
