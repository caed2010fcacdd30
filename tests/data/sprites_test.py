"""Tests of the pictures: anyone, and any metric, must tell them apart."""

import numpy as np
import pytest

from wmpoe.data import sprites


def _distances(tiles):
  flat = tiles.reshape(len(tiles), -1).astype(np.float64) / 255
  distances = np.sqrt(((flat[:, None] - flat[None]) ** 2).mean(-1))
  return distances[~np.eye(len(tiles), dtype=bool)]


@pytest.mark.parametrize('tile', [8, 12])
def test_tiles_are_well_separated(tile):
  tiles = sprites.tiles(tile, 8)
  assert tiles.shape == (18, tile, tile, 3)
  assert tiles.dtype == np.uint8
  assert _distances(tiles[:9]).min() > 0.2
  assert _distances(tiles[9:]).min() > 0.2


def _paper_and_inks(tile):
  """Colour of the bare card, and of each symbol where it is thickest, after checking both occur."""
  pictures = sprites.tiles(tile, 8)[:8, 1:-1, 1:-1].reshape(8, -1, 3).astype(np.float64)
  paper = np.array([250, 246, 235])
  distance = np.linalg.norm(pictures - paper, axis=-1)
  inks = pictures[np.arange(8), distance.argmax(1)]
  return pictures, paper, inks


@pytest.mark.parametrize('tile', [8, 12])
def test_symbols_differ_in_shape_not_only_in_colour(tile):
  pictures, paper, inks = _paper_and_inks(tile)
  covered = np.linalg.norm(pictures - paper, axis=-1)
  covered /= np.linalg.norm(inks - paper, axis=-1)[:, None]
  distances = np.sqrt(((covered[:, None] - covered[None]) ** 2).mean(-1))
  assert distances[~np.eye(8, dtype=bool)].min() > 0.1


@pytest.mark.parametrize('tile', [8, 12])
def test_symbols_differ_in_colour_not_only_in_shape(tile):
  _, _, inks = _paper_and_inks(tile)
  distances = np.abs(inks[:, None] - inks[None]).sum(-1)[~np.eye(8, dtype=bool)]
  assert distances.min() > 80


@pytest.mark.parametrize('tile', [8, 12, 20])
def test_cursor_is_a_border_that_leaves_the_picture(tile):
  tiles = sprites.tiles(tile, 8)
  border = max(1, tile // 8)
  inner = slice(border, -border)
  np.testing.assert_array_equal(tiles[:9, inner, inner], tiles[9:, inner, inner])
  assert (tiles[9:, 0] == tiles[9, 0, 0]).all()
  assert (tiles[9:, :, -1] == tiles[9, 0, 0]).all()
  assert np.abs(tiles[9:, 0].astype(int) - tiles[:9, 0]).sum(-1).min() > 150


def test_tiles_are_read_only_and_shared():
  assert sprites.tiles(8, 8) is sprites.tiles(8, 8)
  with pytest.raises(ValueError, match='read-only'):
    sprites.tiles(8, 8)[0] = 0
