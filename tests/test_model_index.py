"""model-index.yml and the metafiles, as ``mim search`` reads them: an entry for each config, and what it says is so."""
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_run import ROOT

from mmsynth.synthesis.build import load_config

METAFILES = [ROOT / path for path in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']]
COLLECTIONS = {entry['Name']: entry for file in METAFILES for entry in yaml.safe_load(file.read_text())['Collections']}
MODELS = [entry for file in METAFILES for entry in yaml.safe_load(file.read_text())['Models']]


def test_every_config_has_one_entry() -> None:
    configs = {path.relative_to(ROOT).as_posix() for path in (ROOT / 'configs').glob('[!_]*/*.py')}
    assert sorted(model['Config'] for model in MODELS) == sorted(configs)
    assert {file.parent for file in METAFILES} == {(ROOT / config).parent for config in configs}


@pytest.mark.parametrize('model', MODELS, ids=lambda model: model['Name'])
def test_an_entry_says_what_the_config_does(model: dict[str, Any]) -> None:
    cfg, metadata = load_config(ROOT / model['Config']), model['Metadata']
    assert model['Name'] == Path(model['Config']).stem and model['In Collection'] in COLLECTIONS
    gpus = int(re.search(r'_(\d+)xb\d', model['Name'])[1])
    batch = cfg.train_dataloader.get('batch_size') or cfg.train_dataloader.batch_sampler.batch_size
    assert metadata['Batch Size'] == gpus * batch and metadata['Training Resources'].split()[0] == str(gpus)
    assert metadata['Iterations'] == cfg.train_cfg.max_iters
    assert {metadata['Crop Size']} == set(cfg.crop_size)
    assert 'Weights' not in model and 'Results' not in model  # none are published, and none were measured


@pytest.mark.parametrize('collection', COLLECTIONS.values(), ids=lambda collection: collection['Name'])
def test_a_collection_names_its_paper_as_its_readme_does(collection: dict[str, Any]) -> None:
    readme = (ROOT / collection['README']).read_text()
    assert collection['Paper']['Title'].lower() in readme.lower() and collection['Paper']['URL'] in readme
    assert collection['Metadata']['Training Data'] and '## Abstract' in readme and '```bibtex' in readme
    for figure in collection['Metadata'].get('Reported By The Paper', ()):
        for number in re.findall(r'\d+\.\d+', figure.split(' - ')[1]):
            assert number in readme, f'{figure}: the README has no {number}'
