import functools
import json

import pytest

from wmpoe import zoo
from wmpoe.evaluation import recall
from wmpoe.evaluation import results


@pytest.fixture
def experts(tiny, tmp_path):
  """The flag that names a tiny base and a tiny spatial expert."""
  files = {name: tiny.save(tmp_path / f'{name}.npz', tiny.description(name))
           for name in ('base', 'spatial')}
  return '--experts=' + ','.join(f'{name}={path}' for name, path in files.items())


def _evaluate(wmpoe, tiny, *flags):
  return wmpoe('eval', tiny.config(), *tiny.env, '--workdir=there', '--episodes=2', '--seeds=1',
               '--config.compose.num_steps=2', '--config.compose.long_term.writing.steps=2', *flags)


def _package(monkeypatch, tiny, *memories):
  """A tiny world in place of the packaged one."""
  monkeypatch.setattr(zoo, 'load', lambda name, compose: tiny.world(*memories))
  monkeypatch.setattr(zoo, 'card', lambda path: {'config': tiny.description('base')})


def test_recall_of_the_experts_in_files(wmpoe, tiny, tmp_path, experts):
  done = _evaluate(
      wmpoe, tiny, experts, '--split=validation', '--config.compose.fewer.spatial.spatial=0.0')
  assert done.code == 0, done.err
  out = results.read(tmp_path / 'there' / 'recall.json')
  assert list(out['arms']) == ['base', 'long_term', 'spatial', 'long_term_new_order', 'all']
  assert list(out['controls']) == ['other_episode', 'shuffled_history']
  assert out['arms']['spatial']['recall']['n'] == 2
  psnr = {name: arm['psnr']['mean'] for name, arm in out['arms'].items()}
  assert psnr['spatial'] == psnr['base'] != psnr['long_term'], 'alone it has a weight of its own'
  assert psnr['all'] != psnr['long_term'], 'which is not the one it has among others'
  assert out['references'] == {'recall': {'chance': 0.25}}
  assert out['meta']['config']['split'] == 'validation'
  assert out['meta']['config']['compose']['long_term']['writing']['steps'] == 2
  assert '<svg' in (tmp_path / 'there' / 'recall.html').read_text()
  assert 'Spatial' in done.out
  assert 'recall.json' in done.out
  assert '100 %' in done.err  # progress


def test_steps_draws_recall_against_steps_and_seconds(wmpoe, tiny, tmp_path, monkeypatch):
  _package(monkeypatch, tiny, 'long_term')
  done = _evaluate(wmpoe, tiny, '--protocol=steps', '--steps=1,2')
  assert done.code == 0, done.err
  out = json.loads((tmp_path / 'there' / 'steps.json').read_text())
  assert list(out['arms']) == ['base', 'long_term_1', 'long_term_2']
  assert [curve['xlabel'] for curve in out['curves']] == ['inner steps', 'seconds per episode']
  assert out['curves'][0]['series']['long_term']['x'] == [0, 1, 2]


@pytest.mark.parametrize('protocol', ['recall', 'steps'])
def test_a_run_that_is_stopped_goes_on_with_the_next_seed(
    wmpoe, tiny, tmp_path, monkeypatch, protocol):
  _package(monkeypatch, tiny, 'long_term')
  flags = f'--protocol={protocol}', '--steps=1,2', '--seeds=2'
  measured, measure = [], recall.measure

  def counted(*args, stop=False):
    measured.append(1)
    if stop and len(measured) > whole // 2:  # in the second seed
      raise KeyboardInterrupt
    return measure(*args)

  def numbers():
    out = json.loads((tmp_path / 'there' / f'{protocol}.json').read_text())
    return {name: {m: x['mean'] for m, x in arm.items() if '_ms_' not in m}
            for name, arm in {**out['arms'], **out['controls']}.items()}

  monkeypatch.setattr(recall, 'measure', counted)
  assert _evaluate(wmpoe, tiny, *flags).code == 0
  undisturbed, whole = numbers(), len(measured)
  (tmp_path / 'there' / f'{protocol}.json').unlink()

  measured.clear()
  monkeypatch.setattr(recall, 'measure', functools.partial(counted, stop=True))
  assert _evaluate(wmpoe, tiny, *flags).code != 0
  assert not (tmp_path / 'there' / f'{protocol}.json').exists()
  measured.clear()
  monkeypatch.setattr(recall, 'measure', counted)
  done = _evaluate(wmpoe, tiny, *flags)
  assert done.code == 0 and 'resuming from 1 measured part in there/.' in done.err
  assert len(measured) == whole // 2 and numbers() == undisturbed
  assert not list((tmp_path / 'there').glob('.*')), 'nothing is left behind'


@pytest.mark.parametrize(('flags', 'message'), [
    (['--protocol=recal'], "Unknown protocol 'recal' of cards; expected one of recall, steps, or"),
    (['--episodes=1'], '--episodes=1 and --seeds=1: expected at least 2 episodes'),
    (['--seeds=0'], '--episodes=2 and --seeds=0: expected at least 2 episodes'),
    (['--experts=base.npz'], "--experts got 'base.npz'; expected name=file, comma separated."),
    (['--experts=base=nowhere.npz'], "'nowhere.npz' is neither a file nor a packaged expert"),
    (['--config.env.name=maze'], "'maze'"),
    ([], 'cards_base was trained on boards of (pixels, grid, symbols) = (32, 4, 8); --config.env '
         'asks for (16, 2, 4)'),
    (['--config=configs/nowhere.py'], '--config=configs/nowhere.py: there is no such file in '),
    (['--config', 'nowhere.py:base'], '--config=nowhere.py: there is no such file in '),
])
def test_bad_input_is_named(wmpoe, tiny, flags, message):
  done = _evaluate(wmpoe, tiny, *flags)
  assert done.code == 2
  assert message in done.err


def test_steps_needs_a_long_term_memory(wmpoe, tiny, monkeypatch):
  _package(monkeypatch, tiny)
  done = _evaluate(wmpoe, tiny, '--protocol=steps')
  assert done.code == 2
  assert 'The protocol steps needs a long-term memory; this model has none.' in done.err
  _package(monkeypatch, tiny, 'long_term')
  done = _evaluate(wmpoe, tiny, '--protocol=steps', '--steps=20,x')
  assert done.code == 2
  assert '--steps=20,x: expected whole numbers, such as 20,50,' in done.err


@pytest.mark.parametrize(('flags', 'message'), [
    (['--experts=spatial={folder}/spatial.npz'], "Got the experts ['spatial']; expected base and"),
    (['--experts=base={folder}/base.npz,map={folder}/spatial.npz'],
     "Got the experts ['base', 'map']; expected base and any of"),
    (['--experts=base={folder}/base.npz,spatial=cards_spatial'],
     'experts must share their environment'),
])
def test_experts_that_do_not_go_together_are_named(
    wmpoe, tiny, tmp_path, experts, flags, message):
  done = _evaluate(wmpoe, tiny, *(flag.format(folder=tmp_path) for flag in flags))
  assert done.code == 2
  assert message in done.err


def test_a_folder_that_cannot_be_made(wmpoe, tiny, tmp_path):
  (tmp_path / 'file').write_text('here first')
  done = _evaluate(wmpoe, tiny, '--workdir=file/below')
  assert done.code == 2
  assert "Cannot write to the output folder 'file/below' (Not a directory)" in done.err
