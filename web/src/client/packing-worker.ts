/** The Worker of packing.ts: packs bricks and sums statistics away from the page's thread. */
import { perform, type PackingTask } from './packing';

self.onmessage = ({ data }: MessageEvent<PackingTask>) => {
  const result = perform(data);
  self.postMessage(result, { transfer: result.kind === 'pack' ? [result.packed.buffer] : [] });
};
