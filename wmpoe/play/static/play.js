'use strict';
// The page knows no more than it is told: it sends commands and draws what comes back.

const $ = id => document.getElementById(id);
const COLOURS = {short_term: '--short', long_term: '--long', spatial: '--spatial'};
const KEYS = {ArrowUp: 'up', ArrowDown: 'down', ArrowLeft: 'left', ArrowRight: 'right', ' ': 'space'};
const LONGEST = 2000;  // path drawn on the map
const token = new URLSearchParams(location.search).get('token') || '';
const colour = name => getComputedStyle(document.documentElement)
    .getPropertyValue(COLOURS[name] || '--dream').trim();

let socket = null, told = {}, walked = [], path = [], held = new Set(), tries = 0, noted = 0;

// ------------------------------------------------------------------------------ talking

function say(command) {
  if (socket && socket.readyState === WebSocket.OPEN && document.body.dataset.role === 'writer') {
    socket.send(JSON.stringify(command));
  }
}

function connect() {
  const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
  socket = new WebSocket(`${scheme}://${location.host}/live?token=${encodeURIComponent(token)}`);
  socket.binaryType = 'arraybuffer';
  socket.onopen = () => { tries = 0; };
  socket.onmessage = event => receive(event.data);
  socket.onclose = () => {
    setRole('lost');
    setTimeout(connect, Math.min(5000, 300 * 2 ** tries++));
  };
}

function receive(data) {
  const length = new DataView(data).getUint32(0);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  const pictures = {};
  let at = 4 + length;
  for (const plane of header.planes) {
    const size = plane.shape.reduce((a, b) => a * b, 1);
    pictures[plane.name] = {shape: plane.shape, data: new Uint8Array(data, at, size)};
    at += size;
  }
  const act = {hello, frame, status, wait, error, note, role: h => setRole(h.role),
               free: () => setRole(document.body.dataset.role)}[header.kind];
  if (act) act(header, pictures);
}

function hello(header, pictures) {
  told = header;
  walked = header.walked;
  path = header.path;
  $('title').textContent = header.title;
  $('hint').textContent = header.hint;
  $('followbox').hidden = !header.can_follow;
  document.querySelector('[data-key=space]').hidden = header.plan.kind !== 'board';
  fill($('rule'), header.rules);
  fill($('sampler'), header.samplers);
  makeExperts(header.settings);
  setRole(header.role);
  status(header);
  if (header.settings.mode === 'real' || !path.length) for (const id of ['bare', 'truth']) clear($(id));
  draw(pictures);
  map();
}

function frame(header, pictures) {
  const way = header.settings.mode === 'real' ? walked : path;
  way.push(header.pose);
  if (way.length > LONGEST) way.shift();
  status(header);
  draw(pictures);
  map();
}

function status(header) {
  Object.assign(told, header);
  const set = header.settings;
  document.body.dataset.mode = set.mode;
  $('place').textContent = set.mode === 'real' ? 'awake, in the real world' : 'dreaming: all you see is imagined';
  $('caption').textContent = set.mode === 'real' ? 'what is really there' :
      'what the model imagines from its memories';
  $('truthcap').textContent = set.follow ? 'what really came next' :
      told.plan.kind === 'board' ? 'what it really looks like' : 'nearest real frame seen';
  $('fps').textContent = header.fps.toFixed(1);
  $('read').textContent = Math.round(header.read_ms);
  $('write').textContent = header.write_ms < 10 ? header.write_ms.toFixed(1) : Math.round(header.write_ms);
  $('observed').textContent = header.observed;
  for (const id of ['overlay', 'compare', 'pause', 'follow', 'remember']) $(id).checked = set[id];
  for (const id of ['rule', 'sampler', 'steps', 'chunk']) if (document.activeElement !== $(id)) $(id).value = set[id];
  $('run').classList.toggle('on', set.run);
  $('record').classList.toggle('on', header.recording);
  $('record').textContent = header.recording ? 'Stop and save' : 'Record film';
  $('writebtn').hidden = !('long_term' in set.weights);
  $('writebtn').textContent = header.unwritten ? `Write weights (${header.unwritten})` : 'Write weights';
  for (const box of document.querySelectorAll('.expert')) {
    const name = box.dataset.expert;
    box.classList.toggle('off', !set.on[name]);
    box.querySelector('[type=checkbox]').checked = set.on[name];
    const slider = box.querySelector('[type=range]');
    if (document.activeElement !== slider) slider.value = set.weights[name];
    box.querySelector('output').textContent = set.weights[name].toFixed(2);
  }
  branches(header.branches);
  $('busy').hidden = true;
}

function wait(header) {
  $('busytext').textContent = header.text;
  $('busy').hidden = false;
  if (header.role) setRole(header.role);
}

function error(header) { tell(header.text, true); }
function note(header) { status(header); tell(header.text, false); }

function tell(text, bad) {
  $('note').textContent = text;
  $('note').classList.toggle('bad', bad);
  $('busy').hidden = true;
  const own = ++noted;
  setTimeout(() => { if (own === noted) $('note').textContent = ''; }, 8000);
}

function setRole(role) {
  document.body.dataset.role = role;
  $('role').textContent = {writer: 'you steer', viewer: 'you watch', lost: 'connection lost'}[role];
  $('claim').hidden = role !== 'viewer';
  if (role !== 'writer') release();
}

// ------------------------------------------------------------------------------ drawing

function paint(canvas, picture) {
  const [height, width] = picture.shape, pixels = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    pixels.data[4 * i] = picture.data[3 * i];
    pixels.data[4 * i + 1] = picture.data[3 * i + 1];
    pixels.data[4 * i + 2] = picture.data[3 * i + 2];
    pixels.data[4 * i + 3] = 255;
  }
  const small = new OffscreenCanvas(width, height);
  small.getContext('2d').putImageData(pixels, 0, 0);
  canvas.parentElement.removeAttribute('data-empty');
  const size = Math.max(240, Math.round(canvas.clientWidth * devicePixelRatio));
  if (canvas.width !== size) canvas.width = canvas.height = size;
  const context = canvas.getContext('2d');
  context.imageSmoothingEnabled = told.plan && told.plan.kind === 'maze';
  context.imageSmoothingQuality = 'high';
  context.drawImage(small, 0, 0, size, size);
}

function clear(canvas) {
  if (canvas.id !== 'heat') canvas.parentElement.setAttribute('data-empty', '');
  canvas.getContext('2d').clearRect(0, 0, canvas.width, canvas.height);
}

function draw(pictures) {
  const main = pictures.dream || pictures.reality;
  if (main) { paint($('main'), main); $('main').dataset.frames = 1 + Number($('main').dataset.frames || 0); }
  if (pictures.bare) paint($('bare'), pictures.bare);
  else if (main) clear($('bare'));
  if (pictures.truth) paint($('truth'), pictures.truth);
  else if (main) clear($('truth'));
  if (main) heat(pictures);
}

function heat(pictures) {
  const canvas = $('heat'), names = Object.keys(pictures).filter(n => n.startsWith('drew:'));
  if (!names.length) { clear(canvas); return; }
  const [height, width] = pictures[names[0]].shape, pixels = new ImageData(width, height);
  for (const name of names) {
    const hex = colour(name.slice(5)).slice(1);
    const rgb = [0, 2, 4].map(i => parseInt(hex.slice(i, i + 2), 16));
    pictures[name].data.forEach((value, i) => {
      for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = Math.min(255, pixels.data[4 * i + c] + rgb[c] * value / 255);
      pixels.data[4 * i + 3] = Math.max(pixels.data[4 * i + 3], Math.min(230, value * 1.2));
    });
  }
  const small = new OffscreenCanvas(width, height);
  small.getContext('2d').putImageData(pixels, 0, 0);
  canvas.width = canvas.height = $('main').width;
  const context = canvas.getContext('2d');
  context.imageSmoothingEnabled = true;
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}

function map() {
  const canvas = $('map'), context = canvas.getContext('2d'), plan = told.plan;
  if (!plan) return;
  const margin = 16, unit = (canvas.width - 2 * margin) / plan.size, board = plan.kind === 'board';
  // Mazes: x to the right, y up. Boards: row down, column to the right, middles of cards.
  const spot = p => board ? [margin + (p[1] + .5) * unit, margin + (p[0] + .5) * unit]
      : [margin + p[0] * unit, canvas.height - margin - p[1] * unit];
  context.clearRect(0, 0, canvas.width, canvas.height);
  for (let y = 0; y < plan.size; y++) for (let x = 0; x < plan.size; x++) {
    if (!board && !plan.layout[y][x]) continue;
    context.fillStyle = board ? '#1a2130' : '#1d2536';
    const top = board ? margin + y * unit : canvas.height - margin - (y + 1) * unit;
    const gap = board ? 3 : 0;
    context.fillRect(margin + x * unit + gap, top + gap, unit + .6 - 2 * gap, unit + .6 - 2 * gap);
  }
  const line = (points, style, width) => {
    if (points.length < 2) return;
    context.beginPath();
    points.forEach((p, i) => i ? context.lineTo(...spot(p)) : context.moveTo(...spot(p)));
    context.strokeStyle = style; context.lineWidth = width;
    context.lineJoin = context.lineCap = 'round'; context.stroke();
  };
  line(walked, '#57d0a4aa', 4);
  const start = path.length && walked.length ? [walked[walked.length - 1]] : [];
  line([...start, ...path], '#a58bff', 6);
  const pose = told.pose, [x, y] = spot(pose);
  const mode = getComputedStyle(document.body).getPropertyValue('--mode').trim();
  if (!board) {
    const heading = -pose[2];
    context.beginPath(); context.moveTo(x, y);
    context.arc(x, y, 46, heading - .68, heading + .68); context.closePath();
    context.fillStyle = mode + '44'; context.fill();
  }
  context.beginPath(); context.arc(x, y, 9, 0, 7); context.fillStyle = mode; context.fill();
}

// ------------------------------------------------------------------------------ controls

function fill(select, names) {
  select.replaceChildren(...names.map(name => new Option(name.replaceAll('_', ' '), name)));
}

function makeExperts(set) {
  $('experts').replaceChildren(...Object.keys(set.weights).map(name => {
    const box = document.createElement('div');
    box.className = 'expert';
    box.dataset.expert = name;
    box.style.setProperty('--own', `var(${COLOURS[name] || '--dream'})`);
    const label = document.createElement('label'), on = document.createElement('input');
    label.className = 'name';
    on.type = 'checkbox';
    on.onchange = () => say({do: 'expert', expert: name, on: on.checked});
    label.append(on, name.replaceAll('_', '-'));
    const slider = document.createElement('input');
    Object.assign(slider, {type: 'range', min: 0, max: 4, step: 0.05});
    slider.setAttribute('aria-label', `weight of ${name}`);
    slider.oninput = () => say({do: 'weight', expert: name, value: Number(slider.value)});
    box.append(label, document.createElement('span'), document.createElement('output'), slider);
    return box;
  }));
}

function branches(count) {
  if ($('branches').children.length === count) return;
  $('branches').replaceChildren(...Array.from({length: count}, (_, i) => {
    const button = document.createElement('button');
    button.textContent = i + 1;
    button.title = `back to fork ${i + 1}`;
    button.onclick = () => say({do: 'branch', index: i});
    return button;
  }));
}

function keys() {
  say({do: 'keys', held: [...held]});
  for (const button of document.querySelectorAll('.keys button')) button.classList.toggle('on', held.has(button.dataset.key));
}

function press(key) {
  if (held.has(key)) return;
  // A tap is one step however short it is; held for longer, it goes on.
  if (!held.size) say({do: 'tap', key});
  held.add(key);
  if (key !== 'space') setTimeout(() => { if (held.has(key)) keys(); }, 220);
  for (const button of document.querySelectorAll('.keys button')) button.classList.toggle('on', held.has(button.dataset.key));
}

function release(key) {
  if (key ? held.delete(key) : held.size) { if (!key) held.clear(); keys(); }
}

addEventListener('keydown', event => {
  const key = KEYS[event.key];
  if (!key || event.target.matches('select, input[type=number], input[type=range]')) return;
  if (key === 'space' && event.target.matches('button, input')) event.target.blur();
  event.preventDefault();
  if (!event.repeat) press(key);
});
addEventListener('keyup', event => { if (KEYS[event.key]) release(KEYS[event.key]); });
addEventListener('blur', () => release());
for (const button of document.querySelectorAll('.keys button')) {
  button.onpointerdown = () => press(button.dataset.key);
  button.onpointerup = button.onpointerleave = () => release(button.dataset.key);
}
for (const id of ['real', 'dream']) $(id).onclick = () => say({do: 'mode', name: id});
for (const id of ['overlay', 'compare', 'pause', 'follow', 'remember']) $(id).onchange = () => say({do: id, on: $(id).checked});
for (const id of ['rule', 'sampler']) $(id).onchange = () => say({do: id, name: $(id).value});
for (const id of ['steps', 'chunk']) $(id).onchange = () => say({do: id, value: Number($(id).value)});
$('run').onclick = () => say({do: 'run', on: !told.settings.run});
$('record').onclick = () => say({do: 'record', on: !told.recording});
$('rewind').onclick = () => say({do: 'rewind', frames: 5});
$('watch').onclick = () => say({do: 'watch', frames: 100});
$('writebtn').onclick = () => say({do: 'write'});
for (const id of ['step', 'fork', 'save', 'forget']) $(id).onclick = () => say({do: id});
$('claim').onclick = () => socket.send(JSON.stringify({do: 'claim'}));

connect();
