import io
import json
import zipfile

import pytest

from wmpoe import packaged
from wmpoe.evaluation import mixture_study


def test_describes_the_packaged_experts_and_the_installation(wmpoe):
  done = wmpoe('info')
  assert done.code == 0, done.err
  assert done.out.startswith('wmpoe ')
  for name in packaged.names():
    assert f'\n{name}  (' in done.out
    assert packaged.card(packaged.find(name))['sha256'] in done.out
  assert done.out.endswith('next: python -m wmpoe demo\n')


@pytest.mark.parametrize('variant', ['base', 'spatial'])
def test_shows_a_card_and_checks_it(wmpoe, tiny, tmp_path, variant):
  tiny.save(tmp_path / 'expert.npz', tiny.description(variant))
  done = wmpoe('info', '--expert=expert.npz')
  assert done.code == 0, done.err
  text, _, verdict = done.out.rstrip().rpartition('\n')
  assert json.loads(text)['config']['expert'] == variant
  assert verdict == 'weights match the card (sha256 and every leaf)'


def test_a_wrong_hash_is_told(wmpoe, tiny, tmp_path):
  path = tiny.save(tmp_path / 'expert.npz', tiny.description())
  buffer = io.BytesIO()
  with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, 'w') as new:
    for name in old.namelist():
      content = old.read(name)
      if name == 'card.json':
        content = json.dumps({**json.loads(content), 'sha256': '0' * 64}).encode()
      new.writestr(name, content)
  path.write_bytes(buffer.getvalue())
  done = wmpoe('info', '--expert=expert.npz')
  assert done.code == 2
  assert "expert.npz' is damaged: its contents have sha256 " in done.err
  assert f'its card says {"0" * 64}' in done.err


def _without(params):
  return {name: leaf for name, leaf in params.items() if name != 'place'}


def _with_more(params):
  return {**params, 'surplus': params['place']}


def _reshaped(params):
  return {**params, 'place': params['place'].T}


@pytest.mark.parametrize(('change', 'message'), [
    (_without, '1 missing: place.'),
    (_with_more, '1 extra: surplus.'),
    (_reshaped, '1 misshapen: place (file (16, 4), model (4, 16)).'),
])
def test_leaves_that_do_not_fit_the_card_are_named(wmpoe, tiny, tmp_path, change, message):
  description = tiny.description()
  tiny.save(tmp_path / 'expert.npz', description, change(tiny.params(description)))
  done = wmpoe('info', '--expert=expert.npz')
  assert done.code == 2
  assert message in done.err
  assert 'match the card' not in done.out


@pytest.mark.parametrize(('flags', 'message'), [
    (['--expert=nowhere.npz'],
     "'nowhere.npz' is neither a file nor a packaged expert; packaged are: cards_base"),
    (['decomposition'], "Unknown topic 'decomposition'; expected one of experts, composition."),
])
def test_bad_input_is_named(wmpoe, flags, message):
  done = wmpoe('info', *flags)
  assert done.code == 2
  assert message in done.err


def test_a_truncated_file_is_told(wmpoe, tiny, tmp_path):
  path = tiny.save(tmp_path / 'expert.npz', tiny.description())
  path.write_bytes(path.read_bytes()[:-100])
  done = wmpoe('info', '--expert=expert.npz')
  assert done.code == 2
  assert 'truncated, damaged or no .npz file' in done.err


def test_composition_makes_the_table_and_the_plot(wmpoe, tmp_path, monkeypatch):
  few = mixture_study.run
  monkeypatch.setattr(mixture_study, 'run', lambda: few(num_samples=200))
  done = wmpoe('info', 'composition', '--workdir=there')
  assert done.code == 0, done.err
  assert done.out.startswith('| rule | mode masses')
  assert 'base + sum_i w_i (eps_i - epsbar_i)' in done.out
  assert (tmp_path / 'there' / 'composition.png').read_bytes().startswith(b'\x89PNG')
