/** Packing in a Worker, and on this thread. */
import { afterEach, describe, expect, it, vi } from 'vitest';
import { unpack } from '../../src/client/arrays';
import { createPacker, perform, type PackingTask } from '../../src/client/packing';

/** A Worker that does its tasks here, one by one. Like a real one, it takes the buffers from the sender. */
class FakeWorker {
  onmessage: ((event: { data: unknown }) => void) | null = null;
  onerror: ((event: { message: string }) => void) | null = null;
  terminate = vi.fn();

  postMessage(task: PackingTask, transfer: ArrayBuffer[]): void {
    const received = structuredClone(task, { transfer });
    setTimeout(() => this.onmessage?.({ data: structuredClone(perform(received)) }));
  }
}

function makePacker() {
  const worker = new FakeWorker();
  return { worker, packer: createPacker(worker as unknown as Worker) };
}

afterEach(() => {
  vi.unstubAllGlobals();
});

describe.each([
  ['in a Worker', () => makePacker().packer],
  ['on this thread', () => createPacker()],
])('packing %s', (_, make) => {
  it('deflates bricks, and leaves raw ones as they are', async () => {
    const packer = make();
    const plain = Uint8Array.from({ length: 1000 }, (__, at) => at % 7);
    const [deflated, raw] = await Promise.all([packer.pack(plain.slice(), 'deflate'), packer.pack(plain, 'raw')]);
    expect(raw).toBe(plain);
    expect(deflated.length).toBeLessThan(100);
    expect(unpack(deflated, 'deflate', 1000)).toEqual(plain);
  });

  it('packs the layers of voxels', async () => {
    const packer = make();
    const plain = new Uint8Array(Int16Array.of(37, -5, 0).buffer);
    const layers = (['base', 'enhancement'] as const).map(async (layer) => {
      const packed = await packer.pack(plain.slice(), 'deflate', { layer, lowBits: 5, dtype: 'int16' });
      return [...new Int16Array(unpack(packed, 'deflate', 6).slice().buffer)];
    });
    expect(await Promise.all(layers)).toEqual([
      [32, -32, 0],
      [5, 27, 0],
    ]);
  });

  it('sums slabs, and answers in order', async () => {
    const packer = make();
    const [one, , two] = await Promise.all([
      packer.sum(Int16Array.of(0, 3, 0, -4), [1, 2, 2]),
      packer.pack(new Uint8Array(10), 'deflate'),
      packer.sum(Float32Array.of(0.5), [1, 1, 1]),
    ]);
    expect(one).toMatchObject({ total: [-1, 0], squares: [25, 0], low: -4, high: 3, notFinite: null });
    expect(one.nonzero).toEqual([
      [0, 0],
      [0, 1],
      [1, 1],
    ]);
    expect(two.total).toEqual([0.5, 0]);
  });
});

describe('a Worker', () => {
  it('that fails rejects what it has not done, and later tasks', async () => {
    const { worker, packer } = makePacker();
    const waiting = packer.pack(new Uint8Array(10), 'deflate');
    worker.onerror?.({ message: 'out of memory' });
    const failed = { code: 'page_failed', message: expect.stringContaining('out of memory') as string };
    await expect(waiting).rejects.toMatchObject(failed);
    await expect(packer.pack(new Uint8Array(10), 'deflate')).rejects.toMatchObject(failed);
  });

  it('ends with its packer', () => {
    const { worker, packer } = makePacker();
    packer.close();
    expect(worker.terminate).toHaveBeenCalledOnce();
  });

  it('answers the messages of the page', async () => {
    const posted: unknown[] = [];
    const scope = {
      onmessage: vi.fn<(event: { data: PackingTask }) => void>(),
      postMessage: (...args: unknown[]) => posted.push(args),
    };
    vi.stubGlobal('self', scope);
    await import('../../src/client/packing-worker');
    scope.onmessage({ data: { kind: 'pack', plain: new ArrayBuffer(100), encoding: 'deflate' } });
    scope.onmessage({ data: { kind: 'sum', voxels: Int8Array.of(1, 2).buffer, dtype: 'int8', counts: [1, 1, 2] } });
    expect(posted).toMatchObject([
      [{ kind: 'pack' }, { transfer: [expect.any(ArrayBuffer)] }],
      [{ kind: 'sum', sums: { total: [3, 0] } }, { transfer: [] }],
    ]);
  });
});
