/** A volume of the user, checked and ready to be sent: its statistics, its name on the wire, and its bricks. */
import { checkSize, Grid } from './bricks';
import { crc32 } from './crc32';
import { ClientError } from './errors';
import { boxShape, countVoxels, type Index } from './geometry';
import { chooseLowBits, lowBitsOfBrick } from './layers';
import type { Brick, DType, Encoding } from './messages';
import type { Packer } from './packing';
import { combine, type SlabSums, type Statistics } from './statistics';
import type { BrickPart } from './upload';
import { copyVoxels, wireArray, wireType, type Voxels } from './voxels';

export type { Statistics, Voxels };

type Axis = 0 | 1 | 2;

/** Voxels that are copied at once for the statistics: some milliseconds of work. */
const SLAB_VOXELS = 2 ** 19;
/** Slabs in the hands of the packer at a time. */
const SLABS_IN_FLIGHT = 2;

/** Result of `prepare`. */
interface Prepared {
  readonly name: string;
  readonly statistics: Statistics;
  readonly lowBits: number;
}

/** A volume of the user. Its voxels are read while they are sent, so the array must not change meanwhile. */
export class ImageSource {
  /** Type in which the voxels travel. */
  readonly dtype: DType;
  readonly grid: Grid;
  /** Axes by the distance of neighbors in memory, the slowest first. */
  private readonly axes: readonly [Axis, Axis, Axis];
  private prepared: Prepared | null = null;

  /**
   * @param label - Name of the image for the user, such as that of its file. It is not sent.
   * @param shape - Voxels along i, j, k.
   * @param voxels - All voxels.
   * @param strides - Distance in `voxels` between neighbors along i, j, k. A NIfTI file has [1, I, I * J].
   * @param offset - Index of voxel (0, 0, 0) in `voxels`. With it, a stride may be negative.
   * @throws ClientError - `bad_image` or `too_large`.
   */
  constructor(
    readonly label: string,
    readonly shape: Index,
    readonly voxels: Voxels,
    readonly strides: Index,
    readonly offset = 0,
  ) {
    if (shape.some((n) => !Number.isInteger(n) || n < 1)) {
      throw new ClientError(
        'bad_image',
        `An image of ${shape.join(' × ')} voxels is no volume. Open an image of three dimensions.`,
      );
    }
    checkSize(shape);
    const reach = shape.map((n, axis) => (n - 1) * strides[axis]);
    const lowest = offset + reach.reduce((sum, step) => sum + Math.min(0, step), 0);
    const highest = offset + reach.reduce((sum, step) => sum + Math.max(0, step), 0);
    if (lowest < 0 || highest >= voxels.length) {
      throw new ClientError(
        'bad_image',
        `The image has ${voxels.length} voxels, too few for a volume of ${shape.join(' × ')}. Its file may be damaged.`,
      );
    }
    this.dtype = wireType(voxels);
    this.grid = new Grid(shape);
    const axes: [Axis, Axis, Axis] = [0, 1, 2];
    this.axes = axes.sort((a, b) => Math.abs(strides[b]) - Math.abs(strides[a]));
  }

  /**
   * Compute statistics and name. This thread copies slabs of a few milliseconds, and the packer sums them.
   *
   * `onProgress`: called with the share that is done, 0 to 1.
   *
   * @throws ClientError - `bad_image` for voxels that are not finite, or all (almost) equal.
   */
  async prepare(packer: Packer, onProgress?: (share: number) => void): Promise<void> {
    const [slow, ...faster] = this.axes;
    const planes = Math.max(1, Math.floor(SLAB_VOXELS / (this.shape[faster[0]] * this.shape[faster[1]])));
    const slabs: SlabSums[] = [];
    const inFlight: Promise<SlabSums>[] = [];
    const awaitNext = async (): Promise<void> => {
      const slab = await inFlight[0];
      void inFlight.shift();
      if (slab.notFinite !== null) throw this.notFinite(slabs.length * planes, slab.notFinite);
      slabs.push(slab);
      onProgress?.((slabs.length * planes) / (planes * Math.ceil(this.shape[slow] / planes)));
    };
    for (let start = 0; start < this.shape[slow]; start += planes) {
      inFlight.push(this.sumSlab(packer, start, Math.min(planes, this.shape[slow] - start)));
      if (inFlight.length === SLABS_IN_FLIGHT) await awaitNext();
    }
    while (inFlight.length > 0) await awaitNext();
    const statistics = combine(slabs, planes, this.isWide);
    const crc = crc32(new Uint8Array(Uint32Array.from(slabs, (slab) => slab.crc).buffer));
    const { mean, std } = statistics;
    const name = [crc.toString(16), this.shape.join('x'), this.dtype, mean, std].join(' ');
    const largest = Math.max(...slabs.map(({ low, high }) => Math.max(Math.abs(low), Math.abs(high))));
    this.prepared = { name, statistics, lowBits: chooseLowBits(this.dtype, std, largest) };
  }

  /** Name on the wire: a fingerprint of the content, the same after a reload. Throws before `prepare`. */
  get name(): string {
    return this.result.name;
  }

  /** Statistics of the voxels. Throws before `prepare`. */
  get statistics(): Statistics {
    return this.result.statistics;
  }

  /**
   * Number of bits in most enhancement layers; 0: bricks are better sent without layers. Throws before
   * `prepare`.
   */
  get lowBits(): number {
    return this.result.lowBits;
  }

  /** Return a brick or a layer of it, packed. */
  async packBrick({ index, layer, distance }: BrickPart, encoding: Encoding, packer: Packer): Promise<Brick> {
    const voxels = this.brick(index);
    if (layer === 'whole') return { index, encoding, data: await packer.pack(voxels, encoding), layer, low_bits: 0 };
    const { dtype } = this;
    const lowBits = lowBitsOfBrick(this.lowBits, distance, dtype);
    const data = await packer.pack(voxels, encoding, { layer, lowBits, dtype });
    return { index, encoding, data, layer, low_bits: lowBits };
  }

  /** Return a copy of the voxels of a brick as they travel. */
  brick(index: number): Uint8Array<ArrayBuffer> {
    const box = this.grid.box(index);
    const shape = boxShape(box);
    const out = wireArray(this.dtype, countVoxels(shape));
    const outStrides = this.inMemoryOrder([shape[1] * shape[2], shape[2], 1]);
    const start = this.offset + box.reduce((sum, [low], axis) => sum + low * this.strides[axis], 0);
    const strides = this.inMemoryOrder(this.strides);
    copyVoxels(this.voxels, { start, counts: this.inMemoryOrder(shape), strides, outStrides }, out);
    return new Uint8Array(out.buffer);
  }

  private get result(): Prepared {
    if (this.prepared === null) throw new Error('Call prepare() before the image is used.');
    return this.prepared;
  }

  /** Whether the voxels are converted from doubles or integers of 64 bits. */
  private get isWide(): boolean {
    return this.voxels.BYTES_PER_ELEMENT === 8;
  }

  private inMemoryOrder(values: Index): Index {
    return [values[this.axes[0]], values[this.axes[1]], values[this.axes[2]]];
  }

  /** Copy planes along the slowest axis in the order of memory, which is fast, and sum them. */
  private sumSlab(packer: Packer, first: number, planes: number): Promise<SlabSums> {
    const [, rows, length] = this.inMemoryOrder(this.shape);
    const strides = this.inMemoryOrder(this.strides);
    const counts: Index = [planes, rows, length];
    const out = wireArray(this.dtype, countVoxels(counts));
    const start = this.offset + first * strides[0];
    copyVoxels(this.voxels, { start, counts, strides, outStrides: [rows * length, length, 1] }, out);
    return packer.sum(out, counts);
  }

  /** `firstPlane`: of the slab. `at`: index of the voxel in the slab. */
  private notFinite(firstPlane: number, at: number): ClientError {
    const [, rows, length] = this.inMemoryOrder(this.shape);
    const position = [firstPlane + Math.floor(at / (rows * length)), Math.floor(at / length) % rows, at % length];
    const voxel = [0, 1, 2].map((axis) => position[this.axes.indexOf(axis as Axis)]);
    return new ClientError(
      'bad_image',
      `The image has voxels that are NaN, infinite or too large for float32, the first at (${voxel.join(', ')}). ` +
        'Replace them in the file and open it again.',
    );
  }
}
