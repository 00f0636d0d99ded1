// The page of features. Data come from the <script type="text/plain"> elements below the page: deflated, in base64, opened when they are needed.
// Text of any kind reaches the page as textContent only; nothing is ever parsed as HTML, and the page's policy forbids every request.
'use strict'
const $ = id => document.getElementById(id)
const clamp = (x, low, high) => Math.max(low, Math.min(high, x))
const KINDS = ['strongest', 'spread', 'random', 'near']
const ROW = 52 // Height of a line of the list, as in the style sheet

function el(tag, props = {}, ...kids) {
  const e = document.createElement(tag)
  for (const [k, v] of Object.entries(props)) {
    if (v === null || v === undefined) continue
    if (k === 'class') e.className = v
    else if (k === 'text') e.textContent = v
    else if (k.startsWith('on')) e.addEventListener(k.slice(2), v)
    else e.setAttribute(k, v)
  }
  e.append(...kids.flat().filter(o => o !== null && o !== undefined))
  return e
}
function svg(tag, props = {}, ...kids) {
  const e = document.createElementNS('http://www.w3.org/2000/svg', tag)
  for (const [k, v] of Object.entries(props)) k === 'text' ? e.textContent = v : e.setAttribute(k, v)
  e.append(...kids)
  return e
}

// ---- Data ----
const opened = new Map()
const loaded = new Promise(done => document.readyState === 'loading' ? addEventListener('DOMContentLoaded', done) : done())
function open(id) { // The bytes of a piece of data; kept, the last hundred of them
  if (!opened.has(id)) {
    if (opened.size > 100) opened.delete([...opened.keys()].find(k => k[0] === 'c'))
    opened.set(id, (async () => {
      if (!$(id)) await loaded
      const bytes = Uint8Array.from(atob($(id).textContent.trim()), c => c.charCodeAt(0))
      return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate-raw'))).arrayBuffer())
    })())
  }
  return opened.get(id)
}
const json = async id => JSON.parse(new TextDecoder().decode(await open(id)))

let page, sets, S // all facts, all sets of features, and the one that is shown
const state = { set: 0, feature: -1, sort: 'feature', down: false, query: '', level: 0, show: 'live', view: 'features', inTexts: null }

async function chunk(set, c) { // The features of one piece, with their contexts
  const bytes = await open(`c${set.number}-${c}`), size = new DataView(bytes.buffer).getUint32(0, true)
  const head = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + size)))
  let at = 4 + size
  const take = (Type, n) => { const o = new Type(bytes.buffer.slice(at, at + n*Type.BYTES_PER_ELEMENT)); at += o.byteLength; return o }
  const E = head.contexts, W = set.window
  const c_ = { value: take(Float32Array, E), by: take(Uint32Array, E), doc: take(Uint32Array, E), position: take(Int32Array, E), here: take(Uint16Array, E),
    ids: take(set.wide ? Uint32Array : Uint16Array, E*W), acts: take(Uint8Array, E*W) }
  let first = 0
  for (const f of head.features) {
    f.contexts = KINDS.map((kind, k) => Array.from({ length: f.k[k] }, () => ({
      kind, value: c_.value[first], by: c_.by[first], doc: c_.doc[first], position: c_.position[first], here: c_.here[first],
      ids: c_.ids.subarray(first*W, first*W + W), acts: c_.acts.subarray(first*W, first++*W + W) })))
  }
  return head.features
}
const detail = async (set, f) => (await chunk(set, Math.floor(f/set.size)))[f % set.size]
const texts = async set => set.texts ??= (await json(`t${set.number}`))

// ---- Words ----
const number = x => x === null || x === undefined || Number.isNaN(x) ? '–' : x === 0 ? '0' : Math.abs(x) >= 1000 ? Math.round(x).toLocaleString('en') : Math.abs(x) >= .001 ? String(+x.toPrecision(3)) : x.toExponential(1)
const percent = x => x === null || x === undefined ? '–' : x === 0 ? '0 %' : x < .0001 ? '< 0.01 %' : `${+(100*x).toPrecision(x < .1 ? 2 : 3)} %`
const invisible = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/
function show(text, e) { // Text with what is invisible made visible, cut where it is endless
  const long = text.length > 200
  for (const part of (long ? first(text, 200) : text).split(/([\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb])/)) {
    if (!part) continue
    const sign = part.length === 1 && invisible.test(part)
    e.append(sign ? el('span', { class: 'mark', text: part === '\n' ? '↵' : part === '\t' ? '⇥' : `‹${part.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}›` }) : part)
  }
  if (long) e.append(el('span', { class: 'mark', text: '…' }))
  return e
}
const plain = text => first(text.replace(/[\u0000-\u001f\u007f-\u009f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f]/g, ' '), 200)
const first = (text, n) => Array.from(text).slice(0, n).join('') // whole letters
const favourite = (set, f) => set.classes.length && set.favourite[f] !== null ? plain(set.classes[set.favourite[f]]) : ''
const nameOf = (set, f) => set.label[f] || set.peak[f] || (set.on[f] ? favourite(set, f) : 'never fired')

// ---- A list of which only what is seen exists ----
class Lines {
  constructor(box, make, opens) {
    Object.assign(this, { box, make, opens, items: [], at: -1, shown: new Map() })
    this.pad = el('div', { role: 'presentation' })
    box.append(this.pad)
    box.addEventListener('scroll', () => this.draw(), { passive: true })
    new ResizeObserver(() => this.draw()).observe(box)
    box.addEventListener('keydown', e => this.key(e))
  }
  set(items, current) {
    this.items = items
    for (const e of this.shown.values()) e.remove()
    this.shown.clear()
    this.pad.style.height = `${items.length*ROW}px`
    this.at = items.indexOf(current)
    this.box.scrollTop = this.at < 0 ? 0 : clamp(this.at*ROW - this.box.clientHeight/2, 0, items.length*ROW)
    this.draw()
  }
  draw() {
    const first = Math.max(0, Math.floor(this.box.scrollTop/ROW) - 4), last = Math.min(this.items.length, first + Math.ceil(this.box.clientHeight/ROW) + 9)
    for (const [i, e] of this.shown) if (i < first || i >= last) { e.remove(); this.shown.delete(i) }
    for (let i = first; i < last; i++) {
      if (!this.shown.has(i)) {
        const e = this.make(this.items[i])
        e.id = `${this.box.id}-${i}`; e.style.top = `${i*ROW}px`
        for (const [k, v] of Object.entries({ role: 'option', 'aria-setsize': this.items.length, 'aria-posinset': i + 1 })) e.setAttribute(k, v)
        e.addEventListener('click', ev => this.go(i, ev))
        this.box.append(e); this.shown.set(i, e)
      }
      this.shown.get(i).setAttribute('aria-selected', i === this.at)
    }
    this.at >= 0 && this.shown.has(this.at) ? this.box.setAttribute('aria-activedescendant', `${this.box.id}-${this.at}`) : this.box.removeAttribute('aria-activedescendant')
  }
  go(i, event) {
    if (!this.items.length) return
    this.at = clamp(i, 0, this.items.length - 1)
    const top = this.at*ROW
    if (top < this.box.scrollTop) this.box.scrollTop = top
    else if (top + ROW > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = top + ROW - this.box.clientHeight
    this.draw()
    this.opens(this.items[this.at], event)
  }
  key(e) {
    const page = Math.max(1, Math.floor(this.box.clientHeight/ROW) - 1)
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -1e9, End: 1e9 }[e.key]
    if (step && !e.ctrlKey && !e.metaKey && !e.altKey) { e.preventDefault(); this.go(this.at < 0 ? (step > 0 && step < 1e9 ? 0 : step) : this.at + step, e) }
  }
}

// ---- The list of features ----
const SORTS = { feature: 'number', density: 'density', max: 'max activation', share: 'class selectivity', level: 'level', on: 'firings', name: 'name' }
let list, chains

function option(f) {
  const dead = !S.on[f], liked = favourite(S, f) && `${favourite(S, f)} ${percent(S.share[f])} · `
  return el('div', { class: dead ? 'option dead' : 'option' },
    el('span', { class: 'id', text: f }), el('span', { class: 'name', dir: 'auto', text: plain(nameOf(S, f)) || '–' }),
    el('span', { class: 'note', text: dead ? 'dead' : `${liked}fires on ${percent(S.density[f])}` }),
    el('span', { class: 'end' }, S.ends.length > 1 ? el('span', { class: 'badge level', text: `level ${S.level[f] + 1}` }) : null, el('div', { text: dead ? '' : `max ${number(S.max[f])}` })))
}
function refresh() {
  const q = state.query.trim().toLowerCase(), [low, high] = [0, S.ends[state.level - 1] ?? S.width]
  let found = []
  for (let f = low; f < high; f++) {
    if (state.show !== 'all' && (state.show === 'dead') === (S.on[f] > 0)) continue
    if (q && !(String(f) === q || S.search[f].includes(q) || state.inTexts?.has(f))) continue
    found.push(f)
  }
  const by = state.sort === 'name' ? f => nameOf(S, f).trim().toLowerCase() : state.sort === 'feature' ? f => f : f => S[state.sort][f] ?? -1
  const keys = new Map(found.map(f => [f, by(f)])), sign = state.down ? -1 : 1
  found.sort((a, b) => { const x = keys.get(a), y = keys.get(b); return x < y ? -sign : x > y ? sign : a - b })
  list.set(found, state.feature)
  $('found').textContent = `${found.length.toLocaleString('en')} of ${S.width.toLocaleString('en')} features`
  $('depth').textContent = state.level ? `${state.level === 1 ? 'level 1' : `levels 1–${state.level}`}: first ${high.toLocaleString('en')}` : 'all levels'
}

let searching = 0
async function searchTexts() { // Look into the contexts too, piece by piece
  const mine = ++searching, q = state.query.trim().toLowerCase()
  state.inTexts = null
  if (q && $('deep').checked) {
    const hit = new Set(), words = (await texts(S)).map(o => o.toLowerCase()), pieces = Math.ceil(S.width/S.size)
    for (let c = 0; c < pieces; c++) {
      for (const [i, f] of (await chunk(S, c)).entries()) if (f.contexts.some((o, k) => k < 3 && o.some(x => Array.from(x.ids, j => j ? words[j-1] : '').join('').includes(q)))) hit.add(c*S.size + i)
      if (mine !== searching) return
      if (c % 16 === 15) { $('found').textContent = `searching texts: ${percent(c/pieces)}`; await new Promise(done => setTimeout(done)) }
    }
    state.inTexts = hit
  }
  if (mine === searching) refresh()
}

// ---- One feature ----
function histogram(f) {
  const [first, ...counts] = f.h
  if (!counts.length) return el('p', { class: 'soft', text: 'It never fired.' })
  const W = 300, H = 96, edge = i => 2**(Math.floor(i/8) - 16)*(1 + (i % 8)/8), most = Math.max(...counts), total = counts.reduce((a, b) => a + b), step = W/Math.max(counts.length, 8)
  const tall = c => c ? Math.max(1.5, H*Math.log1p(c)/Math.log1p(most)) : 0
  const bars = counts.map((c, i) => svg('rect', { class: 'bin', x: i*step, y: H - tall(c), width: Math.max(.6, step - .6), height: tall(c) }, svg('title', { text: `${number(edge(first + i))} to ${number(edge(first + i + 1))}: ${c.toLocaleString('en')} firings (${percent(c/total)})` })))
  const marks = [0, counts.length >> 1, counts.length].map((i, n) => svg('text', { x: clamp(i*step, 0, W), y: H + 14, 'text-anchor': ['start', 'middle', 'end'][n], text: number(edge(first + i)) }))
  return svg('svg', { viewBox: `0 0 ${W} ${H + 18}`, width: '100%', role: 'img', 'aria-label': `Histogram of ${total} activations, from ${number(edge(first))} to ${number(edge(first + counts.length))}` },
    svg('line', { class: 'axis', x1: 0, x2: W, y1: H + .5, y2: H + .5 }), ...bars, ...marks)
}
function bars(rows, most, kind = '') { // [name, value]
  return el('div', { class: `bars ${kind}` }, rows.flatMap(([name, v, tell]) => {
    const bar = el('span', { class: 'bar' })
    bar.style.width = `${100*Math.abs(v)/(most || 1)}%`
    return [show(name, el('span', { class: 'name', dir: 'auto', title: plain(name) })), el('span', {}, bar), el('span', { class: 'soft', text: tell ?? number(v) })]
  }))
}
function link(f, note = '', set = S) {
  return el('button', { class: 'link', title: plain(nameOf(set, f)), onclick: () => go(f, set.number) }, el('b', { text: f }), ' ', el('bdi', { text: first(plain(nameOf(set, f)), 24) }), ' ', el('span', { class: 'soft', text: note }))
}
const links = (rows, word) => rows.length ? [el('h3', { text: word }), el('div', { class: 'links' }, rows.map(([f, v]) => link(f, number(v))))] : []

function token(text, act, here, top) {
  const e = show(text, el('span', { class: `token${act ? ' on' : ''}${here ? ' here' : ''}` }))
  if (act) { e.style.backgroundColor = `rgba(var(--act), ${(.12 + .78*act/255).toFixed(3)})`; e.title = `${number(act/255*top)} (${percent(act/255)} of the maximum)` }
  return e
}
function context(c, words, f) {
  const near = c.kind === 'near', top = S.max[near ? c.by : f] || 1
  const line = el('bdi', { class: 'text' }, Array.from(c.ids, (id, j) => id ? token(words[id-1], c.acts[j], j === c.here, top) : null))
  const value = el('span', { class: 'value', title: `document ${c.doc}, token ${c.position}` }, near ? el('button', { class: 'by', text: `of ${c.by}`, title: `Feature ${c.by} fires here, this one does not`, onclick: () => go(c.by) }) : number(c.value))
  return el('div', { class: near ? 'context near' : 'context' }, value, line)
}

async function picture(c, f) { // The image, and where the feature fires on it
  const { shape: [H, W, C], grid, docs, per } = S.images, k = docs.indexOf(c.doc), near = c.kind === 'near'
  const e = el('figure', {}, near ? el('button', { class: 'link', text: `of ${c.by}`, onclick: () => go(c.by) }) : el('figcaption', { text: number(c.value) }))
  if (k < 0) return e
  const bytes = await open(`i${S.number}-${Math.floor(k/per)}`), at = (k % per)*H*W*C, canvas = el('canvas', { width: W, height: H, role: 'img', 'aria-label': `Image ${c.doc}` }), pixels = new ImageData(W, H)
  for (let i = 0; i < H*W; i++) {
    for (let j = 0; j < 3; j++) pixels.data[4*i + j] = bytes[at + i*C + (C === 3 ? j : 0)]
    pixels.data[4*i + 3] = 255
  }
  const ctx = canvas.getContext('2d')
  ctx.putImageData(pixels, 0, 0)
  if (grid[0]*grid[1] > 1) {
    const [gh, gw] = [H/grid[0], W/grid[1]]
    c.acts.forEach((a, j) => { if (a) { ctx.fillStyle = near ? `rgba(47, 111, 179, ${.6*a/255})` : `rgba(232, 120, 0, ${.7*a/255})`; ctx.fillRect(j % grid[1]*gw, Math.floor(j/grid[1])*gh, gw, gh) } })
  }
  e.prepend(canvas)
  return e
}

const TITLES = { strongest: 'Strongest', random: 'Random firings', near: 'Near misses: a similar feature fires, this one is silent' }
async function group(title, rows, words, f) {
  if (!rows.length) return []
  const body = S.images ? el('div', { class: 'pictures' }, ...await Promise.all(rows.map(c => picture(c, f)))) : el('div', {}, rows.map(c => context(c, words, f)))
  return [el('h3', { text: title }), body]
}
async function contexts(d, f) {
  const words = S.images ? [] : await texts(S), [strongest, spread, random, near] = d.contexts, steps = [.8, .6, .4, .2, 0], parts = [...await group(TITLES.strongest, strongest, words, f)]
  for (const [i, low] of steps.entries()) {
    const high = i ? steps[i-1] : 1.01, rows = spread.filter(c => c.value > low*S.max[f] && c.value <= high*S.max[f])
    parts.push(...await group(`${Math.round(low*100)}–${Math.round(Math.min(1, high)*100)} % of the maximum`, rows, words, f))
  }
  parts.push(...await group(TITLES.random, random, words, f), ...await group(TITLES.near, near, words, f))
  return parts.length ? parts : [el('p', { class: 'soft', text: S.on[f] ? 'No contexts were kept.' : 'This feature never fired on the rows that were read.' })]
}

function family(f) { // Parents above, children below
  const up = []
  for (let p = S.parent[f]; p >= 0; p = S.parent[p]) up.unshift(p)
  const kids = S.children.get(f) ?? []
  if (S.ends.length < 2) return []
  let tree = el('ul', { class: 'tree' }, el('li', {}, el('b', { text: `${f} (this)` }), kids.length ? el('ul', { class: 'tree' }, kids.slice(0, 30).map(c => el('li', {}, link(c, percent(S.cover[c])))), kids.length > 30 ? el('li', { class: 'soft', text: `and ${kids.length - 30} more` }) : null) : null))
  for (const p of up.reverse()) tree = el('ul', { class: 'tree' }, el('li', {}, link(p), tree))
  return [el('h3', { text: 'Parents and children, with the share of firings that the parent covers' }), tree]
}
function across(f) { // The same feature in other cycles
  if (sets.length < 2) return null
  const found = [...Array(sets.length)].map((_, i) => i === S.number ? f : -1)
  for (let i = S.number; i + 1 < sets.length && found[i] >= 0; i++) found[i+1] = page.follow[i].to[found[i]]
  for (let i = S.number; i > 0 && found[i] >= 0; i--) found[i-1] = page.follow[i-1].from[found[i]]
  return el('section', {}, el('h2', { text: 'Across cycles' }), el('div', { class: 'links' }, found.map((g, i) => g < 0 ? el('span', { class: 'badge', text: `${sets[i].name}: none` }) : el('span', {}, el('span', { class: 'small soft', text: `${sets[i].name} ` }), link(g, '', sets[i])))))
}

let drawing = 0
async function draw() {
  const f = state.feature, mine = ++drawing, main = $('main')
  if (f < 0) { main.replaceChildren(el('p', { class: 'soft', text: 'Choose a feature on the left. Press ? for keys.' })); return }
  const d = await detail(S, f), parts = await contexts(d, f)
  if (mine !== drawing) return
  const facts = [['fires on', percent(S.density[f])], ['firings', number(S.on[f])], ['mean when on', number(S.mean[f])], ['max', number(S.max[f])],
    ...(favourite(S, f) ? [['favourite class', `${favourite(S, f)} ${percent(S.share[f])}`]] : [])]
  const profile = S.classes.map((c, i) => [c, d.p[i] ?? 0]).sort((a, b) => b[1] - a[1]).slice(0, 15)
  const words = d.u.length ? await json(`w${S.number}`) : [], logit = Math.max(...[...d.u, ...d.l].map(o => Math.abs(o[1])), 1e-9)
  const logits = (rows, kind) => bars(rows.map(([w, v]) => [words[w], v, (v > 0 ? '+' : '−') + number(Math.abs(v))]), logit, kind)
  const wrap = el('button', { class: 'small', text: 'one line each', 'aria-pressed': 'false', onclick: e => e.target.setAttribute('aria-pressed', $('contexts').classList.toggle('lines')) })
  main.replaceChildren(
    el('h2', { id: 'title', tabindex: -1 }, el('span', { text: f }), el('bdi', { text: plain(nameOf(S, f)) }), S.ends.length > 1 ? el('span', { class: 'badge level', text: `level ${S.level[f] + 1} of ${S.ends.length}` }) : null, S.on[f] ? null : el('span', { class: 'badge', text: 'dead' })),
    el('dl', { id: 'facts' }, facts.map(([k, v]) => el('div', {}, el('dt', { text: k }), el('dd', { text: v })))),
    el('div', { id: 'columns' },
      el('section', { id: 'contexts' }, el('h2', {}, 'Contexts', S.images ? null : wrap), parts),
      el('div', {},
        el('section', {}, el('h2', {}, 'Activations', el('span', { class: 'small soft', text: 'log scales' })), histogram(d)),
        S.classes.length ? el('section', {}, el('h2', {}, 'Classes', el('span', { class: 'small soft', text: 'mean activation' })), bars(profile, profile[0][1])) : null,
        d.u.length ? el('section', {}, el('h2', {}, 'Direct effect on the output'), el('div', { class: 'logits' }, el('div', {}, el('h3', { text: 'raises' }), logits(d.u, 'plus')), el('div', {}, el('h3', { text: 'lowers' }), logits(d.l, 'minus')))) : null,
        across(f),
        el('section', { id: 'related' }, el('h2', { text: 'Related features' }), links(d.s, 'Similar direction (cosine)'), links(d.c, 'Fires on the same rows (Jaccard)'), family(f)))))
  main.scrollTop = 0
}
function go(f, set = S.number) {
  if (set !== S.number) choose(set)
  state.view === 'features' || view('features')
  state.feature = f
  const hash = `#${S.number}/${f}`
  if (location.hash !== hash) history.pushState(null, '', hash)
  const at = list.items.indexOf(f)
  list.at = at
  if (at >= 0 && (at*ROW < list.box.scrollTop || at*ROW + ROW > list.box.scrollTop + list.box.clientHeight)) list.box.scrollTop = at*ROW - list.box.clientHeight/2
  list.draw()
  return draw()
}

// ---- Cycles ----
// A chain follows a feature from the cycle where it appears; it is kept where both name each other as the most similar and the cosine is high enough.
function followed() {
  const rows = [], n = sets.length
  const step = (i, f) => { const { to, cosine, from } = page.follow[i], g = to[f]; return g < 0 ? null : { g, cosine: cosine[f], mutual: from[g] === f } }
  for (let s = 0; s < n; s++) {
    for (let f = 0; f < sets[s].width; f++) {
      if (!sets[s].on[f]) continue
      if (s && step(s - 1, page.follow[s-1].from[f])?.g === f) continue // it is part of an earlier chain
      const cells = Array(n).fill(null), split = s && page.follow[s-1].from[f] >= 0 ? page.follow[s-1].from[f] : -1
      cells[s] = { f, cosine: null }
      let now = f, worst = 1, fate = 'kept'
      for (let i = s; i + 1 < n; i++) {
        const next = step(i, now)
        if (!next) { fate = 'vanished'; worst = 0; break }
        worst = Math.min(worst, next.cosine)
        if (!next.mutual) { fate = 'merged'; cells[i+1] = { f: next.g, cosine: next.cosine, shared: true }; break }
        cells[i+1] = { f: next.g, cosine: next.cosine }
        now = next.g
      }
      if (fate === 'kept' && s) fate = split >= 0 ? 'split off' : 'appeared'
      if (fate === 'kept' && worst < .9) fate = 'changed'
      rows.push({ start: s, cells, worst, fate, share: Math.max(...cells.map((c, i) => c ? sets[i].share?.[c.f] ?? 0 : 0)), max: Math.max(...cells.map((c, i) => c ? sets[i].max[c.f] : 0)) })
    }
  }
  return rows
}
function chain(row) {
  const cells = row.cells.flatMap((c, i) => {
    const set = sets[i], liked = c && favourite(set, c.f) && `${favourite(set, c.f)} ${percent(set.share[c.f])} · `
    const cell = c ? el('button', { class: 'cell', tabindex: -1, onclick: e => { e.stopPropagation(); go(c.f, i) } }, el('b', { text: c.f }), el('span', { dir: 'auto', text: plain(nameOf(set, c.f)) || '–' }), el('span', { class: 'soft', text: `${liked}${percent(set.density[c.f])}` })) : el('span', { class: 'soft', text: '' })
    return i ? [el('span', { class: 'arrow', text: c && row.start < i ? `${number(c.cosine)} ${c.shared ? '⇢' : '→'}` : '' }), cell] : [cell]
  })
  const e = el('div', { class: 'chain' }, ...cells, el('span', { class: 'badge', text: row.fate }))
  e.style.gridTemplateColumns = columns()
  return e
}
const columns = () => sets.map(() => 'minmax(0, 1fr)').join(' 70px ') + ' 90px'
let allChains
function drawCycles() {
  allChains ??= followed()
  const fate = $('fate').value, by = $('order').value, q = $('follow').value.trim().toLowerCase()
  const rows = allChains.filter(r => (fate === 'all' || r.fate === fate) && (!q || r.cells.some((c, i) => c && (String(c.f) === q || sets[i].search[c.f].includes(q)))))
  const key = { number: r => r.start*1e9 + r.cells[r.start].f, least: r => r.worst, most: r => -r.worst, share: r => -r.share, max: r => -r.max }[by]
  rows.sort((a, b) => key(a) - key(b))
  chains.set(rows, null)
  $('chained').textContent = `${rows.length.toLocaleString('en')} of ${allChains.length.toLocaleString('en')}`
}
function view(name) {
  state.view = name
  for (const id of ['side', 'main']) $(id).classList.toggle('hide', name !== 'features')
  for (const o of ['cycles', 'map']) $(o).classList.toggle('hide', name !== o)
  for (const o of ['features', 'cycles', 'map']) $(`tab-${o}`).setAttribute('aria-pressed', name === o)
  name === 'cycles' ? drawCycles() : name === 'map' ? drawMap() : list.draw()
}

// ---- Map ----
// Features as points, by the coordinates they came with; the one that is pointed at is named, a click opens it.
const HUES = ['#0072B2', '#E69F00', '#009E73', '#D55E00', '#CC79A7', '#56B4E9', '#8a8a8a', '#8a5a2b', '#9900FF', '#330099']
let spots = []
function shading() { // A number in 0..1 or a hue for each feature, and the legend
  const by = $('shade').value, densest = Math.log(Math.max(...S.density.filter(o => o > 0))), least = Math.log(Math.min(...S.density.filter(o => o > 0)))
  const ramp = u => `hsl(${Math.round(260 - 215*u)} 70% ${Math.round(38 + 18*u)}%)`
  if (by === 'density') return [f => ramp((Math.log(S.density[f]) - least)/(densest - least || 1)), [[ramp(0), percent(Math.exp(least))], [ramp(1), percent(Math.exp(densest))]]]
  const names = by === 'level' ? S.ends.map((_, i) => `level ${i + 1}`) : S.classes, of = S[by]
  return [f => HUES[of[f] % HUES.length], names.slice(0, 20).map((o, i) => [HUES[i % HUES.length], first(plain(o), 24)])]
}
function drawMap() {
  const canvas = $('points'), scale = devicePixelRatio || 1, [W, H] = [canvas.clientWidth, canvas.clientHeight], side = Math.min(W, H) - 40, ctx = canvas.getContext('2d'), [hue, legend] = shading()
  canvas.width = W*scale; canvas.height = H*scale
  ctx.scale(scale, scale)
  spots = []
  for (let f = 0; f < S.width; f++) if (S.on[f] && S.x[f] !== null && (!state.level || f < S.ends[state.level - 1])) spots.push({ f, x: W/2 + (S.x[f] - .5)*side, y: H/2 - (S.y[f] - .5)*side })
  const r = clamp(60/Math.sqrt(spots.length), 1.5, 6)
  for (const o of spots) { ctx.fillStyle = hue(o.f); ctx.beginPath(); ctx.arc(o.x, o.y, r, 0, 7); ctx.fill() }
  const here = spots.find(o => o.f === state.feature)
  if (here) { ctx.strokeStyle = getComputedStyle(canvas).color; ctx.lineWidth = 2; ctx.beginPath(); ctx.arc(here.x, here.y, r + 4, 0, 7); ctx.stroke() }
  $('shades').replaceChildren(...legend.map(([colour, text]) => { const dot = el('i'); dot.style.background = colour; return el('span', {}, dot, el('bdi', { text })) }))
  $('pointed').textContent = here ? `${here.f} ${plain(nameOf(S, here.f))}` : `${spots.length.toLocaleString('en')} features; nearby features write alike`
}
function nearestSpot(x, y, most) { // The point nearest to a place on the canvas
  let best = null, least = most*most
  for (const o of spots) { const d = (o.x - x)**2 + (o.y - y)**2; if (d < least) { best = o; least = d } }
  return best
}
function pointAt(e, opens) {
  const o = nearestSpot(e.offsetX, e.offsetY, 25)
  if (o && opens) return go(o.f)
  $('points').title = o ? `${o.f} ${plain(nameOf(S, o.f))}` : ''
  if (o) $('pointed').textContent = $('points').title
}
function mapKey(e) { // To the nearest point that lies in the direction of the arrow
  const d = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[e.key], here = spots.find(o => o.f === state.feature) ?? spots[0]
  if (e.key === 'Enter' && here) return go(here.f)
  if (!d || !here) return
  e.preventDefault()
  const ahead = spots.map(o => ({ o, along: (o.x - here.x)*d[0] + (o.y - here.y)*d[1], off: Math.abs((o.x - here.x)*d[1]) + Math.abs((o.y - here.y)*d[0]) })).filter(o => o.along > 0 && o.off <= o.along)
  if (ahead.length) { state.feature = ahead.reduce((a, b) => a.along + a.off < b.along + b.off ? a : b).o.f; drawMap() }
}

// ---- Start ----
function choose(i) {
  S = sets[i]; state.set = i; state.inTexts = null
  $('set').value = i
  const levels = S.ends.length > 1
  $('deep').parentElement.classList.toggle('hide', !!S.images)
  $('levels').classList.toggle('hide', !levels)
  $('level').max = S.ends.length; $('level').value = S.ends.length; state.level = 0
  for (const o of $('sort').options) o.hidden = o.disabled = (o.value === 'share' && !S.classes.length) || (o.value === 'level' && !levels)
  $('tab-map').classList.toggle('hide', !S.x)
  for (const o of $('shade').options) o.hidden = o.disabled = (o.value === 'favourite' && !S.classes.length) || (o.value === 'level' && !levels)
  $('shade').value = [...$('shade').options].find(o => !o.disabled).value
  refresh()
  if (state.view === 'map') S.x ? drawMap() : view('features')
}
function theme(name) {
  document.documentElement.dataset.theme = name
  $('theme').textContent = name === 'dark' ? '☀ light' : '☾ dark'
}
function fromHash() {
  const m = location.hash.match(/^#(\d+)\/(\d+)$/)
  if (m && sets[m[1]] && +m[2] < sets[m[1]].width) return go(+m[2], +m[1])
}
function keys(e) {
  if (e.ctrlKey || e.metaKey || e.altKey || $('help').open) return
  if (e.key === 'Escape') { e.target.value && e.target.type === 'search' ? (e.target.value = '', e.target.dispatchEvent(new Event('input'))) : $({ features: 'list', cycles: 'chains', map: 'points' }[state.view]).focus(); return }
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName) && e.target.type !== 'checkbox' && e.target.type !== 'range') { if (e.key === 'Enter' && e.target.type === 'search') { $('list').focus(); list.go(Math.max(0, list.at)) } return }
  const lines = state.view === 'cycles' ? chains : list
  const does = { '/': () => (state.view === 'map' && view('features'), $(state.view === 'features' ? 'search' : 'follow').focus()), '?': () => $('help').showModal(), t: () => $('theme').click(), j: () => lines.go(lines.at + 1), k: () => lines.go(Math.max(0, lines.at - 1)),
    r: () => list.items.length && list.go(Math.floor(Math.random()*list.items.length)), Enter: () => document.activeElement === $('list') && $('title')?.focus(), c: () => sets.length > 1 && view(state.view === 'cycles' ? 'features' : 'cycles'),
    m: () => S.x && (view(state.view === 'map' ? 'features' : 'map'), state.view === 'map' && $('points').focus()),
    '[': () => sets[S.number - 1] && choose(S.number - 1), ']': () => sets[S.number + 1] && choose(S.number + 1) }[e.key]
  if (does && !(e.key === 'Enter' && document.activeElement !== $('list'))) { e.preventDefault(); does() }
}

async function start() {
  const dark = matchMedia('(prefers-color-scheme: dark)')
  theme(dark.matches ? 'dark' : 'light')
  dark.addEventListener('change', () => theme(dark.matches ? 'dark' : 'light'))
  page = await json('index')
  sets = page.sets.map((s, number) => ({ ...s, ...s.columns, number }))
  for (const s of sets) {
    s.search = s.peak.map((o, f) => `${s.label[f]} ${o} ${s.classes.length && s.favourite[f] !== null ? s.classes[s.favourite[f]] : ''}`.toLowerCase())
    s.children = new Map()
    s.parent.forEach((p, f) => { if (p >= 0) s.children.has(p) ? s.children.get(p).push(f) : s.children.set(p, [f]) })
    for (const o of s.children.values()) o.sort((a, b) => s.cover[b] - s.cover[a])
  }
  list = new Lines($('list'), option, f => go(f))
  chains = new Lines($('chains'), chain, (row, e) => e?.type === 'keydown' || row.cells[row.start] && go(row.cells[row.start].f, row.start))
  for (const [k, v] of Object.entries(SORTS)) $('sort').append(el('option', { value: k, text: v }))
  sets.forEach((s, i) => $('set').append(el('option', { value: i, text: s.name })))
  $('set').classList.toggle('hide', sets.length < 2); $('tab-cycles').classList.toggle('hide', sets.length < 2); $('tabs').classList.toggle('hide', sets.length < 2 && !sets.some(s => s.x))
  $('heads').append((() => { const e = el('div', { class: 'chain' }, sets.flatMap((s, i) => i ? [el('span'), el('span', { text: s.name })] : [el('span', { text: s.name })]), el('span')); e.style.gridTemplateColumns = columns(); return e })())
  const on = (id, event, does) => $(id).addEventListener(event, does)
  let wait
  on('search', 'input', e => { state.query = e.target.value; state.inTexts = null; searching++; refresh(); clearTimeout(wait); if ($('deep').checked) wait = setTimeout(searchTexts, 250) })
  on('deep', 'change', searchTexts)
  on('sort', 'change', e => { state.sort = e.target.value; state.down = !['feature', 'name', 'level'].includes(state.sort); $('down').textContent = state.down ? '↓' : '↑'; refresh() })
  on('down', 'click', () => { state.down = !state.down; $('down').textContent = state.down ? '↓' : '↑'; refresh() })
  on('show', 'change', e => { state.show = e.target.value; refresh() })
  on('level', 'input', e => { state.level = +e.target.value === S.ends.length ? 0 : +e.target.value; refresh() })
  on('set', 'change', e => { choose(+e.target.value); view('features'); list.items.length && list.go(0) })
  on('theme', 'click', () => theme(document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark'))
  on('keys', 'click', () => $('help').showModal())
  on('tab-features', 'click', () => view('features')); on('tab-cycles', 'click', () => view('cycles')); on('tab-map', 'click', () => view('map'))
  on('shade', 'change', drawMap); on('points', 'mousemove', e => pointAt(e)); on('points', 'click', e => pointAt(e, true)); on('points', 'keydown', mapKey)
  new ResizeObserver(() => state.view === 'map' && drawMap()).observe($('points'))
  for (const id of ['fate', 'order']) on(id, 'change', drawCycles)
  on('follow', 'input', drawCycles)
  addEventListener('keydown', keys)
  addEventListener('popstate', fromHash)
  choose(0)
  view('features')
  if (!await fromHash() && state.feature < 0 && list.items.length) await go(list.items[0])
  $('list').focus()
  document.documentElement.dataset.ready = 'yes'
}
start().catch(e => { $('main').textContent = `This page cannot be shown: ${e.message}. It needs a browser of 2023 or later.` })
