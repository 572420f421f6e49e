/** The views, without NiiVue. */
import { expect, test, vi } from 'vitest';
import type { Volume } from '../../src/files';
import { Viewer } from '../../src/page/viewer';

const { removeVolume } = vi.hoisted(() => ({ removeVolume: vi.fn() }));
vi.mock('@niivue/niivue', () => ({
  SLICE_TYPE: {},
  SHOW_RENDER: {},
  NVImage: class {
    static createNiftiHeader(): object {
      return {};
    }
    init(): void {
      throw new RangeError('Array buffer allocation failed');
    }
  },
  Niivue: class {
    uiData = {};
    volumes = ['the previous volume'];
    removeVolume = removeVolume;
  },
}));

test('a volume that cannot be shown leaves the previous one', () => {
  const voxels = new Uint8Array(8);
  const affine = [0, 1, 2, 3].map((row) => [0, 1, 2, 3].map((column) => Number(row === column)));
  const volume = { shape: [2, 2, 2], affine, name: 'ct', voxels, dtype: 'uint8' } as unknown as Volume;
  const viewer = new Viewer({} as unknown as HTMLCanvasElement);
  expect(() => {
    viewer.show(volume);
  }).toThrow('Array buffer allocation failed');
  expect(removeVolume).not.toHaveBeenCalled();
});
