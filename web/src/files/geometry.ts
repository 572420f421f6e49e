import { type Affine, ImageFileError, type Shape, type Vector } from './volume';

/** The three columns of a matrix: the steps in millimeters from one voxel to the next along i, j and k. */
export type Axes = readonly [Vector, Vector, Vector];

/** A grid is orthogonal if straightening it moves no corner by more than this many voxels. */
const SHEAR_TOLERANCE = 0.1;
/** The polar decomposition doubles its correct digits with each step, from any three directions not in one plane. */
const POLAR_STEPS = 60;

/** Return an affine from its axes and the position of the first voxel. */
export function affineOf([i, j, k]: Axes, origin: Vector): Affine {
  return [0, 1, 2].map((row) => [i[row], j[row], k[row], origin[row]] as const).concat([[0, 0, 0, 1]]);
}

/** Return the steps of an affine from one voxel to the next. */
export function axesOf(affine: Affine): Axes {
  return [column(affine, 0), column(affine, 1), column(affine, 2)];
}

/** Return the position of the first voxel. */
export function originOf(affine: Affine): Vector {
  return column(affine, 3);
}

function column(affine: Affine, index: 0 | 1 | 2 | 3): Vector {
  return [affine[0][index], affine[1][index], affine[2][index]];
}

/** Convert an affine between RAS and LPS millimeters, in either direction. */
export function betweenRasAndLps(affine: Affine): Affine {
  return affine.map((row, index) => (index < 2 ? ([-row[0], -row[1], -row[2], -row[3]] as const) : row));
}

/** Return the dot product. */
export function dot(a: Vector, b: Vector): number {
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

/** Return the cross product. */
export function cross(a: Vector, b: Vector): Vector {
  return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
}

/** Return a vector times a factor. */
export function scaled(a: Vector, factor: number): Vector {
  return [a[0] * factor, a[1] * factor, a[2] * factor];
}

/** Return `a` minus `b`. */
export function difference(a: Vector, b: Vector): Vector {
  return [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
}

/** Return the Euclidean length of a vector. */
export function length(a: Vector): number {
  return Math.hypot(...a);
}

/**
 * Return the nearest affine with perpendicular axes. Throws an ImageFileError if the axes of the image `name` are
 * sheared or in one plane.
 */
export function straightened(affine: Affine, shape: Shape, name: string): Affine {
  const axes = axesOf(affine);
  const origin = originOf(affine);
  if (!origin.every(Number.isFinite)) {
    throw new ImageFileError(
      `${name} has the position (${origin.join(', ')}). Expected three numbers. Correct the header.`,
    );
  }
  const spacing = axes.map(length);
  const units = axes.map((axis, n) => scaled(axis, 1 / spacing[n])) as unknown as Axes;
  if (!axes.flat().every(Number.isFinite) || !(Math.abs(determinant(units)) >= 1e-6)) {
    throw new ImageFileError(
      `${name} has the axes ${axes.map((axis) => `(${axis.join(', ')})`).join(', ')}. Expected three directions that ` +
        'are not in one plane. Correct the header.',
    );
  }
  const straight = perpendicular(units).map((axis, n) => scaled(axis, spacing[n])) as unknown as Axes;
  const result = affineOf(straight, origin);
  if (gridDistance(affine, result, shape) > SHEAR_TOLERANCE) {
    throw new ImageFileError(
      `${name} is sheared: its axes are not perpendicular, as with a tilted gantry. Resample it to perpendicular axes, ` +
        'for example with the option --resample of the command line of this program.',
    );
  }
  return result;
}

/** Return the largest distance between the corners of two grids of the same shape, in voxels of `a`. */
export function gridDistance(a: Affine, b: Affine, shape: Shape): number {
  const toVoxels = inverse(axesOf(a));
  let largest = 0;
  for (let corner = 0; corner < 8; corner++) {
    const index = shape.map((n, axis) => ((corner >> axis) & 1) * (n - 1));
    const apart = [0, 1, 2].map((row) => at(b[row], index) - at(a[row], index)) as unknown as Vector;
    for (const row of toVoxels) largest = Math.max(largest, Math.abs(dot(row, apart)));
  }
  return largest;
}

function at(row: Affine[number], index: readonly number[]): number {
  return row[0] * index[0] + row[1] * index[1] + row[2] * index[2] + row[3];
}

function determinant([i, j, k]: Axes): number {
  return dot(i, cross(j, k));
}

/** Return the rows of the inverse of a matrix that is given by its columns. */
function inverse(axes: Axes): Axes {
  const [i, j, k] = axes;
  const factor = 1 / determinant(axes);
  return [scaled(cross(j, k), factor), scaled(cross(k, i), factor), scaled(cross(i, j), factor)];
}

/** Return the nearest orthogonal matrix: the polar decomposition, by Newton's iteration. */
function perpendicular(axes: Axes): Axes {
  let current = axes;
  for (let step = 0; step < POLAR_STEPS; step++) {
    const transposedInverse = inverse(current); // rows of the inverse are columns of its transpose
    const next = current.map((axis, n) => axis.map((x, row) => (x + transposedInverse[n][row]) / 2));
    current = next as unknown as Axes;
  }
  return current;
}
