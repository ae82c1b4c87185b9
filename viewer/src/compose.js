// What the slices show, voxel by voxel. Arrays run i fastest, as in the files.

const BOARD_MM = 20

function shades([low, high]) {
  const table = new Uint8Array(256)
  for (let v = 0; v < 256; v++) table[v] = Math.max(0, Math.min(255, Math.round(((v - low) / (high - low)) * 255)))
  return table
}

// state: pose 'before' | 'moved'; mode 'blend' | 'swipe' | 'board'; share 0 (fixed) to 1 (moving); axis 0 x, 1 y, 2 z (RAS mm)
export function picture(out, images, data, state) {
  const fixed = images.fixed.img
  const other = images[state.pose].img
  const a = shades(data.images.fixed.window)
  const b = shades(data.images[state.pose].window)
  if (state.mode === 'blend') {
    const share = state.share
    for (let v = 0; v < out.length; v++) out[v] = (1 - share) * a[fixed[v]] + share * b[other[v]] + 0.5
    return
  }
  const [n, m, l] = data.shape
  const affine = data.affine
  const corners = [0, n - 1].flatMap((i) => [0, m - 1].flatMap((j) => [0, l - 1].map((k) => [i, j, k])))
  const along = (row, [i, j, k]) => row[0] * i + row[1] * j + row[2] * k + row[3]
  const row = affine[state.axis]
  const reach = corners.map((corner) => along(row, corner))
  const low = Math.min(...reach)
  const cut = low + (Math.max(...reach) - low) * state.share
  let v = 0
  for (let k = 0; k < l; k++) {
    for (let j = 0; j < m; j++) {
      for (let i = 0; i < n; i++, v++) {
        let moving
        if (state.mode === 'swipe') moving = row[0] * i + row[1] * j + row[2] * k + row[3] < cut
        else {
          let sum = 0
          for (let d = 0; d < 3; d++) {
            const r = affine[d]
            sum += Math.floor((r[0] * i + r[1] * j + r[2] * k + r[3] - r[3]) / BOARD_MM)
          }
          moving = (sum & 1) === 1
        }
        out[v] = moving ? b[other[v]] : a[fixed[v]]
      }
    }
  }
}

// bits: 1 fixed, 2 moving, 4 moved. Moving is dotted and moved dashed, so that colour is not all that tells them apart;
// through the gaps shows what lies beneath.
export function contoured(out, bits, [n, m, l], wanted) {
  let v = 0
  for (let k = 0; k < l; k++) {
    for (let j = 0; j < m; j++) {
      for (let i = 0; i < n; i++, v++) {
        const here = bits[v] & wanted
        if (here === 0) {
          out[v] = 0
          continue
        }
        const phase = i + j + k
        if (here & 4 && (phase % 5 < 3 || !(here & 3))) out[v] = phase % 5 < 3 ? 3 : 0
        else if (here & 2 && phase % 2 === 0) out[v] = 2
        else out[v] = here & 1 ? 1 : 0
      }
    }
  }
}
