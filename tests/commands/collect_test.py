import json

import pytest

from wmpoe.data import episode


def _collect(wmpoe, tiny, *flags, folder='there'):
  return wmpoe('collect', tiny.config(), *tiny.env, f'--workdir={folder}', *flags)


def test_writes_episodes_and_what_they_have_in_common(wmpoe, tiny, tmp_path):
  done = _collect(wmpoe, tiny, '--episodes=2', '--split=test', '--kind=script')
  assert done.code == 0, done.err
  assert 'wrote 2 episodes to there' in done.out
  assert 'next: python -c' in done.out
  assert sorted(path.name for path in (tmp_path / 'there').iterdir()) == [
      'episode_00000.npz', 'episode_00001.npz', 'spaces.json']
  first = episode.Episode.load(tmp_path / 'there' / 'episode_00000.npz')
  assert first.frames.shape == (250, 16, 16, 3)
  assert (first.meta['split'], first.meta['kind']) == ('test', 'script')
  assert json.loads((tmp_path / 'there' / 'spaces.json').read_text())['config']['grid'] == 2


def test_goes_on_with_what_is_there(wmpoe, tiny, tmp_path):
  _collect(wmpoe, tiny, '--episodes=1')
  first = tmp_path / 'there' / 'episode_00000.npz'
  before = first.stat().st_mtime_ns
  assert _collect(wmpoe, tiny, '--episodes=2').code == 0
  assert first.stat().st_mtime_ns == before
  assert (tmp_path / 'there' / 'episode_00001.npz').exists()


def test_overwrites_only_when_told(wmpoe, tiny, tmp_path):
  _collect(wmpoe, tiny, '--episodes=2')
  again = _collect(wmpoe, tiny, '--episodes=1', '--split=test')
  assert again.code == 2
  assert "differ in split ('train', asked for 'test')" in again.err
  assert _collect(wmpoe, tiny, '--episodes=1', '--split=test', '--overwrite').code == 0
  assert [path.name for path in (tmp_path / 'there').glob('episode_*')] == ['episode_00000.npz']


@pytest.mark.parametrize(('flags', 'message'), [
    (['--episodes=0'], '--episodes=0: expected at least 1.'),
    (['--split=exam'], "Unknown split 'exam'; expected one of train, validation, test."),
    (['--kind=run'], "'run'"),
])
def test_bad_input_is_named_and_nothing_is_collected(wmpoe, tiny, tmp_path, flags, message):
  done = _collect(wmpoe, tiny, *flags)
  assert done.code == 2
  assert message in done.err
  assert list((tmp_path).rglob('episode_*')) == []


def test_a_folder_that_cannot_be_made(wmpoe, tiny, tmp_path):
  (tmp_path / 'file').write_text('here first')
  done = _collect(wmpoe, tiny, folder='file/below')
  assert done.code == 2
  assert "Cannot write to the output folder 'file/below' (Not a directory)" in done.err
  assert 'name another with --workdir' in done.err
