// Opens a report in headless Chromium and prints what was seen as JSON. Used by tests/test_report_browser.py.
// node drive.mjs CHROMIUM PAGE '{"screens": "PREFIX", "points": [[x, y, z], ...], "webgl": true}'
import { chromium } from 'playwright-core'

const [executablePath, page_url, settings = '{}'] = process.argv.slice(2)
const wish = { webgl: true, points: [], ...JSON.parse(settings) }
const gl = wish.webgl
  ? ['--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader']
  : ['--disable-gpu', '--disable-3d-apis']
const browser = await chromium.launch({
  executablePath,
  args: ['--no-sandbox', '--disable-background-networking', '--disable-component-update', '--no-first-run', ...gl]
})
const told = { requests: [], console: [], seen: [] }
try {
  const context = await browser.newContext({
    viewport: wish.phone ? { width: 390, height: 844 } : { width: 1280, height: 900 },
    colorScheme: wish.dark ? 'dark' : 'light'
  })
  const page = await context.newPage()
  page.on('request', (request) => {
    if (!/^(data|blob):/.test(request.url()) && request.url() !== page_url) told.requests.push(request.url())
  })
  page.on('console', (message) => message.type() === 'error' && told.console.push(message.text()))
  page.on('pageerror', (error) => told.console.push(String(error)))
  page.on('dialog', (dialog) => { told.console.push(`dialog ${dialog.message()}`); dialog.dismiss() })
  const began = Date.now()
  await page.goto(page_url)
  if (wish.viewer !== false) await page.waitForFunction(() => document.documentElement.dataset.viewer, null, { timeout: 60000 })
  told.seconds = (Date.now() - began) / 1000
  told.viewer = await page.evaluate(() => document.documentElement.dataset.viewer ?? null)
  told.title = await page.title()
  told.heading = await page.textContent('h1')
  told.hint = await page.locator('.needs-webgl').isVisible().catch(() => false)
  told.pictures = await page.$$eval('#pictures img', (all) => all.map((img) => img.naturalWidth))
  told.wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth + 1)
  if (wish.sort) {
    const names = () => page.$$eval('#cases tbody th', (all) => all.map((cell) => cell.textContent))
    await page.focus(`#cases th[data-key="${wish.sort}"] button`)
    await page.keyboard.press('Enter')
    told.order = await names()
    await page.keyboard.press('Enter')
    told.again = await names()
  }
  if (told.viewer === 'ready') {
    const canvas = page.locator('#gl')
    // the canvas as numbers: sum of its pixels, drawn anew so that the buffer is not empty
    const sum = () => page.evaluate(() => {
      const { nv } = osteomorphViewer
      nv.drawScene()
      const { width, height } = nv.gl.canvas
      const out = new Uint8Array(width * height * 4)
      nv.gl.readPixels(0, 0, width, height, nv.gl.RGBA, nv.gl.UNSIGNED_BYTE, out)
      let hash = 0
      for (let k = 0; k < out.length; k += 4) hash = (hash * 31 + out[k] * 7 + out[k + 1] * 3 + out[k + 2]) >>> 0
      return hash
    })
    const settled = async () => { await page.waitForTimeout(60); return sum() }
    if (wish.screens) await page.screenshot({ path: `${wish.screens}.png`, fullPage: true })
    if (wish.actions) {
      const drawn = () => page.evaluate(() => Number(document.getElementById('viewer').dataset.drawn))
      told.sums = { start: await settled() }
      for (const [name, keys] of wish.actions) {
        const before = await drawn()
        const from = Date.now()
        if (keys.startsWith('#')) {
          const [selector, value] = keys.split('=')
          await page.locator(selector).evaluate((element, to) => {
            element.value = to
            element.dispatchEvent(new Event('input', { bubbles: true }))
          }, value)
        } else {
          await canvas.focus()
          for (const key of keys.split(' ')) await page.keyboard.press(key)
        }
        if (!/Arrow|Page|^[1-5]$/.test(keys)) await page.waitForFunction((n) => Number(document.getElementById('viewer').dataset.drawn) > n, before)
        told.sums[name] = await settled()
        ;(told.milliseconds ??= {})[name] = Date.now() - from
        if (wish.screens && wish.every) await page.screenshot({ path: `${wish.screens}-${name}.png` })
      }
      told.mm = await page.evaluate(() => osteomorphViewer.mm())
    }
    // a point: put the crosshair elsewhere, find the bright spot that marks the point in each pane, click there, ask NiiVue where that is
    for (const point of wish.points) {
      const panes = await page.evaluate((mm) => {
        const { nv, goTo, valueAt, images } = osteomorphViewer
        goTo(mm)
        const read = nv.frac2mm(nv.scene.crosshairPos, 0, true)
        const value = valueAt(images.fixed, mm)
        nv.opts.crosshairWidth = 0
        nv.opts.isOrientationTextVisible = false
        nv.drawScene()
        const { width, height } = nv.gl.canvas
        const out = new Uint8Array(width * height * 4)
        nv.gl.readPixels(0, 0, width, height, nv.gl.RGBA, nv.gl.UNSIGNED_BYTE, out)
        const scale = width / nv.gl.canvas.getBoundingClientRect().width
        const spots = nv.screenSlices.filter((s) => s.axCorSag < 3).map((slice) => {
          const [left, top, w, h] = slice.leftTopWidthHeight
          let n = 0, sx = 0, sy = 0
          for (let y = Math.ceil(top); y < top + h && y < height; y++)
            for (let x = Math.ceil(left); x < left + w && x < width; x++)
              if (out[4 * ((height - 1 - y) * width + x)] > 200) { n++; sx += x + 0.5; sy += y + 0.5 }
          return { axCorSag: slice.axCorSag, n, x: sx / n / scale, y: sy / n / scale }
        })
        return { read: Array.from(read).slice(0, 3), value, spots }
      }, point)
      if (wish.shot) await page.screenshot({ path: wish.shot })
      const box = await canvas.boundingBox()
      for (const spot of panes.spots) {
        if (!spot.n) continue
        await page.evaluate((mm) => osteomorphViewer.goTo(mm), point)
        await page.mouse.click(box.x + spot.x, box.y + spot.y)
        spot.mm = await page.evaluate(() => Array.from(osteomorphViewer.nv.frac2mm(osteomorphViewer.nv.scene.crosshairPos, 0, true)).slice(0, 3))
      }
      told.seen.push(panes)
    }
  } else if (wish.screens) await page.screenshot({ path: `${wish.screens}.png`, fullPage: true })
} finally {
  await browser.close()
}
console.log(JSON.stringify(told))
