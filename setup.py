"""Build and install mmsynth.

``pip install -e ".[onedl]"`` for development; ``make test`` and ``make demo`` do it with the exact versions of
``requirements/pins.txt``. The wheel carries configs and tools in ``mmsynth/.mim``, the OpenMMLab packages' place for
them. (``_base_ = 'mmsynth::...'`` does not reach them: mmengine resolves a fixed list of packages.)
"""
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent

# mmengine, mmcv and mmseg are extras: two distributions provide each of them and would overwrite one another.
INSTALL_REQUIRES = [
    'diffusers>=0.33',
    'jinja2>=3.0',
    'matplotlib>=3.7',
    'numpy>=1.24',
    'packaging>=22.0',
    'peft>=0.13',
    'pillow>=9.1',
    'rich>=12.0',
    'safetensors>=0.4.3',
    'torch>=2.6',
    'tqdm>=4.60',
    'transformers>=4.46',
]
EXTRAS_REQUIRE = {
    'onedl': ['onedl-mmengine>=0.10.8', 'onedl-mmcv>=2.3', 'onedl-mmsegmentation>=1.4'],
    # mmsegmentation imports ftfy, and mmengine pkg_resources, which setuptools 80 no longer has, without requiring them
    'openmmlab': ['mmengine>=0.10.4', 'mmcv>=2.0.0,<2.2.0', 'mmsegmentation>=1.0.0', 'ftfy', 'setuptools<80'],
    # mmengine's strategy imports DeepSpeed's 1-bit optimizers, which 0.19 no longer has
    'deepspeed': ['deepspeed>=0.18,<0.19'],
    # tools/dataset_converters: GeoTIFF in windows, images of 16 bits or more than three bands
    'geo': ['rasterio>=1.3'],
    'docs': ['furo>=2024.8.6', 'myst-parser>=4.0', 'sphinx>=8.1'],
    'dev': ['hypothesis>=6.100', 'import-linter>=2.0', 'mypy>=1.11', 'pytest>=8.0', 'pytest-xdist>=3.5',
            'ruff>=0.6'],
}


class BuildWithMim(build_py):
    """Copy ``configs``, ``tools`` and ``model-index.yml`` into the ``.mim`` folder of the package that is built.

    The copy goes to the build folder only; an editable install uses the checkout's own folders and gets none.
    """

    def run(self) -> None:
        """Build as usual, then add the copies."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / 'mmsynth' / '.mim'
        shutil.rmtree(target, ignore_errors=True)  # a previous build may hold files that are gone by now
        for folder in ('configs', 'tools'):
            shutil.copytree(ROOT / folder, target / folder, ignore=shutil.ignore_patterns('__pycache__', '*.pyc'))
        if (ROOT / 'model-index.yml').is_file():
            shutil.copy2(ROOT / 'model-index.yml', target)


def read_version() -> str:
    """Read ``__version__`` without importing the package, which would need its dependencies."""
    return re.search(r"__version__ = '(.+)'", (ROOT / 'mmsynth' / 'version.py').read_text(encoding='utf-8')).group(1)


def read_readme() -> str:
    """Return README.md, or nothing where a partial tree is built."""
    readme = ROOT / 'README.md'
    return readme.read_text(encoding='utf-8') if readme.is_file() else ''


setup(
    name='mmsynth',
    version=read_version(),
    description='Training-data synthesis for MMSegmentation',
    long_description=read_readme(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    keywords='computer vision, remote sensing, semantic segmentation, data synthesis, diffusion',
    packages=find_packages(include=['mmsynth', 'mmsynth.*']),
    package_data={'mmsynth': ['**/*.j2', 'py.typed']},
    python_requires='>=3.10',
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    cmdclass={'build_py': BuildWithMim},
    zip_safe=False,
)
