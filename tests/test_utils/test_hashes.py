"""Hashes of settings notice other files under the same names."""
from pathlib import Path

import pytest

from mmsynth.utils.hashes import config_and_files_hash


@pytest.mark.parametrize('place', [
    lambda path: dict(type='mmsynth.ChosenMasks', images_per_mask=path),
    lambda path: dict(type='mmsynth.PastedMasks', dataset=dict(critic=dict(checkpoint=path))),
    lambda path: dict(critic=dict(critics=[dict(checkpoint=None), dict(checkpoint=path)])),
], ids=['images_per_mask', 'nested', 'ensemble'])
def test_other_content_gives_another_hash(place, tmp_path: Path) -> None:
    (file := tmp_path / 'file').write_text('one')
    before = config_and_files_hash(place(str(file)))
    assert config_and_files_hash(place(str(file))) == before
    file.write_text('other')
    assert config_and_files_hash(place(str(file))) != before
