// Makes src/osteomorph/report_assets/built/: viewer.js, and NOTICES.txt with the licence of every package inside it.
import { build } from 'esbuild'
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

const here = dirname(fileURLToPath(import.meta.url))
const out = resolve(here, '../src/osteomorph/report_assets/built')
// NiiVue makes a gradient of the whole volume at each change, for lit volume rendering, which this page does not show; in software
// rendering that is most of the time that a slider takes
let patched = 0
const withoutGradient = {
  name: 'without-gradient',
  setup(run) {
    run.onLoad({ filter: /@niivue[\\/]niivue[\\/]build[\\/].*\.js$/ }, ({ path }) => {
      const head = /function gradientGL\(params\) \{/
      const text = readFileSync(path, 'utf8')
      if (!head.test(text)) return null
      patched++
      return { contents: text.replace(head, (found) => `${found} return params.gradientTexture;`), loader: 'js' }
    })
  }
}
const result = await build({
  absWorkingDir: here,
  entryPoints: ['src/main.js'],
  bundle: true,
  minify: true,
  format: 'iife',
  target: 'es2020',
  charset: 'ascii',
  legalComments: 'none',
  define: { 'import.meta.url': '""' },
  external: ['fs', 'path', 'crypto', 'worker_threads', 'url', 'module'],
  plugins: [withoutGradient],
  logLevel: 'error',
  metafile: true,
  write: false
})
if (patched !== 1) throw new Error('NiiVue has changed: its gradient was not found.')
const roots = new Set()
for (const path of Object.keys(result.metafile.inputs)) {
  const found = path.match(/^(.*node_modules\/(?:@[^/]+\/)?[^/]+)\//)
  if (found) roots.add(found[1])
}
const notices = [...roots].sort().map((root) => {
  const about = JSON.parse(readFileSync(join(here, root, 'package.json'), 'utf8'))
  const name = readdirSync(join(here, root)).find((file) => /^(licen[cs]e|copying)/i.test(file))
  const own = join(here, 'licences', about.name.replace('/', '__') + '.txt')
  const text = name ? readFileSync(join(here, root, name), 'utf8') : existsSync(own) ? readFileSync(own, 'utf8') : ''
  if (!text.trim()) throw new Error(`${about.name} has no licence text; put it into licences/.`)
  return `${about.name} ${about.version} (${about.license ?? 'licence in its package'})\n\n${text.trim()}\n`
})
mkdirSync(out, { recursive: true })
const write = (name, text) => {
  writeFileSync(join(out, `.${name}`), text)
  renameSync(join(out, `.${name}`), join(out, name))
}
write('NOTICES.txt', notices.join('\n' + '-'.repeat(80) + '\n\n'))
write('viewer.js', result.outputFiles[0].text)
console.log(`viewer.js ${(result.outputFiles[0].text.length / 1e6).toFixed(2)} MB, ${roots.size} packages`)
