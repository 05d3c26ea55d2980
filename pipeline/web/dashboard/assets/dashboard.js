// Keeps pages fresh, asks before what cannot be undone, tells how long ago a time was. Without it everything works too.

const page = document.body
const every = Number(page.dataset.every || 0) * 1000

// --- Times: "12 s ago" beside the time itself -------------------------------------------------------------------
function ago(seconds) {
  const past = seconds >= 0
  const whole = Math.abs(Math.round(seconds))
  for (const [size, name] of [[86400, 'd'], [3600, 'h'], [60, 'min']])
    if (whole >= size) return past ? `${Math.floor(whole / size)} ${name} ago` : `in ${Math.floor(whole / size)} ${name}`
  return past ? `${whole} s ago` : `in ${whole} s`
}

function tellTimes(within = document) {
  for (const time of within.querySelectorAll('time[datetime]')) {
    time.dataset.at ||= time.textContent
    time.title = `${time.dataset.at} UTC`
    const text = ago((Date.now() - Date.parse(time.getAttribute('datetime'))) / 1000)
    if (time.textContent !== text) time.textContent = text
  }
}

// What each part was when it came: times in it are rewritten, and each answer has another token for its forms.
const seen = new Map()
const said = (part) => part.innerHTML.replace(/name="csrf_token" value="[^"]*"/g, '')
for (const part of document.querySelectorAll('[data-live][id]')) seen.set(part.id, said(part))

tellTimes()
setInterval(tellTimes, 1000)

// --- Freshness: the page is asked for again, and what is marked `data-live` is put in place of what was there ----
function busy(part) {
  const active = document.activeElement
  return part.contains(active) && active.matches('input, select, textarea')
}

function take(part, fresh) {
  const open = new Set([...part.querySelectorAll('details[open][id]')].map((one) => one.id))
  const focused = part.contains(document.activeElement) ? document.activeElement.id || null : undefined
  part.replaceChildren(...fresh.childNodes)
  for (const one of part.querySelectorAll('details[id]')) one.open = open.has(one.id) || one.open
  if (focused) document.getElementById(focused)?.focus()
  tellTimes(part)
}

function stale(text) {
  let note = document.getElementById('freshness')
  if (!text) return note?.remove()
  if (!note) {
    note = document.createElement('p')
    note.id = 'freshness'
    note.setAttribute('role', 'status')
    page.append(note)
  }
  if (note.textContent !== text) note.textContent = text
}

let pause = every

async function refresh() {
  try {
    const answer = await fetch(location.href, { headers: { 'X-Refresh': '1' }, cache: 'no-store', redirect: 'error' })
    if (answer.status === 401) return stale('You are signed out. Load the page again.')
    if (!answer.ok) throw new Error(answer.status)
    const fresh = new DOMParser().parseFromString(await answer.text(), 'text/html')
    for (const part of document.querySelectorAll('[data-live][id]')) {
      const other = fresh.getElementById(part.id)
      if (!other || busy(part) || seen.get(part.id) === said(other)) continue
      seen.set(part.id, said(other))
      take(part, other)
    }
    stale('')
    pause = fresh.body.dataset.every ? Number(fresh.body.dataset.every) * 1000 : 0
  } catch {
    stale('What you see is not fresh: the server does not answer.')
    pause = Math.min(Math.max(pause, every) * 2, 30000)
  }
  if (pause) setTimeout(whenSeen, pause)
}

function whenSeen() {
  if (document.hidden) document.addEventListener('visibilitychange', whenSeen, { once: true })
  else refresh()
}
if (every) setTimeout(whenSeen, every)

// --- Questions before what cannot be undone; nothing is sent twice -------------------------------------------------
document.addEventListener('submit', (event) => {
  const form = event.target
  if (form.dataset.asks && !confirm(form.dataset.asks)) return event.preventDefault()
  if (form.method === 'post') {
    if (form.dataset.sent) return event.preventDefault()
    form.dataset.sent = '1'
  }
})
addEventListener('pageshow', () => { for (const form of document.forms) delete form.dataset.sent })

// --- Filters take effect as they are chosen; forms that show something else for another choice do too -------------
let pressed = null // the button on which the pointer is down: who leaves a field for a button means the button
addEventListener('pointerdown', (event) => { pressed = event.target.closest('button') }, true)
addEventListener('pointerup', () => setTimeout(() => { pressed = null }), true)
document.addEventListener('change', (event) => {
  const form = event.target.matches('[data-submits]') ? event.target.form : null
  if (form && pressed?.form !== form) form.requestSubmit(form.querySelector('[data-look]'))
})

// --- Copy what stands in an element ---------------------------------------------------------------------------------
document.addEventListener('click', async (event) => {
  const button = event.target.closest('[data-copies]')
  if (!button) return
  await navigator.clipboard.writeText(document.getElementById(button.dataset.copies).textContent)
  const text = button.textContent
  button.textContent = 'Copied'
  setTimeout(() => { button.textContent = text }, 1500)
})
for (const button of document.querySelectorAll('[data-copies]')) button.hidden = !navigator.clipboard
