import json

import jax
import numpy as np
import pytest

from wmpoe import packaged


def _train(wmpoe, tiny, *flags, variant='base', steps=4):
  return wmpoe('train', tiny.config(variant), *tiny.flags, f'--config.train.steps={steps}',
               '--config.train.log_every=1', *flags)


def _rows(folder):
  return [json.loads(row) for row in (folder / 'metrics.jsonl').read_text().splitlines()]


def test_trains_packages_goes_on_and_refuses_another_config(wmpoe, tiny, tmp_path):
  done = _train(wmpoe, tiny, '--workdir=run', '--package=made/base.npz')
  assert done.code == 0, done.err
  assert 'next: python -m wmpoe info --expert=made/base.npz' in done.out
  assert [r['step'] for r in _rows(tmp_path / 'run') if r['kind'] == 'train'] == [1, 2, 3, 4]
  card = packaged.card(tmp_path / 'made' / 'base.npz')
  assert (card['steps'], card['config']['model']['width']) == (4, 16)
  assert card['result']['validation_loss'] > 0
  assert card['command'].startswith('python -m wmpoe train --config=')
  assert '--config.train.steps=4' in card['command'], 'what the expert needs to be made again'
  assert wmpoe('info', '--expert=made/base.npz').code == 0

  done = _train(wmpoe, tiny, '--workdir=run', steps=6)
  assert done.code == 0, done.err
  assert 'from step 4' in done.err + done.out
  assert [r['step'] for r in _rows(tmp_path / 'run') if r['kind'] == 'train'] == [*range(1, 7)]

  rows = _rows(tmp_path / 'run')
  done = _train(
      wmpoe, tiny, '--workdir=run', '--config.model.depth=2', '--config.train.learning_rate=0.5')
  assert done.code == 2
  assert 'holds a run of another configuration' in done.err
  assert 'run.model.depth: 1 there, 2 now' in done.err
  assert 'train.learning_rate: 0.001 there, 0.5 now' in done.err
  assert _rows(tmp_path / 'run') == rows


def test_other_experts_start_from_a_base(wmpoe, tiny, tmp_path):
  base = tiny.save(tmp_path / 'base.npz', tiny.description())
  flags = ['--workdir=run', f'--config.init_from={base}', '--package=expert.npz']
  done = _train(wmpoe, tiny, *flags, variant='spatial', steps=1)
  assert done.code == 0, done.err
  assert packaged.card(tmp_path / 'expert.npz')['config']['expert'] == 'spatial'


def test_a_part_learns_and_the_rest_stays_as_it_was(wmpoe, tiny, tmp_path):
  base = tiny.save(tmp_path / 'base.npz', tiny.description())
  flags = ['--package=part.npz', '--config.train.learn=output/', '--workdir=run']
  done = _train(wmpoe, tiny, *flags, f'--config.init_from={base}', steps=1)
  assert done.code == 0, done.err
  (before, _), (after, _) = packaged.load(base), packaged.load(tmp_path / 'part.npz')
  changed = {name for name in before if any(map(
      lambda x, y: not np.array_equal(x, y), *map(jax.tree.leaves, (before[name], after[name]))))}
  assert changed == {'output'}

  done = _train(wmpoe, tiny, *flags, '--config.init_from=', '--workdir=other')
  assert done.code == 2
  assert "learn='output/' leaves all other parameters as they were in init_from=''" in done.err
  assert not (tmp_path / 'other').exists()


def test_a_start_from_another_environment_is_refused(wmpoe, tiny):
  done = _train(wmpoe, tiny, '--workdir=run', variant='spatial')  # the packaged base is 32x32
  assert done.code == 2
  assert "init_from='cards_base' was trained on" in done.err
  assert "'size': 32" in done.err


@pytest.mark.parametrize(('flags', 'message'), [
    ([], 'Give the folder of the run, for instance --workdir=runs/cards_base.'),
    (['--workdir=run', '--package=gs://bucket/a.npz'], "'gs://bucket/a.npz' is in an object store"),
    (['--workdir=run', '--package=base.pkl'], '--package=base.pkl must be a file named *.npz.'),
    (['--workdir=run', '--config.train.steps=0'], 'TrainConfig.steps = 0: expected at least 1.'),
    (['--workdir=run', '--config.expert=bass'], "Unknown expert 'bass'; expected one of base"),
    (['--workdir=run', '--config.init_from=nowhere.npz'],
     "'nowhere.npz' is neither a file nor a packaged expert; packaged are: cards_base"),
    (['--workdir=run', '--mesh=model=2'], "Unknown mesh axes ['model']: expected some of data, fs"),
    (['--workdir=run', '--mesh=fsdp:2'], "--mesh=fsdp:2 cannot be read at 'fsdp:2'; expected"),
    (['--workdir=run', '--mesh=data=3,fsdp=5'], 'A mesh of data=3 x fsdp=5 does not use'),
])
def test_bad_input_is_named_before_anything_is_written(wmpoe, tiny, tmp_path, flags, message):
  done = _train(wmpoe, tiny, *flags)
  assert done.code == 2
  assert message in done.err
  assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(wmpoe, tiny, tmp_path):
  (tmp_path / 'file').write_text('here first')
  done = _train(wmpoe, tiny, '--workdir=file/below')
  assert done.code == 2
  assert 'cannot be written to (Not a directory)' in done.err
