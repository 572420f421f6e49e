/** The Worker of packing.ts: packs bricks and sums statistics away from the page's thread. */
import { work, type PackingTask } from './packing';

self.onmessage = ({ data }: MessageEvent<PackingTask>) => {
  const result = work(data);
  self.postMessage(result, { transfer: result.kind === 'pack' ? [result.packed.buffer] : [] });
};
