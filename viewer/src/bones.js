// Bone surfaces: in fixed space as moved, and where the rigid start left them.
import { NVMesh } from '@niivue/niivue'

const STEP_MM = 0.02
const MOVED = [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [204, 121, 167], [213, 150, 120]]
const BEFORE = [255, 59, 48]

async function bytes(base64) {
  const packed = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'))
  return new Response(stream).arrayBuffer()
}

export async function boneMeshes(nv, bones) {
  const out = { before: [], moved: [] }
  for (const [at, bone] of bones.entries()) {
    const steps = new Int16Array(await bytes(bone.vertices))
    const triangles = new Uint32Array(await bytes(bone.triangles))
    const moved = new Float32Array(steps.length)
    const before = new Float32Array(steps.length)
    const m = bone.before
    for (let v = 0; v < steps.length; v += 3) {
      const p = [0, 1, 2].map((d) => steps[v + d] * STEP_MM + bone.centre[d])
      for (let d = 0; d < 3; d++) {
        moved[v + d] = p[d]
        before[v + d] = m[4 * d] * p[0] + m[4 * d + 1] * p[1] + m[4 * d + 2] * p[2] + m[4 * d + 3]
      }
    }
    const mesh = (points, colour) =>
      new NVMesh(points, new Uint32Array(triangles), bone.name, new Uint8Array([...colour, 255]), 1, true, nv.gl)
    out.moved.push(mesh(moved, MOVED[at % MOVED.length]))
    out.before.push(mesh(before, BEFORE))
  }
  return out
}
