"""Config files that configs name are found from anywhere."""
import importlib.util
import shutil
from pathlib import Path

import pytest

from mmsynth.guidance import SegmentorCritic
from mmsynth.synthesis.build import load_config
from mmsynth.utils import configs
from mmsynth.utils.configs import find_config


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package's configs; the working folder is another one."""
    (tmp_path / 'site' / 'configs').mkdir(parents=True)
    (tmp_path / 'work').mkdir()
    monkeypatch.chdir(tmp_path / 'work')
    monkeypatch.setattr(configs, 'SHIPPED', (tmp_path / 'site', ))
    return tmp_path / 'site'


def test_a_shipped_config_is_found_from_another_folder(shipped: Path) -> None:
    (shipped / 'configs' / 'a.py').write_text('number = 1\n')
    assert load_config('configs/a.py').number == 1
    Path('configs').mkdir()
    Path('configs/a.py').write_text('number = 2\n')  # the user's own comes first
    assert load_config('configs/a.py').number == 2


def test_what_is_missing_is_named_with_the_places(shipped: Path) -> None:
    for look in (find_config, load_config, SegmentorCritic):
        with pytest.raises(FileNotFoundError, match=f'configs/none.py does not exist.*{shipped}'):
            look('configs/none.py')


def test_shipped_configs_name_files_that_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    root = Path(configs.__file__).parents[2] / 'configs'
    named = {line.split("'")[1] for path in root.rglob('*.py') for line in path.read_text().splitlines()
             if 'config=\'' in line}
    assert named and all(find_config(name).is_file() for name in named)


def test_an_installed_copy_finds_its_own_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout of a wheel: configs below mmsynth/.mim, a user's config in another folder that inherits one."""
    package = tmp_path / 'site-packages' / 'mmsynth'
    (package / 'utils').mkdir(parents=True)
    shutil.copy(configs.__file__, package / 'utils' / 'configs.py')
    shutil.copytree(Path(configs.__file__).parents[2] / 'configs', package / '.mim' / 'configs')
    spec = importlib.util.spec_from_file_location('installed_configs', package / 'utils' / 'configs.py')
    installed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(installed)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(configs, 'SHIPPED', installed.SHIPPED)
    ours = package / '.mim/configs/todsynth/todsynth_sd35m_4xb1-amp-40k_dubai-512x512.py'
    (tmp_path / 'mine.py').write_text(f'_base_ = {str(ours)!r}\n')
    critic = load_config('mine.py').synthesis.guidance.critic.config
    assert find_config(critic) == package / '.mim' / critic
    assert load_config(critic).model.type == 'EncoderDecoder'
