/** Marks of prompts, drawn above the slices. */

import type { Box, Index } from '../client/geometry';
import type { Prompt, Step } from '../client/messages';
import { inPlane, type Axis, type MarkedVoxels, type Point } from './rasterize';
import type { SliceView } from './viewer';

/** Bright colors, which stand out from those of segments. */
export const POSITIVE = '#33ff4d';
export const NEGATIVE = '#ff5a4a';

/** A prompt to show. Boxes are end-exclusive, in voxels. */
export type Mark = { positive: boolean } & (
  { kind: 'point'; point: Index } | { kind: 'box'; box: Box } | { kind: 'strokes'; strokes: MarkedVoxels }
);

/** Unpacks the voxels of a scribble or a lasso. */
export type UnpackStrokes = (request: Prompt) => MarkedVoxels;

/** Return the marks of the prompts that count: those since the last reset. */
export function marksOf(steps: readonly Step[], unpack: UnpackStrokes): Mark[] {
  const first = steps.findLastIndex(({ request }) => request.type === 'reset' || request.type === 'set_mask') + 1;
  return steps.slice(first).flatMap(({ request }) => (isPrompt(request) ? [markOf(request, unpack)] : []));
}

function isPrompt(request: Step['request']): request is Prompt {
  return request.type.startsWith('add_');
}

const markCache = new WeakMap<Prompt, Mark>();

function markOf(request: Prompt, unpack: UnpackStrokes): Mark {
  const mark = markCache.get(request) ?? newMark(request, unpack);
  markCache.set(request, mark);
  return mark;
}

function newMark(request: Prompt, unpack: UnpackStrokes): Mark {
  const { positive } = request;
  if (request.type === 'add_point') return { kind: 'point', positive, point: request.point };
  if (request.type === 'add_bbox') return { kind: 'box', positive, box: request.box };
  return { kind: 'strokes', positive, strokes: unpack(request) };
}

/** Draw marks in a slice view, and return how many it shows. */
export function drawMarks(context: CanvasRenderingContext2D, view: SliceView, marks: readonly Mark[]): number {
  const shown = marks.filter((mark) => isIn(view, mark));
  context.save();
  context.beginPath();
  context.rect(...view.frame);
  context.clip();
  for (const mark of shown) {
    const path = pathOf(view, mark);
    // A dark outline keeps the mark visible on bright voxels.
    for (const [width, color] of [
      [4, 'rgb(0 0 0 / 60%)'],
      [2, mark.positive ? POSITIVE : NEGATIVE],
    ] as const) {
      context.lineWidth = width;
      context.strokeStyle = color;
      // Dashes mark a negative prompt for users who do not see the color.
      context.setLineDash(mark.positive || mark.kind === 'point' ? [] : [6, 4]);
      context.stroke(path);
    }
  }
  context.restore();
  return shown.length;
}

function isIn({ axis, slice }: SliceView, mark: Mark): boolean {
  if (mark.kind === 'point') return mark.point[axis] === slice;
  const box = mark.kind === 'box' ? mark.box : mark.strokes.box;
  const [start, stop] = box[axis];
  // A prompt that was drawn in a slice is shown in this slice only, and a box in space in all views.
  const isFlat = stop - start === 1 || box.every(([from, to]) => to - from > 1);
  return isFlat && start <= slice && slice < stop;
}

function pathOf(view: SliceView, mark: Mark): Path2D {
  if (mark.kind === 'point') return pointPath(view, mark.point, mark.positive);
  return mark.kind === 'box' ? boxPath(view, mark.box) : contourPath(view, mark.strokes);
}

const RADIUS = 6;

function pointPath(view: SliceView, point: Point, positive: boolean): Path2D {
  const [x, y] = view.toPixel(point);
  const path = new Path2D();
  path.moveTo(x - RADIUS, y);
  path.lineTo(x + RADIUS, y);
  if (positive) {
    path.moveTo(x, y - RADIUS);
    path.lineTo(x, y + RADIUS);
  }
  return path;
}

function boxPath(view: SliceView, box: Box): Path2D {
  const path = new Path2D();
  const [x0, y0] = view.toPixel([box[0][0] - 0.5, box[1][0] - 0.5, box[2][0] - 0.5]);
  const [x1, y1] = view.toPixel([box[0][1] - 0.5, box[1][1] - 0.5, box[2][1] - 0.5]);
  path.rect(x0, y0, x1 - x0, y1 - y0);
  return path;
}

/** Outlines of strokes, by axis. */
const outlineCache = new WeakMap<MarkedVoxels, Partial<Record<Axis, Point[][]>>>();

/** The outline of the marked voxels. */
function contourPath(view: SliceView, strokes: MarkedVoxels): Path2D {
  const path = new Path2D();
  const outlines = (outlineCache.get(strokes) ?? {})[view.axis] ?? outlinesOf(strokes, view.axis);
  outlineCache.set(strokes, { ...outlineCache.get(strokes), [view.axis]: outlines });
  for (const outline of outlines) {
    outline.forEach((corner, n) => {
      const pixel = view.toPixel(corner);
      if (n === 0) path.moveTo(...pixel);
      else path.lineTo(...pixel);
    });
    path.closePath();
  }
  return path;
}

/**
 * Return the closed outlines of the marked voxels in a slice orthogonal to `axis`, as their corners in order. They are
 * lines and not single edges, so that they can be dashed.
 */
export function outlinesOf(strokes: MarkedVoxels, axis: Axis): Point[][] {
  const neighbors = new Map<string, Point[]>();
  const connect = (a: Point, b: Point) => {
    neighbors.set(a.join(), [...(neighbors.get(a.join()) ?? []), b]);
  };
  const edges = edgesOf(strokes, axis);
  for (const [a, b] of edges) {
    connect(a, b);
    connect(b, a);
  }
  const outlines: Point[][] = [];
  for (const [start] of edges) {
    const outline: Point[] = [];
    // As many edges end at a corner as begin there, so a walk along unused edges ends at its start.
    for (let at = start, next = take(neighbors, at); next !== null; at = next, next = take(neighbors, at)) {
      outline.push(at);
    }
    if (outline.length > 0) outlines.push(outline);
  }
  return outlines;
}

/** Remove an edge at a corner, and return its other end, or null if there is none left. */
function take(neighbors: Map<string, Point[]>, corner: Point): Point | null {
  const other = neighbors.get(corner.join())?.pop();
  if (other === undefined) return null;
  const back = neighbors.get(other.join()) ?? [];
  back.splice(
    back.findIndex((each) => each.join() === corner.join()),
    1,
  );
  return other;
}

/** Return the edges between marked and other voxels, as pairs of corners. */
function edgesOf({ box, mask }: MarkedVoxels, axis: Axis): [Point, Point][] {
  const [u, v] = inPlane(axis);
  const [rows, columns] = [box[u][1] - box[u][0], box[v][1] - box[v][0]];
  const isSet = (row: number, column: number) =>
    row >= 0 && row < rows && column >= 0 && column < columns && mask[row * columns + column] === 1;
  const corner = (row: number, column: number): Point => {
    const point: [number, number, number] = [0, 0, 0];
    point[axis] = box[axis][0];
    point[u] = box[u][0] + row - 0.5;
    point[v] = box[v][0] + column - 0.5;
    return point;
  };
  const edges: [Point, Point][] = [];
  for (let row = 0; row <= rows; row++) {
    for (let column = 0; column <= columns; column++) {
      const here = isSet(row, column);
      if (here !== isSet(row - 1, column)) edges.push([corner(row, column), corner(row, column + 1)]);
      if (here !== isSet(row, column - 1)) edges.push([corner(row, column), corner(row + 1, column)]);
    }
  }
  return edges;
}
