// Builds the page: node build.mjs OUTDIR
//
// OUTDIR gets index.html, page.HASH.js, style.HASH.css, the files that these load, LICENSES.txt, and a .gz beside each file
// that gzip makes smaller. HASH depends on the content, so that browsers keep such files forever.
//
// Workers and other files: in a source below src/, write
//
//     new Worker(new URL('../client/packing-worker.ts', import.meta.url), { type: 'module' })
//     fetch(new URL('../../node_modules/PACKAGE/codec.wasm', import.meta.url))
//
// The path is relative to the source, as in the standard. The build replaces it by the name of the output: a bundle of its
// own for a .ts file, else a copy. Outputs are in one folder, so that the page works below any path of a proxy.
// import('PACKAGE') makes a file that is loaded when it is needed.
import { build } from 'esbuild';
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { createHash } from 'node:crypto';
import { basename, dirname, extname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';

const FILE_URL = /new URL\(\s*(['"])(\.[^'"]+)\1\s*,\s*import\.meta\.url,?\s*\)/g;
const COMPRESSIBLE = new Set(['.css', '.html', '.js', '.json', '.svg', '.txt', '.wasm']);

/** Contents by name. */
const files = new Map();
/** Source files in the bundles, of all packages. */
const inputs = new Set();
/** Comments about licenses in bundled sources. */
const legalComments = new Set();

/** Bundle entry points, given by their names in the output. Return the output's file name of each. */
async function bundle(entryPoints) {
  const { outputFiles, metafile } = await build({
    entryPoints,
    entryNames: '[name].[hash]',
    chunkNames: '[name].[hash]',
    bundle: true,
    splitting: true,
    format: 'esm',
    minify: true,
    target: 'es2022',
    outdir: '.',
    write: false,
    metafile: true,
    legalComments: 'external',
    logLevel: 'warning',
    loader: { '.wasm': 'binary' }, // the decoders of DICOM, in files that are loaded when they are needed
    external: ['fs', 'path'], // the decoders require these in Node.js only
    plugins: [filesByUrl, withoutZarrCodecs],
  });
  Object.keys(metafile.inputs).forEach((path) => inputs.add(path));
  for (const { path, contents } of outputFiles) {
    if (path.endsWith('.LEGAL.txt')) legalComments.add(Buffer.from(contents).toString());
    else files.set(basename(path), contents);
  }
  const outputs = Object.entries(metafile.outputs);
  return (source) => basename(outputs.find(([, output]) => output.entryPoint === source)[0]);
}

const filesByUrl = {
  name: 'files by URL',
  setup({ onLoad }) {
    onLoad({ filter: /[\\/]src[\\/].*\.ts$/ }, async ({ path }) => {
      if (path.includes('node_modules')) return undefined;
      let contents = readFileSync(path, 'utf8');
      for (const [expression, , file] of contents.matchAll(FILE_URL)) {
        const name = await output(resolve(dirname(path), file));
        contents = contents.replace(expression, `new URL('./${name}', import.meta.url)`);
      }
      return { contents, loader: 'ts' };
    });
  },
};

/** Add a file that a source loads by its URL. Return its name. */
async function output(path) {
  const extension = extname(path);
  const stem = basename(path, extension);
  if (extension === '.ts') {
    const nameOf = await bundle({ [stem]: path });
    return nameOf(path.slice(process.cwd().length + 1).replaceAll('\\', '/'));
  }
  const contents = readFileSync(path);
  inputs.add(path);
  const hash = createHash('sha256').update(contents).digest('hex').slice(0, 8).toUpperCase();
  files.set(`${stem}.${hash}${extension}`, contents);
  return `${stem}.${hash}${extension}`;
}

/** NiiVue reads OME-Zarr, which the page does not offer. Its codecs are more than half of NiiVue's size. */
const withoutZarrCodecs = {
  name: 'without the codecs of Zarr',
  setup({ onResolve, onLoad }) {
    onResolve({ filter: /^numcodecs/ }, ({ path }) => ({ path, namespace: 'empty' }));
    onLoad({ filter: /.*/, namespace: 'empty' }, () => ({ contents: 'export default undefined;' }));
  },
};

/** Texts of licenses that packages lack, from their repositories and those of what they contain. */
const MISSING_LICENSES = {
  '@cornerstonejs/codec-charls': ['licenses/codec-charls.txt'],
  '@cornerstonejs/codec-libjpeg-turbo-8bit': ['licenses/codec-libjpeg-turbo-8bit.txt'],
  '@cornerstonejs/codec-openjpeg': ['licenses/codec-openjpeg.txt'],
  // It contains the font Roboto.
  '@niivue/niivue': ['licenses/niivue.txt', 'licenses/roboto.txt'],
};

/** Return the licenses of all packages in the bundles. */
function licenses() {
  const folders = new Set();
  for (const path of inputs) {
    const found = /^.*node_modules[\\/](?:@[^\\/]+[\\/])?[^\\/]+/.exec(path);
    if (found) folders.add(found[0]);
  }
  const sections = [...folders].sort().map((folder) => {
    const { name, version, license } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'));
    const found = readdirSync(folder).filter((file) => /^(licen[cs]e|copying|notice)/i.test(file));
    const texts = found.sort().map((file) => join(folder, file));
    texts.push(...(MISSING_LICENSES[name] ?? []));
    if (texts.length === 0)
      throw new Error(`${name} ${version} has no license file. Add its text to MISSING_LICENSES.`);
    return [`${name} ${version}: ${license}`, ...texts.map((file) => readFileSync(file, 'utf8'))];
  });
  if (legalComments.size > 0) sections.push(['Comments in the sources', ...[...legalComments].sort()]);
  return sections.map((section) => section.join('\n\n')).join(`\n${'-'.repeat(72)}\n`);
}

function replaceOnce(text, from, to) {
  if (text.split(from).length !== 2) throw new Error(`index.html must have ${from} once.`);
  return text.replace(from, to);
}

const outdir = process.argv[2];
if (!outdir) throw new Error('Usage: node build.mjs OUTDIR');
const target = resolve(outdir);
process.chdir(dirname(fileURLToPath(import.meta.url)));
const nameOf = await bundle({ page: 'src/page/main.ts', style: 'src/page/page.css' });
let html = readFileSync('index.html', 'utf8');
html = replaceOnce(html, '"page.js"', `"${nameOf('src/page/main.ts')}"`);
html = replaceOnce(html, '"page.css"', `"${nameOf('src/page/page.css')}"`);
files.set('LICENSES.txt', licenses());
files.set('index.html', html);

rmSync(target, { recursive: true, force: true });
mkdirSync(target, { recursive: true });
for (const [name, contents] of files) {
  writeFileSync(join(target, name), contents);
  const compressed = gzipSync(contents, { level: 9 });
  if (COMPRESSIBLE.has(extname(name)) && compressed.length < contents.length) {
    writeFileSync(join(target, `${name}.gz`), compressed);
  }
}
