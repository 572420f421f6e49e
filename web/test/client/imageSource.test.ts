/** Statistics, names and bricks of images in any order of memory. */
import { describe, expect, it } from 'vitest';
import { boxShape, countVoxels, type Index } from '../../src/client/geometry';
import { ImageSource } from '../../src/client/imageSource';
import { createPacker } from '../../src/client/packing';
import { Random } from './random';

/** Mean and deviation as protocol.md says, in two passes. */
function expectedStatistics(voxels: readonly number[], shape: Index): [number, number] {
  const [, nj, nk] = shape;
  const set = voxels.flatMap((value, at) =>
    value === 0 ? [] : [[Math.floor(at / (nj * nk)), Math.floor(at / nk) % nj, at % nk]],
  );
  const [low, high] = [Math.min, Math.max].map((extreme) =>
    [0, 1, 2].map((axis) => extreme(...set.map((one) => one[axis]))),
  );
  const inside = voxels.filter((_, at) => {
    const voxel = [Math.floor(at / (nj * nk)), Math.floor(at / nk) % nj, at % nk];
    return voxel.every((one, axis) => low[axis] <= one && one <= high[axis]);
  });
  const mean = inside.reduce((sum, x) => sum + x, 0) / inside.length;
  const squares = inside.reduce((sum, x) => sum + (x - mean) ** 2, 0);
  return [mean, Math.sqrt(squares / (inside.length - 1))];
}

/** An image whose voxels (in C order) lie in memory in another order of axes, some of them reversed. */
function arranged(voxels: readonly number[], shape: Index, order: readonly number[], reversed: readonly boolean[]) {
  const strides = [0, 0, 0];
  let stride = 1;
  for (const axis of order) {
    strides[axis] = stride;
    stride *= shape[axis];
  }
  let offset = 0;
  for (const axis of [0, 1, 2]) {
    if (!reversed[axis]) continue;
    offset += (shape[axis] - 1) * strides[axis];
    strides[axis] *= -1;
  }
  const array = new Int16Array(voxels.length);
  voxels.forEach((value, at) => {
    const voxel = [Math.floor(at / (shape[1] * shape[2])), Math.floor(at / shape[2]) % shape[1], at % shape[2]];
    array[voxel.reduce((sum, one, axis) => sum + one * strides[axis], offset)] = value;
  });
  return new ImageSource('scan.nii', shape, array, [strides[0], strides[1], strides[2]], offset);
}

describe.each([
  [
    [0, 1, 2],
    [false, false, false],
  ],
  [
    [2, 1, 0],
    [false, false, false],
  ],
  [
    [1, 2, 0],
    [false, true, false],
  ],
  [
    [0, 2, 1],
    [true, true, true],
  ],
])('an image with its axes in the order %j, reversed %j', (order, reversed) => {
  const random = new Random(order.join('').length + order[0]);
  const shape: Index = [37, 20, 65];
  const voxels = Array.from({ length: countVoxels(shape) }, () =>
    random.next() < 0.9 ? 0 : random.integer(-999, 999),
  );
  const image = arranged(voxels, shape, order, reversed);

  it('has the statistics of its voxels', async () => {
    await image.prepare(createPacker());
    const [mean, std] = expectedStatistics(voxels, shape);
    expect(image.statistics.mean).toBeCloseTo(mean, 12);
    expect(image.statistics.std).toBeCloseTo(std, 10);
  });

  it('has the bricks of its voxels', () => {
    for (let index = 0; index < image.grid.length; index++) {
      const [i, j, k] = image.grid.box(index);
      const brick = new Int16Array(image.brick(index).buffer);
      const expected: number[] = [];
      for (let a = i[0]; a < i[1]; a++) {
        for (let b = j[0]; b < j[1]; b++) {
          for (let c = k[0]; c < k[1]; c++) expected.push(voxels[(a * shape[1] + b) * shape[2] + c]);
        }
      }
      expect([...brick]).toEqual(expected);
      expect(brick).toHaveLength(countVoxels(boxShape([i, j, k])));
    }
  });
});

describe('an image', () => {
  const ramp = (factor = 1) => Float32Array.from({ length: 24 }, (_, at) => factor * at);
  const make = (voxels = ramp()) => new ImageSource('scan', [2, 3, 4], voxels, [12, 4, 1]);

  it('has a name that tells its content, and not that of its file', async () => {
    const [one, same, other] = [make(), new ImageSource('copy', [2, 3, 4], ramp(), [12, 4, 1]), make(ramp(2))];
    for (const image of [one, same, other]) await image.prepare(createPacker());
    expect(one.name).toBe(same.name);
    expect(one.name).not.toBe(other.name);
    expect(one.name).not.toContain('scan');
    expect(one.name.length).toBeLessThanOrEqual(256);
  });

  it('keeps the digits of a deviation that is small beside the mean', async () => {
    const voxels = Float32Array.from({ length: 24 }, (_, at) => 2 ** 23 + (at % 2));
    const image = make(voxels);
    await image.prepare(createPacker());
    expect(image.statistics.mean).toBe(2 ** 23 + 0.5);
    expect(image.statistics.std).toBeCloseTo(Math.sqrt(6 / 23), 12);
  });

  it('reports how far it is', async () => {
    const shares: number[] = [];
    const image = new ImageSource('scan', [4, 1024, 1024], new Uint8Array(2 ** 22).fill(1, 5), [2 ** 20, 1024, 1]);
    await image.prepare(createPacker(), (share) => shares.push(share));
    expect(shares).toEqual([0.25, 0.5, 0.75, 1]);
  });

  it('names the first voxel that is not finite', async () => {
    const voxels = ramp();
    voxels[12 + 4 + 2] = NaN;
    await expect(make(voxels).prepare(createPacker())).rejects.toThrow('(1, 1, 2)');
  });

  it.each([
    ['too few voxels', () => new ImageSource('scan', [2, 3, 5], ramp(), [15, 5, 1]), 'bad_image'],
    ['a stride that leaves the array', () => new ImageSource('scan', [2, 3, 4], ramp(), [12, 4, -1]), 'bad_image'],
    ['an empty axis', () => new ImageSource('scan', [0, 3, 4], ramp(), [12, 4, 1]), 'bad_image'],
    ['too many voxels', () => new ImageSource('scan', [2048, 1024, 1024], ramp(), [1, 0, 0]), 'too_large'],
    ['too many bricks', () => new ImageSource('scan', [2 ** 26, 1, 1], ramp(), [0, 0, 0]), 'too_large'],
  ])('is refused with %s', (_, construct, code) => {
    expect(construct).toThrow(expect.objectContaining({ code }) as Error);
  });
});
