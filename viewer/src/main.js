// The interactive part of a report. Data lies in the page as JSON (#case); nothing is fetched.
import { Niivue, NVImage, SLICE_TYPE, SHOW_RENDER, MULTIPLANAR_TYPE, DRAG_MODE } from '@niivue/niivue'
import { contoured, picture } from './compose.js'
import { boneMeshes } from './bones.js'
import { CONTOURS, MAPS } from './colours.js'

const $ = (id) => document.getElementById(id)
const chosen = (name) => document.querySelector(`input[name=${name}]:checked`).value
const viewer = $('viewer')

async function begin() {
  const data = JSON.parse($('case').textContent)
  const nv = new Niivue({
    logLevel: 'error',
    backColor: [0, 0, 0, 1],
    crosshairColor: [0.45, 0.75, 1, 0.9],
    show3Dcrosshair: true,
    isRadiologicalConvention: true,
    sagittalNoseLeft: true,
    isSliceMM: true,
    multiplanarShowRender: SHOW_RENDER.ALWAYS,
    multiplanarLayout: MULTIPLANAR_TYPE.GRID,
    dragMode: DRAG_MODE.pan,
    dragAndDropEnabled: false,
    meshThicknessOn2D: 0,
    fontMinPx: 14,
    fontColor: [0.65, 0.84, 1, 1],
    isOrientCube: false,
    loadingText: ''
  })
  viewer.hidden = false
  const canvas = $('gl')
  canvas.focus = () => HTMLElement.prototype.focus.call(canvas, { preventScroll: true }) // a click must not move the page
  await nv.attachToCanvas(canvas)
  nv.drawImage3D = () => {} // the 3-D pane shows bones alone; a volume would hide them

  const load = (name, nii, more = {}) =>
    NVImage.loadFromBase64({ base64: nii, name: `${name}.nii.gz`, trustCalMinMax: false, ...more })
  const images = {}
  for (const name of ['fixed', 'before', 'moved']) images[name] = await load(name, data.images[name].nii)
  const maps = {}
  for (const name of Object.keys(MAPS)) {
    nv.addColormap(`map-${name}`, MAPS[name].colours)
    const [low, high] = data.maps[name].range
    maps[name] = await load(name, data.maps[name].nii, { colormap: `map-${name}`, cal_min: low, cal_max: high })
    maps[name].cal_min = low
    maps[name].cal_max = high
  }
  const edges = data.edges ? await load('edges', data.edges) : null

  // one grey volume is composed of two; the images themselves stay as they are, for the values under the crosshair
  const base = await load('picture', data.images.fixed.nii, { cal_min: 0, cal_max: 255, colormap: 'gray' })
  base.hdr.scl_slope = 1
  base.hdr.scl_inter = 0
  base.img = new Uint8Array(base.img.length)
  nv.addVolume(base)
  let lines = null
  if (edges) {
    lines = await load('lines', data.edges)
    lines.img = new Uint8Array(lines.img.length)
    lines.setColormapLabel(CONTOURS)
    nv.addVolume(lines)
  }
  const bones = await boneMeshes(nv, data.bones)
  for (const mesh of [...bones.before, ...bones.moved]) nv.addMesh(mesh)

  // -- state -> picture
  const state = () => ({
    pose: chosen('pose'),
    mode: chosen('mode'),
    share: Number($('share').value) / 100,
    axis: Number($('axis').value),
    contours: [...document.querySelectorAll('#contours input:checked')].reduce((sum, box) => sum + Number(box.value), 0),
    map: $('map').value
  })
  let waiting = false
  let drawnMap = ''
  let drawnLines = -1
  let drawnOver = null
  function draw() {
    waiting = false
    const now = state()
    picture(base.img, images, data, now)
    base.cal_min = 0
    base.cal_max = 255
    const over = `${now.contours} ${now.map} ${$('strength').value}`
    if (lines && now.contours !== drawnLines) contoured(lines.img, edges.img, data.shape, now.contours)
    drawnLines = now.contours
    if (now.map !== drawnMap) {
      if (drawnMap) nv.volumes = nv.volumes.filter((volume) => volume !== maps[drawnMap])
      if (now.map) nv.volumes.splice(1, 0, maps[now.map])
      drawnMap = now.map
    }
    if (now.map) maps[now.map].opacity = Number($('strength').value) / 100
    for (const mesh of bones.before) mesh.visible = now.pose === 'before'
    for (const mesh of bones.moved) mesh.visible = true
    for (const mesh of bones.moved) mesh.opacity = now.pose === 'before' ? 0.35 : 1
    if (over === drawnOver) {
      nv.refreshLayers(base, 0) // the layers above are what they were
      nv.drawScene()
    } else nv.updateGLVolume()
    drawnOver = over
    legend(now.map)
    viewer.dataset.drawn = String(Number(viewer.dataset.drawn || 0) + 1)
  }
  const redraw = () => {
    if (!waiting) requestAnimationFrame(draw)
    waiting = true
  }

  function legend(map) {
    $('axis-label').hidden = chosen('mode') !== 'swipe'
    $('strength-label').hidden = !map
    $('scale').hidden = !map || !MAPS[map].unit
    if ($('scale').hidden) return
    const [first, bar, last] = $('scale').children
    const [low, high] = data.maps[map].range
    first.textContent = low.toFixed(map === 'jacobian' ? 1 : 0)
    last.textContent = `${high.toFixed(1)} ${MAPS[map].unit}`
    const { R, G, B, I } = MAPS[map].colours
    const stops = I.map((at, k) => `rgb(${R[k]} ${G[k]} ${B[k]}) ${(at / 2.55).toFixed(1)}%`)
    bar.style.background = `linear-gradient(to right, ${stops.join(', ')})`
  }

  // -- crosshair: values are read from the images, through NiiVue, in their own units
  const mm = () => Array.from(nv.frac2mm(nv.scene.crosshairPos, 0, true)).slice(0, 3)
  function valueAt(image, at) {
    const voxel = Array.from(image.mm2vox(at)).map(Math.round)
    const inside = voxel.every((v, d) => v >= 0 && v < image.dimsRAS[d + 1])
    return inside ? image.getValue(voxel[0], voxel[1], voxel[2]) : NaN
  }
  function tell() {
    const at = mm()
    ;['x', 'y', 'z'].forEach((id, d) => {
      if (document.activeElement !== $(id)) $(id).value = at[d].toFixed(1)
    })
    const words = ['fixed', 'before', 'moved'].map((name) => {
      const { slope, unit } = data.images[name]
      const value = valueAt(images[name], at)
      const { inter } = data.images[name]
      const beyond = value <= inter ? '\u2264 ' : value >= inter + 254.9 * slope ? '\u2265 ' : '' // the ends of what 256 steps span
      const digits = slope < 0.1 ? 2 : slope < 2 ? 1 : 0
      return `${name === 'fixed' ? 'fixed' : name === 'before' ? 'moving, before' : 'moved'} ${beyond}${value.toFixed(digits)} ± ${(slope / 2).toFixed(
        digits
      )}${unit === 'HU' ? ' HU' : ''}`
    })
    words.push(`displacement ${valueAt(maps.displacement, at).toFixed(1)} mm`)
    words.push(`volume × ${valueAt(maps.jacobian, at).toFixed(2)}`)
    $('values').textContent = words.filter((word) => !word.includes('NaN')).join(' · ')
  }
  function goTo(at) {
    nv.scene.crosshairPos = nv.mm2frac(at, 0, true)
    nv.drawScene()
    tell()
  }
  function step(axis, by) {
    const at = mm()
    at[axis] += by
    goTo(at)
  }
  nv.onLocationChange = tell

  // -- controls
  viewer.addEventListener('input', (event) => {
    if (['x', 'y', 'z'].includes(event.target.id)) goTo(['x', 'y', 'z'].map((id) => Number($(id).value) || 0))
    else if (event.target.name === 'layout') layout(Number(event.target.value))
    else redraw()
  })
  function layout(type) {
    nv.setSliceType([SLICE_TYPE.AXIAL, SLICE_TYPE.CORONAL, SLICE_TYPE.SAGITTAL, SLICE_TYPE.MULTIPLANAR, SLICE_TYPE.RENDER][type])
  }
  const press = (name, value) => {
    const input = document.querySelector(`input[name=${name}][value="${value}"]`)
    input.checked = true
    input.dispatchEvent(new Event('input', { bubbles: true }))
  }
  const slide = (by) => {
    $('share').value = Number($('share').value) + by
    redraw()
  }
  const tick = (value) => {
    const box = document.querySelector(`#contours input[value="${value}"]`)
    if (box && !box.disabled) box.checked = !box.checked
    redraw()
  }
  const map = (name) => {
    $('map').value = $('map').value === name ? '' : name
    redraw()
  }
  const modes = ['blend', 'swipe', 'board']
  const keys = {
    b: () => press('pose', chosen('pose') === 'before' ? 'moved' : 'before'),
    s: () => press('mode', modes[(modes.indexOf(chosen('mode')) + 1) % 3]),
    '[': () => slide(-5),
    ']': () => slide(5),
    f: () => tick(1),
    m: () => tick(2),
    w: () => tick(4),
    d: () => map('displacement'),
    j: () => map('jacobian'),
    g: () => map('cells'),
    1: () => press('layout', 3),
    2: () => press('layout', 2),
    3: () => press('layout', 1),
    4: () => press('layout', 0),
    5: () => press('layout', 4)
  }
  const moves = { ArrowLeft: [0, 1], ArrowRight: [0, -1], ArrowUp: [1, 1], ArrowDown: [1, -1], PageUp: [2, 1], PageDown: [2, -1] }
  // before NiiVue's own keys, which would do other things
  document.addEventListener(
    'keydown',
    (event) => {
      const target = event.target
      if (event.ctrlKey || event.metaKey || event.altKey) return
      if (target.id === 'gl') event.stopPropagation()
      const typing = target.matches?.('input[type=number], select')
      if (keys[event.key.toLowerCase()] && !typing) keys[event.key.toLowerCase()]()
      else if (moves[event.key] && target.id === 'gl') step(moves[event.key][0], moves[event.key][1] * (event.shiftKey ? 10 : 1))
      else return
      event.preventDefault()
    },
    true
  )
  for (const [bit, there] of data.kinds.entries()) {
    const box = document.querySelector(`#contours input[value="${1 << bit}"]`)
    box.disabled = !there
    if (!there) box.checked = false
    if (!there) box.parentElement.hidden = true
  }
  $('contours').hidden = !edges
  if (matchMedia('(max-width: 40rem)').matches) press('layout', 2)
  const spacing = [0, 1, 2].map((d) => Math.hypot(...data.affine.slice(0, 3).map((row) => row[d])).toFixed(2))
  $('facts').textContent =
    `Shown at ${spacing.join(' × ')} mm in 256 steps; files hold the full resolution. Maps are without the rigid start. ` +
    'The patient’s right is on the left. 3-D: bones where they are moved to' +
    (bones.before.length ? ', and in red before.' : '.')
  draw()
  goTo(data.at_mm)
  viewer.dataset.ready = 'yes'
  document.documentElement.dataset.viewer = 'ready'
  globalThis.osteomorphViewer = { nv, images, maps, goTo, mm, valueAt }
}

function without(error) {
  viewer.hidden = true
  document.querySelector('.needs-webgl').hidden = false
  document.documentElement.dataset.viewer = 'off'
  if (error) console.warn(String(error))
}

const probe = document.createElement('canvas').getContext('webgl2')
if (probe) {
  probe.getExtension('WEBGL_lose_context')?.loseContext()
  begin().catch(without)
} else without()
