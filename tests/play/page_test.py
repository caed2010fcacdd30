"""The page itself in headless Chromium."""

import os
import shutil

import pytest

from tests.play import conftest

sync_api = pytest.importorskip(
    'playwright.sync_api', reason='needs playwright: pip install playwright')
_BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))),
                None)
pytestmark = pytest.mark.skipif(
    _BROWSER is None, reason='needs a browser: apt-get install chromium')


@pytest.fixture
def browser():
  with sync_api.sync_playwright() as playwright:
    options = ['--no-sandbox'] if os.geteuid() == 0 else []
    opened = playwright.chromium.launch(executable_path=_BROWSER, args=options)
    yield opened
    opened.close()


def test_one_opens_it_steers_sets_reloads_and_watches(browser, address):
  context = browser.new_context(bypass_csp=True)  # to evaluate what is waited for
  page, complaints = context.new_page(), []
  page.on('pageerror', lambda error: complaints.append(str(error)))
  page.on('console', lambda m: complaints.append(m.text) if m.type == 'error' else None)
  page.set_default_timeout(300_000)  # a busy machine compiles for long
  wait = lambda text, where=page: where.wait_for_function(text)
  link = f'http://{address}/?token={conftest.TOKEN}'
  frames = lambda: int(page.locator('#main').get_attribute('data-frames') or 0)

  page.goto(link)
  wait("document.body.dataset.role === 'writer'")
  assert page.locator('#title').inner_text() == 'Memory Cards'
  wait("document.querySelector('#main').dataset.frames > 0")

  page.keyboard.press('ArrowRight')  # steer, awake
  wait("document.querySelector('#observed').textContent === '2'")
  page.locator('#dream').click()
  wait("document.body.dataset.mode === 'dream'")
  before = frames()
  page.keyboard.press('Space')  # steer, asleep
  wait(f"document.querySelector('#main').dataset.frames > {before}")
  assert page.locator('#caption').inner_text().startswith('what the model imagines')
  colours = lambda canvas: page.evaluate("""name => {
    const canvas = document.querySelector(name), all = canvas.getContext('2d');
    const found = new Uint32Array(all.getImageData(0, 0, canvas.width, canvas.height).data.buffer);
    return new Set(found).size;
  }""", canvas)
  for canvas in '#main', '#bare', '#map':  # not of one colour
    assert colours(canvas) > 1, canvas
  assert colours('#heat') == 1
  page.locator('#overlay').check()
  before = frames()
  page.keyboard.press('Space')
  wait(f"document.querySelector('#main').dataset.frames > {before}")
  assert colours('#heat') > 1
  page.keyboard.press('Space')  # the first of a kind compiles and has no rate
  wait("+document.querySelector('#fps').textContent > 0")

  page.locator('#record').click()
  wait("document.querySelector('#record').classList.contains('on')")
  before = frames()
  page.keyboard.press('Space')
  wait(f"document.querySelector('#main').dataset.frames > {before}")
  page.locator('#fork').click()
  wait("document.querySelector('#branches').childElementCount > 0")
  page.locator('#rewind').click()
  wait(f"document.querySelector('#main').dataset.frames > {before + 1}")
  page.locator('#record').click()
  wait("document.querySelector('#note').textContent.includes('.mp4')")

  page.locator('.expert [type=checkbox]').uncheck()  # toggle
  wait("document.querySelector('.expert').classList.contains('off')")
  page.locator('#save').click()
  wait("document.querySelector('#note').textContent.endsWith('.npz')")

  other = context.new_page()  # two tabs
  other.goto(link)
  wait("document.body.dataset.role === 'viewer'", other)
  assert other.locator('#role').inner_text() == 'you watch'
  assert other.locator('#main').get_attribute('data-frames') == '1'
  other.close()

  page.reload()  # reconnect
  wait("document.body.dataset.role === 'writer'")
  wait("document.body.dataset.mode === 'dream'")
  assert page.locator('.expert').first.get_attribute('class') == 'expert off'
  assert complaints == []

  for size in (2_000, 20_000):  # too much for the room, and for the socket
    page.evaluate("""size => {
      window.old = socket;
      socket.addEventListener('close', event => { window.code = event.code; });
      socket.send('x'.repeat(size));
    }""", size)
    wait("socket !== window.old && document.body.dataset.role === 'writer'")  # by itself
    assert page.evaluate('window.code') == 1009
    assert page.evaluate('document.body.dataset.mode') == 'dream'

  stranger = context.new_page()
  assert stranger.goto(f'http://{address}/?token=wrong').status == 403
