"""The architecture: which package imports which, and what every file must keep, by import-linter and ruff."""
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import ROOT

BIN = Path(sys.executable).parent


@pytest.mark.parametrize('command', [('lint-imports', ), ('ruff', 'check', '.')])
def test_rules_are_kept(command: tuple[str, ...]) -> None:
    """Their contracts and rules are in pyproject.toml."""
    if not (BIN / command[0]).is_file():
        pytest.skip(f"{command[0]} is not installed: pip install 'mmsynth[dev]'")
    result = subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]


def test_a_wrong_import_is_found(tmp_path: Path) -> None:
    """The layers are not held by accident: an arrow that points back breaks them."""
    if not (BIN / 'lint-imports').is_file():
        pytest.skip("lint-imports is not installed: pip install 'mmsynth[dev]'")
    package = tmp_path / 'mmsynth'
    for name in ('apis', 'utils'):
        (package / name).mkdir(parents=True)
        (package / name / '__init__.py').touch()
    (package / '__init__.py').touch()
    (package / 'utils' / '__init__.py').write_text('from mmsynth import apis\n')
    (tmp_path / '.importlinter').write_text("""[importlinter]
root_package = mmsynth
[importlinter:contract:layers]
name = layers
type = layers
layers =
    mmsynth.apis
    mmsynth.utils
""")
    result = subprocess.run([BIN / 'lint-imports'], cwd=tmp_path, capture_output=True, text=True,
                            env={'PATH': str(BIN), 'PYTHONPATH': str(tmp_path)})
    assert result.returncode == 1 and 'layers BROKEN' in result.stdout
