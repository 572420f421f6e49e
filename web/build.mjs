// Bundles the page into the folder named on the command line. File names contain a hash of the content.
import { build } from 'esbuild';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';

const out = process.argv[2];
rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });
const result = await build({
  entryPoints: { page: 'src/page/main.ts', style: 'src/page/page.css' },
  entryNames: '[name].[hash]',
  bundle: true,
  format: 'esm',
  minify: true,
  target: 'es2022',
  outdir: out,
  metafile: true,
  legalComments: 'linked',
  logLevel: 'warning',
});
let html = readFileSync('index.html', 'utf8');
for (const [path, { entryPoint }] of Object.entries(result.metafile.outputs)) {
  if (entryPoint === 'src/page/main.ts') html = html.replace('page.js', basename(path));
  if (entryPoint === 'src/page/page.css') html = html.replace('page.css', basename(path));
}
writeFileSync(join(out, 'index.html'), html);
