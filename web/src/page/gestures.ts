/** Pointer input in the views: strokes of the tools, and navigation. */

import type { Point } from './rasterize';
import type { Pixel, SliceView, Viewer } from './viewer';

/** A way to prompt. */
export type Tool = 'point' | 'box' | 'scribble' | 'lasso';

/** A gesture of a tool, or the part of it that was drawn so far. */
export interface Stroke {
  tool: Tool;
  view: SliceView;
  /** The path in voxel coordinates, all in the slice of the view. */
  points: Point[];
}

/** Change of the window for each pixel of a drag, as a fraction of the window's width. */
const WINDOW_STEP = 1 / 200;
const DEGREES_PER_PIXEL = 0.5;
const ZOOM_PER_WHEEL_STEP = 1.15;
/** Vertical distance of one step of a wheel or a touch pad, in pixels of CSS. */
const WHEEL_STEP = 40;

type Drag = 'stroke' | 'crosshair' | 'rotate' | 'pan' | 'window';

/**
 * Handles the pointer. The primary button uses the tool in slice views, moves the crosshair without a tool or with the
 * Shift key, and rotates the 3-D view. The secondary button changes the window, and the middle one moves the slices. Two
 * fingers move and magnify the slices.
 */
export class Gestures {
  /** The tool in use, or null to navigate. */
  tool: Tool | null = null;
  /** The stroke that is being drawn. */
  stroke: Stroke | null = null;
  /** Called with a complete stroke. */
  onStroke: (stroke: Stroke) => void = () => undefined;

  private readonly pointers = new Map<number, Pixel>();
  private drag: Drag | null = null;
  private view: SliceView | null = null;
  private wheel = 0;

  constructor(
    private readonly target: HTMLElement,
    private readonly viewer: Viewer,
  ) {
    target.addEventListener('pointerdown', (event) => {
      this.handle(() => {
        this.onDown(event);
      });
    });
    target.addEventListener('pointermove', (event) => {
      this.handle(() => {
        this.onMove(event);
      });
    });
    target.addEventListener('pointerup', (event) => {
      this.handle(() => {
        this.onUp(event);
      });
    });
    target.addEventListener('pointercancel', (event) => {
      this.pointers.delete(event.pointerId);
      this.abandon();
    });
    target.addEventListener(
      'wheel',
      (event) => {
        this.onWheel(event);
      },
      { passive: false },
    );
    target.addEventListener('contextmenu', (event) => {
      event.preventDefault();
    });
  }

  /** Discard the stroke that is being drawn. Return whether there was one. */
  abandon(): boolean {
    const wasDrawing = this.stroke !== null;
    this.stroke = null;
    this.drag = null;
    this.viewer.drawAbove();
    return wasDrawing;
  }

  /** Handle an event. An error discards the stroke, which would stay on the screen. */
  private handle(action: () => void): void {
    try {
      action();
    } catch (error) {
      this.abandon();
      throw error;
    }
  }

  private onDown(event: PointerEvent): void {
    const at = this.pixel(event);
    this.target.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, at);
    if (this.pointers.size > 1) {
      this.abandon();
      return;
    }
    const view = this.viewer.viewAt(...at);
    this.view = view === 'render' ? null : view;
    this.drag = view === null ? null : view === 'render' ? 'rotate' : this.dragOf(event);
    if (this.drag === 'stroke' && this.view !== null && this.tool !== null) {
      this.stroke = { tool: this.tool, view: this.view, points: [this.view.toVoxel(...at)] };
    }
    if (this.drag === 'crosshair') this.moveCrosshair(at);
  }

  private dragOf({ button, shiftKey }: PointerEvent): Drag | null {
    if (button === 1) return 'pan';
    if (button === 2) return 'window';
    if (button !== 0) return null;
    return this.tool === null || shiftKey ? 'crosshair' : 'stroke';
  }

  private onMove(event: PointerEvent): void {
    const before = this.pointers.get(event.pointerId);
    if (before === undefined) return;
    const at = this.pixel(event);
    if (this.pointers.size === 2) {
      this.onTwoFingers(event.pointerId, before, at);
    } else if (this.drag === 'stroke') {
      this.extend(event);
    } else if (this.drag === 'crosshair') {
      this.moveCrosshair(at);
    } else if (this.drag === 'rotate') {
      this.viewer.rotate((at[0] - before[0]) * DEGREES_PER_PIXEL, (at[1] - before[1]) * DEGREES_PER_PIXEL);
    } else if (this.drag === 'pan' && this.view !== null) {
      this.viewer.pan(this.view, before, at);
    } else if (this.drag === 'window') {
      this.changeWindow(at[0] - before[0], at[1] - before[1]);
    }
    this.pointers.set(event.pointerId, at);
  }

  private onUp(event: PointerEvent): void {
    if (!this.pointers.delete(event.pointerId)) return;
    const { stroke } = this;
    if (stroke !== null && stroke.tool !== 'point') this.extend(event);
    this.abandon();
    if (stroke !== null) this.onStroke(stroke);
  }

  private extend(event: PointerEvent): void {
    const { stroke, view } = this;
    if (stroke === null || view === null || stroke.tool === 'point') return;
    const points = coalesced(event).map((each) => view.toVoxel(...this.pixel(each)));
    stroke.points =
      stroke.tool === 'box' ? [stroke.points[0], points[points.length - 1]] : [...stroke.points, ...points];
    this.viewer.drawAbove();
  }

  private moveCrosshair(at: Pixel): void {
    const view = this.viewer.viewAt(...at);
    if (view === null || view === 'render' || view.axis !== this.view?.axis) return;
    this.viewer.moveTo(view.toVoxel(...at));
  }

  private changeWindow(dx: number, dy: number): void {
    const { low, high } = this.viewer.window;
    const width = Math.max(high - low, Number.MIN_VALUE);
    const level = (low + high) / 2 + dy * width * WINDOW_STEP;
    const changed = Math.max(width * (1 + dx * WINDOW_STEP), Number.MIN_VALUE);
    this.viewer.window = { low: level - changed / 2, high: level + changed / 2 };
  }

  private onTwoFingers(pointer: number, before: Pixel, at: Pixel): void {
    const other = [...this.pointers].find(([id]) => id !== pointer)?.[1];
    const { view } = this;
    if (other === undefined || view === null) return;
    const distance = (a: Pixel) => Math.max(1, Math.hypot(a[0] - other[0], a[1] - other[1]));
    const middle = (a: Pixel): Pixel => [(a[0] + other[0]) / 2, (a[1] + other[1]) / 2];
    this.viewer.pan(view, middle(before), middle(at));
    this.viewer.zoom(view, ...middle(at), distance(at) / distance(before));
  }

  private onWheel(event: WheelEvent): void {
    if (this.stroke !== null) {
      event.preventDefault(); // the stroke is in the slice that it began in
      return;
    }
    const at = this.pixel(event);
    const view = this.viewer.viewAt(...at);
    if (view === null) return;
    event.preventDefault();
    this.wheel += event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? event.deltaY : event.deltaY * WHEEL_STEP;
    const steps = Math.trunc(this.wheel / WHEEL_STEP);
    this.wheel -= steps * WHEEL_STEP;
    if (steps === 0) return;
    if (view === 'render') this.viewer.zoomRender(ZOOM_PER_WHEEL_STEP ** -steps);
    else if (event.ctrlKey || event.metaKey) this.viewer.zoom(view, ...at, ZOOM_PER_WHEEL_STEP ** -steps);
    else this.viewer.scroll(view, -Math.sign(steps));
  }

  private pixel(event: MouseEvent): Pixel {
    const { left, top } = this.target.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  }
}

/** Return the positions between two frames, which the browser delivers in one event. */
function coalesced(event: PointerEvent): PointerEvent[] {
  // Firefox has the method on secure origins only, and old versions of Safari do not have it.
  const events = 'getCoalescedEvents' in event ? event.getCoalescedEvents() : [];
  return events.length > 0 ? events : [event];
}

/** Return the position in the middle of a stroke, which is on its line unless it encloses something. */
export function middleOf({ tool, points }: Stroke): Point {
  if (tool === 'point' || tool === 'scribble') return points[points.length >> 1];
  const middle = (axis: 0 | 1 | 2) => {
    const along = points.map((point) => point[axis]);
    return (along.reduce((a, b) => Math.min(a, b)) + along.reduce((a, b) => Math.max(a, b))) / 2;
  };
  return [middle(0), middle(1), middle(2)];
}

/** Draw the part of a stroke that is drawn so far. */
export function drawTrail(context: CanvasRenderingContext2D, { tool, view, points }: Stroke, color: string): void {
  const path = points.map((point) => view.toPixel(point));
  context.lineWidth = 2;
  context.strokeStyle = color;
  context.setLineDash([]);
  context.beginPath();
  if (tool === 'box') {
    const [[x0, y0], [x1, y1]] = [path[0], path[path.length - 1]];
    context.rect(x0, y0, x1 - x0, y1 - y0);
  } else {
    for (const [x, y] of path) context.lineTo(x, y);
    if (tool === 'lasso') context.closePath();
  }
  context.stroke();
}
