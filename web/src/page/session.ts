/** The work on one image: the volume, its segments, the requests for them, and the status. */

import type { Connection } from '../client/connection';
import type { Core } from '../client/core';
import { messageOf } from '../client/errors';
import type { Event, MaskDeltaEvent } from '../client/events';
import { boxShape, countVoxels, isVoxelInside, wholeBox, type Box, type Index } from '../client/geometry';
import type { Segment } from '../client/history';
import type { ImageSource } from '../client/imageSource';
import type { Journal } from '../client/journal';
import { readMask } from '../client/masks';
import type { Prompt } from '../client/messages';
import type { SavedSegment, Volume } from '../files/volume';
import type { Stroke } from './gestures';
import type { Layer } from './labelmap';
import { marksOf, type Mark } from './marks';
import { boxBetween, brushStroke, filledOutline, voxelAt, type Axis, type MarkedVoxels, type Point } from './rasterize';
import { SegmentList, type SegmentInfo } from './segments';
import { connectionStatus, statusOf, type Status } from './status';
import type { Rgb, Viewer } from './viewer';

type Command = 'undo' | 'redo' | 'reset' | 'run';

/** A request without an answer. `mark`: that of its prompt. */
interface PendingRequest {
  kind: 'prompt' | Command;
  segment: string;
  mark: Mark | null;
}

/** An image on which the user works. */
export interface OpenImage {
  volume: Volume;
  source: ImageSource;
}

/** Options of all prompts. */
export interface RunOptions {
  /** Whether each prompt predicts at once. Otherwise `run` predicts. */
  live: boolean;
  /** Whether masks are shown while they are computed. */
  previews: boolean;
  /** Whether the model looks at a larger region for large objects. */
  autozoom: boolean;
}

/** Passes prompts to the server, and shows its answers. */
export class Session {
  readonly segments = new SegmentList();
  readonly options: RunOptions = { live: true, previews: true, autozoom: true };
  image: OpenImage | null = null;
  status: Status = { kind: 'idle', message: '' };
  /** Called after each change of the status, the segments or the pending requests. */
  onChange: () => void = () => undefined;
  /** Called when the journal has changed. */
  onRecord: () => void = () => undefined;

  private readonly pending = new Map<number, PendingRequest>();
  /** The segments of removals without an answer, by the number of the request. */
  private readonly removals = new Map<number, string>();
  private readonly previewing = new Set<string>();
  /** A box for each segment outside of which its mask is empty. */
  private readonly extents = new Map<string, Box>();
  private wasConnected = false;

  constructor(
    readonly connection: Connection,
    private readonly viewer: Viewer,
  ) {
    connection.onEvent((event) => {
      this.handle(event);
      this.onChange();
    });
    connection.onState((state) => {
      this.showConnection();
      this.wasConnected ||= state.state === 'connected';
    });
  }

  private get core(): Core {
    return this.connection.core;
  }

  // ---- image ----

  /**
   * Work on an image. Its segments are those of the journal.
   *
   * @throws Error - if the image cannot be shown, and a ClientError as `Core.setImage` does.
   */
  open(image: OpenImage, journal?: Journal): void {
    this.viewer.show(image.volume); // first, as it may refuse the volume
    this.image = image;
    this.pending.clear();
    this.removals.clear();
    this.previewing.clear();
    this.extents.clear();
    this.segments.clear();
    // Its events set the extents. Nothing is painted before all segments are in the list.
    this.send((core) => core.setImage(image.source, journal));
    for (const { name } of journal?.segments ?? []) this.segments.restore(name);
  }

  /** Show all segments, and add one if there is none. Call it after `open`, when their names and colors are known. */
  showSegments(): void {
    if (this.segments.all.length === 0) this.addToList();
    this.setColors();
    this.paintAll();
    this.onChange();
  }

  // ---- state ----

  /** Whether a request for a segment is waiting or running. */
  get isBusy(): boolean {
    return this.pending.size > 0;
  }

  get canUndo(): boolean {
    return this.activeSteps.done > 0;
  }

  get canRedo(): boolean {
    return this.activeSteps.undone > 0;
  }

  /** Set voxels of a segment. */
  voxels(id: string): number {
    return this.core.segments.get(id)?.voxels ?? 0;
  }

  /** The marks of the active segment's prompts, also of those without an answer. */
  get marks(): Mark[] {
    const { activeId } = this.segments;
    const answered = this.activeHistory === null ? [] : marksOf(this.activeHistory.steps, unpackStrokes);
    const waiting = [...this.pending.values()].flatMap(({ segment, mark }) =>
      segment === activeId && mark !== null ? [mark] : [],
    );
    return [...answered, ...waiting];
  }

  /** The segments to save, in the order of the list. */
  get saved(): SavedSegment[] {
    return this.segments.all.map(({ id, name, color }) => {
      const segment = this.core.segments.get(id);
      const mask = segment !== undefined && segment.voxels > 0 ? segment.mask : undefined;
      return { name, color: [color[0] / 255, color[1] / 255, color[2] / 255], mask };
    });
  }

  /** Prompts and masks of the segments in the list, to keep. Throws a ClientError, `no_image`. */
  journal(): Journal {
    const journal = this.core.journal();
    // The core has a removed segment until the server has answered.
    return { ...journal, segments: journal.segments.filter(({ name }) => this.segments.find(name) !== null) };
  }

  setStatus(status: Status): void {
    this.status = status;
    this.onChange();
  }

  /** Show the state of the connection. `elapsed`: seconds since the state began. */
  showConnection(elapsed = 0): void {
    const { state } = this.connection;
    if (state.state === 'connected' && this.isBusy) this.setStatus({ kind: 'busy', message: 'Waiting for the answer' });
    else this.setStatus(connectionStatus(state, elapsed, this.wasConnected));
  }

  /** Show an error in the status line. */
  showError(message: string): void {
    this.setStatus({ kind: 'error', message });
  }

  // ---- prompts ----

  /** Add the prompt of a stroke, drawn with a tool in a slice view. */
  addStroke({ tool, view, points }: Stroke, positive: boolean): void {
    if (this.image === null) return;
    const { shape } = this.image.volume;
    if (tool === 'point') this.addPoint(shape, points[0], positive);
    else if (tool === 'box') this.addBox(boxBetween(shape, points[0], points[points.length - 1]), positive);
    else if (tool === 'lasso') this.addLasso(filledOutline(shape, view.axis, points), positive);
    else this.addScribble(shape, view.axis, points, positive);
  }

  /** Add a point at the crosshair. */
  addPointAtCrosshair(positive: boolean): void {
    if (this.image !== null) this.addPoint(this.image.volume.shape, this.viewer.crosshair, positive);
  }

  /** Undo, redo, reset or run the active segment. */
  command(kind: Command): void {
    const { activeId } = this.segments;
    if (activeId !== null) this.request({ kind, segment: activeId, mark: null }, (core) => core[kind](activeId));
  }

  /** Cancel all waiting and running requests. */
  cancel(): void {
    for (const number of this.pending.keys()) this.connection.cancel(number);
  }

  setOptions(options: Partial<RunOptions>): void {
    Object.assign(this.options, options);
    const { previews, autozoom } = this.options;
    this.start((core) => core.setOptions({ previews, autozoom }));
  }

  // ---- segments ----

  addSegment(): void {
    if (this.addToList() === null) this.showError('There are too many segments. Delete one, or open the image again.');
    this.setColors();
    this.onRecord();
    this.onChange();
  }

  /** Make a segment the one that prompts apply to, and show it above the others. */
  select(id: string): void {
    this.segments.activeId = id;
    this.paintAll();
    this.onChange();
  }

  /** Remove a segment with its prompts. This cannot be undone. */
  removeSegment(id: string): void {
    const box = this.extents.get(id);
    const name = this.segments.find(id)?.name ?? id;
    this.segments.remove(id);
    if (this.usedIds.has(id)) {
      this.setStatus({ kind: 'ready', message: `${name} was deleted.` });
      this.cancelRequests(id);
      this.start((core) => {
        const number = core.removeSegment(id);
        this.removals.set(number, id);
        return number;
      });
    }
    this.extents.delete(id);
    this.previewing.delete(id);
    if (box !== undefined) this.viewer.paint(box, this.layers());
    this.onRecord();
    this.onChange();
  }

  /** Change name, color or visibility. */
  change(segment: SegmentInfo, changes: { name?: string; color?: Rgb; isVisible?: boolean }): void {
    Object.assign(segment, changes);
    this.setColors();
    const box = this.extents.get(segment.id);
    if (box !== undefined && changes.isVisible !== undefined) this.viewer.paint(box, this.layers());
    this.onRecord();
    this.onChange();
  }

  // ---- internal ----

  private get activeHistory(): Segment | null {
    const { activeId } = this.segments;
    return activeId === null ? null : (this.core.segments.get(activeId) ?? null);
  }

  /** Number of steps that the active segment can undo and redo when all pending requests are answered. */
  private get activeSteps(): { done: number; undone: number } {
    let done = this.activeHistory?.steps.length ?? 0;
    let undone = this.activeHistory?.undone.length ?? 0;
    for (const { kind, segment } of this.pending.values()) {
      if (segment !== this.segments.activeId) continue;
      if (kind === 'undo') [done, undone] = [done - 1, undone + 1];
      else if (kind === 'redo') [done, undone] = [done + 1, undone - 1];
      // A run is a step only if there is something to predict.
      else [done, undone] = [kind === 'run' ? done : done + 1, 0];
    }
    return { done, undone };
  }

  /** Ids of segments that the server has or may have, also after they were removed from the list. */
  private get usedIds(): Set<string> {
    const pending = Array.from(this.pending.values(), ({ segment }) => segment);
    return new Set([...this.core.segments.keys(), ...pending, ...this.removals.values()]);
  }

  private addToList(): SegmentInfo | null {
    return this.segments.add(this.usedIds);
  }

  /** Cancel the requests of a segment that is removed. Their answers are not needed. */
  private cancelRequests(id: string): void {
    for (const [number, { segment }] of this.pending) {
      if (segment !== id) continue;
      this.pending.delete(number);
      this.connection.cancel(number);
    }
  }

  private addPoint(shape: Index, position: Point, positive: boolean): void {
    const point = voxelAt(position);
    if (!isVoxelInside(point, shape)) this.showError('The point is outside the image. Click inside the image.');
    else
      this.prompt({ kind: 'point', positive, point }, (core, id, run) => core.addPoint(id, point, { positive, run }));
  }

  private addBox(box: Box | null, positive: boolean): void {
    if (box === null) this.showError('The box is outside the image. Draw it inside the image.');
    else this.prompt({ kind: 'box', positive, box }, (core, id, run) => core.addBbox(id, box, { positive, run }));
  }

  private addLasso(strokes: MarkedVoxels | null, positive: boolean): void {
    if (strokes === null) {
      this.showError('The lasso encloses no voxel of the image. Draw a larger outline.');
      return;
    }
    const { mask, box } = strokes;
    this.prompt({ kind: 'strokes', positive, strokes }, (core, id, run) =>
      core.addLasso(id, mask, box, { positive, run }),
    );
  }

  private addScribble(shape: Index, axis: Axis, points: readonly Point[], positive: boolean): void {
    const thickness = this.core.welcome?.model.scribble_thickness;
    if (thickness === undefined) {
      this.showError('The scribble needs the model of the server. Wait for the connection.');
      return;
    }
    const strokes = brushStroke(shape, axis, points, thickness);
    if (strokes === null) {
      this.showError('The scribble is outside the image. Draw it inside the image.');
      return;
    }
    const { mask, box } = strokes;
    this.prompt({ kind: 'strokes', positive, strokes }, (core, id, run) =>
      core.addScribble(id, mask, box, { positive, run }),
    );
  }

  private prompt(mark: Mark, add: (core: Core, segment: string, run: boolean) => number): void {
    const segment = this.segments.active ?? this.addToList();
    if (segment === null) return;
    if (!segment.isVisible) this.change(segment, { isVisible: true });
    const pending = { kind: 'prompt', segment: segment.id, mark } as const;
    this.request(pending, (core) => add(core, segment.id, this.options.live));
  }

  private request(pending: PendingRequest, command: (core: Core) => number): void {
    this.start((core) => {
      const number = command(core);
      this.pending.set(number, pending);
      return number;
    });
  }

  /** Send a request, and show an error of its arguments in the status line. */
  private start(command: (core: Core) => number): void {
    try {
      this.send(command);
    } catch (error) {
      this.showError(messageOf(error));
    }
  }

  /** Send a request. Its answer comes as an event, also if it is an error. Throws for invalid arguments. */
  private send(command: (core: Core) => number): void {
    this.connection.request(command).catch(() => undefined);
    this.viewer.drawAbove();
    // Without a connection, the request is queued, and there is no event for it.
    if (this.connection.state.state === 'connected') this.onChange();
    else this.showConnection();
  }

  private handle(event: Event): void {
    if (!this.isBackground(event)) this.status = statusOf(event) ?? this.status;
    if (event.type === 'mask_delta') this.onMaskDelta(event);
    else if (event.type === 'done') this.onAnswer(event.result.request);
    else if (event.type === 'failed') this.onAnswer(event.request);
    else if (event.type === 'masks_dropped') this.paintAll();
    else if (event.type === 'segment_removed') this.onRemoved(event.segment);
  }

  /** Whether an event belongs to work that the user is not waiting for, or must not replace the status. */
  private isBackground(event: Event): boolean {
    switch (event.type) {
      case 'image_progress':
        // An error stays until the next action of the user.
        return this.isBusy || this.status.kind === 'error' || this.status.kind === 'warning';
      case 'progress':
        return event.segment !== null && this.segments.find(event.segment) === null;
      case 'done':
        return !this.pending.has(event.result.request);
      case 'failed':
        // A prompt that is canceled together with its segment creates none.
        if (event.error.code === 'unknown_segment') return this.removals.has(event.request);
        return event.error.code === 'cancelled' && !this.pending.has(event.request);
      default:
        return false;
    }
  }

  private onMaskDelta({ segment, box, change, final }: MaskDeltaEvent): void {
    if (change.length > 0) this.extents.set(segment, union(this.extents.get(segment), box));
    if (this.segments.find(segment) === null) return; // not yet in the list, or no longer
    this.setPreview(segment, !final);
    this.viewer.paint(box, this.layers());
  }

  private onRemoved(segment: string): void {
    const box = this.extents.get(segment);
    this.extents.delete(segment);
    if (box !== undefined) this.viewer.paint(box, this.layers());
    this.onRecord();
  }

  private onAnswer(request: number): void {
    this.removals.delete(request);
    const answered = this.pending.get(request);
    if (answered === undefined) return;
    this.pending.delete(request);
    // A request ends with a preview if that was already its result.
    this.setPreview(answered.segment, false);
    this.onRecord();
    this.viewer.drawAbove();
  }

  private setPreview(segment: string, isPreview: boolean): void {
    if (this.previewing.has(segment) === isPreview) return;
    if (isPreview) this.previewing.add(segment);
    else this.previewing.delete(segment);
    this.setColors();
  }

  private setColors(): void {
    const colors = this.segments.all.map(
      ({ id, label, color }) => [label, { color, isPreview: this.previewing.has(id) }] as const,
    );
    this.viewer.setColors(new Map(colors));
  }

  /** The masks of the visible segments. The active one is on top. */
  private layers(): Layer[] {
    const { all, active } = this.segments;
    const ordered = active === null ? all : [active, ...all.filter((segment) => segment !== active)];
    return ordered.flatMap(({ id, label, isVisible }) => {
      const segment = this.core.segments.get(id);
      return isVisible && segment !== undefined && segment.voxels > 0 ? [{ mask: segment.mask, label }] : [];
    });
  }

  private paintAll(): void {
    const box = [...this.extents.values()].reduce<Box | undefined>((all, each) => union(all, each), undefined);
    if (box !== undefined) this.viewer.paint(box, this.layers());
    else this.viewer.drawAbove();
  }
}

function unpackStrokes(request: Prompt): MarkedVoxels {
  if (!('mask' in request)) throw new Error(`A prompt of type ${request.type} has no mask.`);
  const { box } = request.mask;
  const shape = boxShape(box);
  const runs = readMask({ ...request.mask, box: wholeBox(shape) }, shape);
  const mask = new Uint8Array(countVoxels(shape));
  for (let n = 0; n < runs.length; n += 2) mask.fill(1, runs[n], runs[n + 1]);
  return { box, mask };
}

function union(a: Box | undefined, b: Box): Box {
  if (a === undefined) return b;
  const range = (n: 0 | 1 | 2) => [Math.min(a[n][0], b[n][0]), Math.max(a[n][1], b[n][1])] as const;
  return [range(0), range(1), range(2)];
}
