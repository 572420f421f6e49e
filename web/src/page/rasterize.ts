/**
 * Boxes, strokes and outlines in a slice, as masks on the grid of voxels.
 *
 * Voxel centers have integer coordinates, and voxels are named (i, j, k). The rules are those of the Slicer module, so
 * that the same gesture gives the same prompt.
 */

import { clip, type Box, type Index, type Range } from '../client/geometry';

/** A position in voxel coordinates (i, j, k). The center of a voxel is at integers. */
export type Point = readonly [number, number, number];

/** An axis of the volume: 0, 1 or 2 for i, j or k. */
export type Axis = 0 | 1 | 2;

/** The voxels that a prompt marks. */
export interface MarkedVoxels {
  /** The smallest box around them, inside the volume. */
  box: Box;
  /** 1 for each marked voxel of the box, in C order (k changes fastest). */
  mask: Uint8Array;
}

/** A mask in a slice: `size[0]` rows of `size[1]` pixels. Pixel (0, 0) is at `start`. */
interface Plane {
  start: [number, number];
  size: [number, number];
  mask: Uint8Array;
}

type Pair = readonly [number, number];

/** Return the voxel at a position. */
export function voxelAt(point: Point): Index {
  return [nearest(point[0]), nearest(point[1]), nearest(point[2])];
}

/** Return the box between two corners, clipped to the volume, or null if it is outside. */
export function boxBetween(shape: Index, corner: Point, opposite: Point): Box | null {
  const a = voxelAt(corner);
  const b = voxelAt(opposite);
  const range = (n: Axis): Range => [Math.min(a[n], b[n]), Math.max(a[n], b[n]) + 1];
  return clip([range(0), range(1), range(2)], shape);
}

/**
 * Return the voxels of a stroke in the slice orthogonal to `axis`, or null if it is outside the volume.
 *
 * A stroke is one voxel thick along `axis`, and along a row exactly as wide as `thickness` states, in voxels along
 * i, j and k. All points are taken to be in the slice of the first one.
 */
export function brushStroke(shape: Index, axis: Axis, points: readonly Point[], thickness: Point): MarkedVoxels | null {
  const [u, v] = inPlane(axis);
  const width: Pair = [Math.max(1, Math.round(thickness[u])), Math.max(1, Math.round(thickness[v]))];
  const radii: Pair = [width[0] / 2, width[1] / 2];
  const path = points.map((p): Pair => [brushCenter(p[u], width[0]), brushCenter(p[v], width[1])]);
  const plane = planeAround(path, radii);
  for (let n = 0; n < path.length; n++) drawLine(plane, path[Math.max(0, n - 1)], path[n], radii);
  return placeInVolume(shape, axis, points[0], plane);
}

/**
 * Return the voxels whose centers an outline in the slice orthogonal to `axis` encloses, or null if there are none in
 * the volume. Regions that it encloses twice are inside.
 */
export function filledOutline(shape: Index, axis: Axis, points: readonly Point[]): MarkedVoxels | null {
  const [u, v] = inPlane(axis);
  const path = points.map((p): Pair => [p[u], p[v]]);
  const plane = planeAround(path, [0, 0]);
  fill(plane, path);
  return placeInVolume(shape, axis, points[0], plane);
}

function nearest(coordinate: number): number {
  return Math.floor(coordinate + 0.5);
}

/** Return the axes of a slice orthogonal to `axis`: that of its rows, which changes slower, and that of its columns. */
export function inPlane(axis: Axis): [Axis, Axis] {
  return axis === 0 ? [1, 2] : axis === 1 ? [0, 2] : [0, 1];
}

/** The center of an even number of voxels lies between two of them. */
function brushCenter(coordinate: number, width: number): number {
  return width % 2 === 1 ? nearest(coordinate) : Math.floor(coordinate) + 0.5;
}

function planeAround(path: readonly Pair[], margin: Pair): Plane {
  const low = (a: 0 | 1) => Math.floor(Math.min(...path.map((p) => p[a])) - margin[a]);
  const high = (a: 0 | 1) => Math.ceil(Math.max(...path.map((p) => p[a])) + margin[a]);
  const start: [number, number] = [low(0), low(1)];
  const size: [number, number] = [high(0) + 1 - start[0], high(1) + 1 - start[1]];
  return { start, size, mask: new Uint8Array(size[0] * size[1]) };
}

/** Set the pixels within an ellipse of these radii around the line from a to b. */
function drawLine({ start, size, mask }: Plane, a: Pair, b: Pair, radii: Pair): void {
  const du = (b[0] - a[0]) / radii[0];
  const dv = (b[1] - a[1]) / radii[1];
  const squared = du * du + dv * dv;
  const range = (n: 0 | 1): Pair => [
    Math.max(Math.floor(Math.min(a[n], b[n]) - radii[n]) - start[n], 0),
    Math.min(Math.ceil(Math.max(a[n], b[n]) + radii[n]) + 1 - start[n], size[n]),
  ];
  const [rows, columns] = [range(0), range(1)];
  for (let row = rows[0]; row < rows[1]; row++) {
    const y = (row + start[0] - a[0]) / radii[0];
    for (let column = columns[0]; column < columns[1]; column++) {
      const x = (column + start[1] - a[1]) / radii[1];
      const along = squared === 0 ? 0 : Math.min(1, Math.max(0, (y * du + x * dv) / squared));
      if ((y - along * du) ** 2 + (x - along * dv) ** 2 < 1) mask[row * size[1] + column] = 1;
    }
  }
}

/** Set the pixels whose winding number is not zero. */
function fill({ start, size, mask }: Plane, path: readonly Pair[]): void {
  const windings = new Int32Array(mask.length);
  path.forEach((a, n) => {
    const b = path[(n + 1) % path.length];
    const direction = b[0] > a[0] ? 1 : -1;
    for (let row = Math.ceil(Math.min(a[0], b[0])); row < Math.max(a[0], b[0]); row++) {
      const crossing = a[1] + ((row - a[0]) / (b[0] - a[0])) * (b[1] - a[1]);
      for (let column = 0; column < size[1] && column + start[1] < crossing; column++) {
        windings[(row - start[0]) * size[1] + column] += direction;
      }
    }
  });
  windings.forEach((winding, at) => {
    if (winding !== 0) mask[at] = 1;
  });
}

/** Convert a mask in a plane to one in the volume, cropped to its set voxels and clipped to the volume. */
function placeInVolume(shape: Index, axis: Axis, first: Point, plane: Plane): MarkedVoxels | null {
  const [u, v] = inPlane(axis);
  const slice = nearest(first[axis]);
  const ranges: [Range, Range, Range] = [
    [0, 0],
    [0, 0],
    [0, 0],
  ];
  ranges[axis] = [slice, slice + 1];
  ranges[u] = [plane.start[0], plane.start[0] + plane.size[0]];
  ranges[v] = [plane.start[1], plane.start[1] + plane.size[1]];
  const inside = clip(ranges, shape);
  const rows: number[] = [];
  const columns: number[] = [];
  if (inside !== null) {
    eachSet(plane, inside[u], inside[v], (row, column) => {
      rows.push(row);
      columns.push(column);
    });
  }
  if (rows.length === 0) return null;
  const extent = (at: number[]): Range => [
    at.reduce((a, b) => Math.min(a, b)),
    at.reduce((a, b) => Math.max(a, b)) + 1,
  ];
  ranges[u] = extent(rows);
  ranges[v] = extent(columns);
  const width = ranges[v][1] - ranges[v][0];
  const mask = new Uint8Array((ranges[u][1] - ranges[u][0]) * width);
  rows.forEach((row, n) => {
    mask[(row - ranges[u][0]) * width + columns[n] - ranges[v][0]] = 1;
  });
  return { box: ranges, mask };
}

function eachSet(plane: Plane, rows: Range, columns: Range, visit: (row: number, column: number) => void): void {
  for (let row = rows[0]; row < rows[1]; row++) {
    for (let column = columns[0]; column < columns[1]; column++) {
      if (plane.mask[(row - plane.start[0]) * plane.size[1] + column - plane.start[1]] === 1) visit(row, column);
    }
  }
}
