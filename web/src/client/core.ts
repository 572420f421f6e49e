/**
 * The client without I/O: commands and frames in, frames and events out; the clock is passed in.
 *
 * A driver calls `start`, sends the frames of `nextControl` and, after those, of `nextBricks`, and passes every received
 * frame to `receive`. The core keeps the history of each segment. After a connection was lost, `start` begins another
 * one: it resumes the session, or restores it if the server no longer has it. Commands may be called at any time.
 */
import { BRICK } from './bricks';
import { ClientError, errorFromServer } from './errors';
import type { Event, MaskDeltaEvent } from './events';
import { boxAround, checkBox, middle, voxelInside, wholeBox, type Box, type Index } from './geometry';
import { Segment } from './history';
import { maskInput, promptMask, segmentMask } from './inputs';
import { makeJournal, segmentsOf, type Journal } from './journal';
import { Link } from './link';
import { boundingBox, checksum, compose, FIRST_VOXEL, flip, NO_CHANGE, readMask, runsOf, type Runs } from './masks';
import type {
  Brick,
  ClientMessage,
  Done,
  DType,
  Encoding,
  ErrorMessage,
  ImageProgress,
  MaskDelta,
  MaskSnapshot,
  Notice,
  Progress,
  Prompt,
  Request,
  Restore,
  RunLengthMask,
  ServerMessage,
  SetImage,
  SetOptions,
  Welcome,
} from './messages';
import {
  checkSegment,
  createsSegment,
  isHeartbeat,
  isObsolete,
  makePending,
  retryError,
  segmentOf,
  type Pending,
} from './pending';
import { decode, encode, FEATURES, LAYERED_BRICKS, MAX_MESSAGE_BYTES, PROTOCOL_VERSION } from './protocol';
import { MAX_BRICKS_PER_MESSAGE, Upload, type BrickPart } from './upload';
import { bytesPerVoxel } from './voxels';

/** A server keeps this many answers at least. */
const MAX_REPEATED = 1024;
/** Bytes of a message of bricks besides their voxels, at most. */
const BRICK_OVERHEAD = 1024;
/** After these errors of a restore, the server may still accept the mask without its history. */
const HISTORY_REFUSED = new Set(['unsupported_prompt', 'out_of_memory', 'at_capacity', 'too_large']);

/** An image that can be announced. `ImageSource` is one. */
export interface Image {
  /** On the wire: one name for one content. */
  readonly name: string;
  readonly shape: Index;
  readonly dtype: DType;
  readonly statistics: { readonly mean: number; readonly std: number };
  /** Number of bits in the enhancement layer of a brick; 0: bricks are better sent without layers. */
  readonly lowBits: number;
}

/** Bricks to send, the best first. */
export interface BrickBatch<I extends Image> {
  readonly image: I;
  readonly parts: readonly BrickPart[];
  readonly encoding: Encoding;
  /** The upload to which they belong. Another image may follow before they are packed. */
  readonly upload: Upload;
}

/** Identity of a session on the server, with which it can be resumed, also after a reload of the page. */
export interface SavedSession {
  readonly id: string;
  readonly secret: string;
}

/** Options of a Core. */
export interface CoreOptions {
  /** Array encodings, best first. Default: deflate, raw. */
  readonly encodings?: readonly Encoding[];
  /** Returns seconds. Default: those of this page. */
  readonly clock?: () => number;
  /** A session of the same tab before a reload. Its image and segments are set again. Bricks that the server has are not sent again. */
  readonly session?: SavedSession;
  /** Whether a session begins with a heartbeat, so that `ping` soon has an answered one to repeat. Default false. */
  readonly keepalive?: boolean;
}

/** Options of a prompt. */
export interface PromptOptions {
  /** false: the prompt marks background. Default true. */
  readonly positive?: boolean;
  /** Whether to predict at once. Default true. */
  readonly run?: boolean;
}

/** A request without an id. */
type WithoutId<R> = R extends { readonly id: number } ? Omit<R, 'id'> : never;

type Options = WithoutId<SetOptions>;

/**
 * The protocol's client side, without I/O.
 *
 * A command returns the number of its request, which its events carry. Commands throw a ClientError for arguments that
 * cannot be sent (`no_image`, `out_of_bounds`, `unsupported_prompt`). Masks of arguments have one byte per voxel,
 * nonzero for set, in C order, of the shape of `box`, or of the volume if `box` is null.
 */
export class Core<I extends Image = Image> {
  /** The segments, from the first change of their first prompt on. */
  readonly segments = new Map<string, Segment>();
  /** The server's welcome on this connection, or null before it. */
  welcome: Welcome | null = null;
  /** Error that ended this connection, or null. A driver then closes the connection. */
  ended: ClientError | null = null;
  image: I | null = null;
  /** The session on the server, or null before the first welcome. */
  session: SavedSession | null;

  private readonly encodings: readonly Encoding[];
  private readonly clock: () => number;
  private readonly beginsWithHeartbeat: boolean;
  private control: Uint8Array<ArrayBuffer>[] = [];
  private pending = new Map<number, Pending>();
  private lastId = 0;
  private upload: Upload | null = null;
  /** What this connection has shown; null before its first upload. */
  private link: Link | null = null;
  /** Number of the image now. The same image gets another one if it is set again, which drops its segments. */
  private generation = 0;
  /** Focus of the user in the image now, or null. */
  private focus: Index | null = null;
  /** Segments with a pending snapshot, with the answers that are held back until it is there. */
  private readonly stale = new Map<string, Event[]>();
  private options: Options = { type: 'set_options', autozoom: null, previews: null };
  /** Whether the session is one of an earlier page, whose state this core does not know. */
  private isAdopted: boolean;
  private isEvicted = false;
  /** The last answered heartbeat of this session, see `ping`. */
  private heartbeat: Request | null = null;
  private events: Event[] = [];

  constructor(options: CoreOptions = {}) {
    this.encodings = options.encodings ?? ['deflate', 'raw'];
    this.clock = options.clock ?? (() => performance.now() / 1000);
    this.session = options.session ?? null;
    this.beginsWithHeartbeat = options.keepalive ?? false;
    this.isAdopted = this.session !== null;
  }

  // ---- frames -----------------------------------------------------------------------------------------------

  /** Begin a connection: the first, or another after one was lost. Previews are reverted; see `takeEvents`. */
  start(): void {
    this.control = [];
    this.welcome = this.ended = this.upload = this.link = null;
    this.isEvicted = false;
    for (const pending of this.pending.values()) this.revertPreviews(pending);
    for (const name of this.stale.keys()) this.rebuild(name);
    const hello = encode({
      type: 'hello',
      version: PROTOCOL_VERSION,
      client: 'nninteractive-ws web page',
      features: FEATURES,
      encodings: this.encodings,
      session_id: this.session?.id ?? null,
      session_secret: this.session?.secret ?? null,
      allow_eviction: true,
    });
    this.control.push(hello);
  }

  /** Let the next connection begin a new session, and restore everything there. */
  forgetSession(): void {
    this.session = null;
  }

  /** Whether the session was evicted, so that it needs no connection before the next request. */
  get isDormant(): boolean {
    return this.isEvicted && this.pendingRequests.length === 0;
  }

  /** Return the next frame that is no part of the image, or null. */
  nextControl(): Uint8Array<ArrayBuffer> | null {
    return this.control.shift() ?? null;
  }

  /** Return the bricks of the next image frame, or null. The driver packs them, see `brickFrame`. */
  nextBricks(): BrickBatch<I> | null {
    const { image, upload, welcome } = this;
    if (upload === null || image === null || welcome === null) return null;
    const bytes = BRICK ** 3 * bytesPerVoxel(image.dtype) + BRICK_OVERHEAD;
    const fit = Math.max(1, Math.floor(welcome.limits.message_bytes / bytes) - 1);
    const parts = upload.next(Math.min(MAX_BRICKS_PER_MESSAGE, fit), this.maySendLayers(image, welcome));
    return parts.length === 0 ? null : { image, parts, encoding: upload.encodingOf(parts), upload };
  }

  /** Return the frame of packed bricks, or null if their upload has ended: the server may refuse their layers. */
  brickFrame(batch: BrickBatch<I>, bricks: readonly Brick[]): Uint8Array<ArrayBuffer> | null {
    if (batch.upload !== this.upload) return null;
    const frame = encode({ type: 'image_bricks', image: batch.image.name, bricks });
    batch.upload.sent(batch.parts, frame.length, batch.encoding);
    return frame;
  }

  /** Whether bricks may be sent in layers, which is of use for previews alone. */
  private maySendLayers(image: I, welcome: Welcome): boolean {
    // The server forgets base layers when a set_image arrives, and those of another image when it handles it.
    const isAnnounced = [...this.pending.values()].every(({ request }) => request.type !== 'set_image');
    const isOfUse = this.options.previews !== false && isAnnounced && image.lowBits > 0;
    return isOfUse && welcome.features.includes(LAYERED_BRICKS);
  }

  /** Handle a frame, and return its events. It may set `ended`; a frame that is wrong does. */
  receive(frame: Uint8Array): Event[] {
    try {
      const message = decode(frame);
      if (message !== null) this.handle(message);
    } catch (error) {
      if (!(error instanceof ClientError)) throw error;
      this.ended = error;
    }
    return this.takeEvents();
  }

  /** Return the events of commands and of `start`, once. */
  takeEvents(): Event[] {
    const events = this.events;
    this.events = [];
    return events;
  }

  // ---- commands: each returns the number of its request -----------------------------------------------------

  /**
   * Announce an image; its bricks follow. Remove all segments, and restore those of `journal`.
   *
   * Pending requests are cancelled, because they may wait for bricks of the old image.
   *
   * @throws ClientError - `bad_journal` if the journal belongs to another image or is damaged.
   */
  setImage(image: I, journal?: Journal): number {
    const restored = journal === undefined ? [] : segmentsOf(journal, image.name, image.shape);
    this.cancel();
    this.replaceImage(image);
    const number = this.request(announcement(image));
    for (const segment of restored) {
      this.segments.set(segment.name, segment);
      this.enqueue(this.restoreMessage(segment), null);
      this.emitReplaced(segment, NO_CHANGE, segment.composed());
    }
    return number;
  }

  /** Return prompts and masks, to continue another day. Pending requests are left out. Throws `no_image`. */
  journal(): Journal {
    const used = [...this.segments.values()].filter((segment) => !segment.isEmpty);
    return makeJournal(this.currentImage().name, this.shape(), used);
  }

  /** Add a point, the voxel (i, j, k). */
  addPoint(segment: string, point: Index, { positive = true, run = true }: PromptOptions = {}): number {
    const voxel = voxelInside(point, this.shape());
    this.setFocus(voxel);
    return this.prompt({ type: 'add_point', segment, point: voxel, positive, run });
  }

  /** Add an end-exclusive box. */
  addBbox(segment: string, box: Box, { positive = true, run = true }: PromptOptions = {}): number {
    checkBox(box, this.shape());
    this.setFocus(middle(box));
    return this.prompt({ type: 'add_bbox', segment, box, positive, run });
  }

  /** Add strokes, at least one voxel. */
  addScribble(segment: string, mask: Uint8Array, box: Box | null, options: PromptOptions = {}): number {
    const { positive = true, run = true } = options;
    return this.prompt({ type: 'add_scribble', segment, mask: this.packed(promptMask, mask, box), positive, run });
  }

  /** Add a filled outline, at least one voxel. */
  addLasso(segment: string, mask: Uint8Array, box: Box | null, options: PromptOptions = {}): number {
    const { positive = true, run = true } = options;
    return this.prompt({ type: 'add_lasso', segment, mask: this.packed(promptMask, mask, box), positive, run });
  }

  /** Replace the segment's mask, which is empty outside of `box`. `run`: whether the model refines it. */
  setMask(
    segment: string,
    mask: Uint8Array,
    box: Box | null,
    { run = false }: { readonly run?: boolean } = {},
  ): number {
    return this.request({ type: 'set_mask', segment, mask: this.packed(segmentMask, mask, box), flip: false, run });
  }

  /** Flip voxels of the segment's mask, for edits by hand. They apply to the mask after all earlier requests. */
  flipMask(segment: string, flips: Uint8Array, box: Box | null): number {
    return this.request({
      type: 'set_mask',
      segment,
      mask: this.packed(segmentMask, flips, box),
      flip: true,
      run: false,
    });
  }

  /** Predict from the prompts added with `run` false. */
  run(segment: string): number {
    return this.request({ type: 'run', segment });
  }

  /** Undo the last step. */
  undo(segment: string): number {
    return this.request({ type: 'undo', segment });
  }

  /** Redo the step that was undone last. */
  redo(segment: string): number {
    return this.request({ type: 'redo', segment });
  }

  /** Empty the segment and forget its prompts. This can be undone. */
  reset(segment: string): number {
    return this.request({ type: 'reset', segment });
  }

  /** Remove a segment with its history. */
  removeSegment(segment: string): number {
    return this.request({ type: 'remove_segment', segment });
  }

  /** Change how the session predicts. An omitted option stays as it is. */
  setOptions(options: { readonly autozoom?: boolean; readonly previews?: boolean }): number {
    const { autozoom = null, previews = null } = options;
    return this.request({ type: 'set_options', autozoom, previews });
  }

  /** Cancel one request, or all. Each still ends with `done`, or with `failed` and the code `cancelled`. */
  cancel(request?: number): void {
    for (const [id, pending] of this.pending) {
      if (pending.number === null || (request !== undefined && request !== pending.number)) continue;
      pending.cancelled = true;
      this.send({ type: 'cancel', request: id });
    }
    this.prioritize();
  }

  /**
   * Ask the server for a sign of life with a heartbeat. It answers a repeated request at once, also during a prediction.
   * Only heartbeats are repeated: the answer to another request, such as `set_image`, tells of an earlier state.
   */
  ping(): void {
    if (this.heartbeat !== null && this.lastId - this.heartbeat.id < MAX_REPEATED) this.send(this.heartbeat);
    else this.enqueueHeartbeat();
  }

  private enqueueHeartbeat(): void {
    this.enqueue({ type: 'set_options', id: ++this.lastId, autozoom: null, previews: null }, null);
  }

  /** End the session on the server. */
  bye(): void {
    this.send({ type: 'bye' });
  }

  /** Whether a request is unanswered that is no heartbeat. The core's own ones count: a restoration takes time, too. */
  get isBusy(): boolean {
    return [...this.pending.values()].some(({ request }) => !isHeartbeat(request));
  }

  /** Numbers of the user's requests without an answer. */
  get pendingRequests(): number[] {
    return [...this.pending.values()].flatMap(({ number }) => (number === null ? [] : [number]));
  }

  // ---- requests ---------------------------------------------------------------------------------------------

  private send(message: ClientMessage): void {
    if (this.welcome !== null) this.control.push(encode(message));
  }

  private request(request: WithoutId<Request>): number {
    const id = ++this.lastId;
    this.enqueue({ ...request, id }, id);
    return id;
  }

  /** Send a prompt at the focus. */
  private prompt(request: WithoutId<Prompt>): number {
    const id = this.request(request);
    const pending = this.pending.get(id);
    if (pending === undefined || this.focus === null) return id;
    pending.focus = this.focus;
    // A guess, which saves the round trip until the server reports the region.
    if (request.run && this.welcome !== null) {
      this.noteWait(pending, boxAround(this.focus, this.welcome.model.patch_size), true);
    }
    return id;
  }

  private noteWait(pending: Pending, awaited: Box, baseLayersSuffice: boolean): void {
    Object.assign(pending, { awaited, baseLayersSuffice });
    this.prioritize();
  }

  /** Send the bricks first for which a request waits. Requests run in order, so the first one counts. */
  private prioritize(): void {
    const waits = (each: Pending): boolean =>
      each.awaited !== null && !each.cancelled && !isObsolete(each, this.generation);
    const first = [...this.pending.values()].find(waits);
    this.upload?.prioritize(first?.awaited ?? null, first?.baseLayersSuffice ?? false, first?.focus ?? null);
  }

  private enqueue(request: Request, number: number | null): void {
    this.pending.set(request.id, makePending(request, number, this.generation));
    this.send(request);
  }

  private setFocus(focus: Index): void {
    this.focus = focus;
    this.upload?.setFocus(focus);
  }

  /** Check a mask of the user, and pack it. Throws `out_of_bounds`, and the errors of `pack`. */
  private packed(pack: typeof promptMask, mask: Uint8Array, box: Box | null): RunLengthMask {
    const packed = pack(maskInput(mask, box, this.shape()), this.encoding());
    this.setFocus(middle(packed.box));
    return packed;
  }

  private currentImage(): I {
    if (this.image !== null) return this.image;
    throw new ClientError(
      'no_image',
      this.generation === 0
        ? 'There is no image. Open one before the first prompt.'
        : 'The server has no image, because it refused the last one. Open an image again.',
    );
  }

  private shape(): Index {
    return this.currentImage().shape;
  }

  private encoding(): Encoding {
    return this.welcome?.encoding ?? this.encodings[0];
  }

  private replaceImage(image: I | null): void {
    this.image = image;
    this.generation++;
    this.focus = null;
    this.segments.clear();
    for (const name of [...this.stale.keys()]) this.markFresh(name);
    this.events.push({ type: 'masks_dropped' });
    this.beginUpload();
  }

  private beginUpload(): void {
    const { image, welcome, focus } = this;
    this.upload = null;
    if (image === null || welcome === null) return;
    this.link ??= new Link(welcome.encoding);
    this.upload = new Upload(image.shape, welcome.limits.unacknowledged_bricks, this.clock, this.link);
    if (focus !== null) this.upload.setFocus(focus);
    this.prioritize();
  }

  // ---- messages ---------------------------------------------------------------------------------------------

  private handle(message: ServerMessage): void {
    switch (message.type) {
      case 'welcome':
        this.onWelcome(message);
        break;
      case 'image_progress':
        this.onImageProgress(message);
        break;
      case 'progress':
        this.onProgress(message);
        break;
      case 'mask_delta':
        this.onMaskDelta(message);
        break;
      case 'mask_snapshot':
        this.onMaskSnapshot(message);
        break;
      case 'done':
        this.onDone(message);
        break;
      case 'error':
        this.onError(message);
        break;
      case 'notice':
        this.onNotice(message);
        break;
    }
  }

  private onWelcome(message: Welcome): void {
    this.welcome = message;
    this.session = { id: message.session_id, secret: message.session_secret };
    this.events.push({ type: 'welcome', welcome: message });
    if (message.resumed && !this.isAdopted) {
      this.resumeSession(message);
      return;
    }
    if (message.resumed) this.adoptSession(message);
    this.isAdopted = false;
    this.restoreSession();
  }

  /** Take over the session of an earlier page, whose requests and options are unknown. */
  private adoptSession(welcome: Welcome): void {
    this.lastId = Math.max(this.lastId, welcome.last_id);
    this.send({ type: 'cancel', request: null });
    this.options = merged({ type: 'set_options', autozoom: true, previews: true }, this.options);
  }

  /** Resume the session: send pending requests again, and synchronize segments that differ. */
  private resumeSession(welcome: Welcome): void {
    for (const [id, { request, cancelled }] of this.pending) {
      this.send(request);
      if (cancelled) this.send({ type: 'cancel', request: id });
    }
    this.beginUpload();
    // A pending set_image brings the bricks.
    if (this.upload === null || !this.isImageOfServer(welcome.image)) return;
    this.upload.resume(welcome.present_bricks);
    // The acknowledgements of the last bricks may have been lost with the connection.
    this.emitImageProgress(this.upload);
    const isAnnounced = [...this.pending.values()].every(({ request }) => request.type !== 'set_image');
    if (isAnnounced) this.compareSegments(welcome.revisions);
  }

  /**
   * Whether the server's bricks of an image are those of the image now. They are not before an earlier `set_image` is
   * answered: the server then drops the bricks of other images.
   */
  private isImageOfServer(name: string | null): boolean {
    const isEarlier = (pending: Pending) =>
      pending.request.type === 'set_image' && isObsolete(pending, this.generation);
    return this.image !== null && name === this.image.name && ![...this.pending.values()].some(isEarlier);
  }

  /** Synchronize segments without a pending request. The answer of a pending request does it for the others. */
  private compareSegments(revisions: ReadonlyMap<string, number>): void {
    const unsettled = new Set([...this.stale.keys(), ...Array.from(this.pending.values(), segmentOf)]);
    for (const segment of this.segments.values()) {
      if (unsettled.has(segment.name) || segment.isEmpty) continue;
      const revision = revisions.get(segment.name);
      if (revision === undefined) this.enqueue(this.restoreMessage(segment), null);
      else if (revision !== segment.revision) this.requestSnapshot(segment.name);
    }
  }

  /** Restore everything in a new session, and then send pending requests under new ids. */
  private restoreSession(): void {
    for (const name of [...this.stale.keys()]) this.markFresh(name);
    const toResend = [...this.pending.values()].filter(({ number }) => number !== null);
    this.pending = new Map();
    this.heartbeat = null;
    // First, because its answer follows those of all earlier requests.
    if (this.beginsWithHeartbeat) this.enqueueHeartbeat();
    const { autozoom, previews } = this.options;
    if (autozoom !== null || previews !== null) this.enqueue({ ...this.options, id: ++this.lastId }, null);
    if (this.image !== null) this.restoreImage(this.image, toResend);
    for (const pending of toResend) this.resend(pending);
    this.prioritize();
  }

  /** Announce the image, as the pending `set_image` if there is one, and restore the segments. */
  private restoreImage(image: I, toResend: readonly Pending[]): void {
    const mine = toResend.find(
      (pending) => pending.request.type === 'set_image' && !isObsolete(pending, this.generation),
    );
    this.beginUpload();
    this.enqueue({ ...announcement(image), id: ++this.lastId }, mine?.number ?? null);
    for (const segment of this.segments.values()) {
      if (!segment.isEmpty) this.enqueue(this.restoreMessage(segment), null);
    }
  }

  private resend(pending: Pending): void {
    const error = retryError(pending, this.generation);
    if (error !== null) this.fail(pending.number, error);
    else if (pending.request.type !== 'set_image') {
      const request = { ...pending.request, id: ++this.lastId };
      this.pending.set(request.id, { ...pending, request });
      this.send(request);
    }
  }

  private onImageProgress(message: ImageProgress): void {
    if (this.upload === null || !this.isImageOfServer(message.image)) return;
    this.upload.acknowledge(message.received, message.received_base);
    // The message's own numbers are older in the repeated answer of a set_image.
    this.emitImageProgress(this.upload);
  }

  private emitImageProgress({ presentCount, grid }: Upload): void {
    this.events.push({ type: 'image_progress', present: presentCount, total: grid.length });
  }

  private onProgress(message: Progress): void {
    const pending = this.pending.get(message.id);
    if (pending === undefined || isObsolete(pending, this.generation)) return;
    if (message.box !== null) this.noteWait(pending, message.box, message.base_layers_suffice);
    if (pending.number === null) return;
    const { state, done, total } = message;
    this.events.push({ type: 'progress', request: pending.number, segment: segmentOf(pending), state, done, total });
  }

  private onMaskDelta(message: MaskDelta): void {
    const pending = this.pending.get(message.request);
    if (pending === undefined || isObsolete(pending, this.generation) || this.stale.has(message.segment)) return;
    checkSegment(message.segment, pending);
    const segment = this.segment(message.segment);
    if (message.base_revision !== segment.revision) {
      this.requestSnapshot(segment.name);
      return;
    }
    const { box } = message.change;
    const change = readMask(message.change, segment.shape);
    flip(segment.mask, change);
    if (checksum(segment.mask, box, segment.shape) !== message.checksum) {
      flip(segment.mask, change); // so that listeners know the mask until the snapshot replaces it
      this.requestSnapshot(segment.name);
      return;
    }
    pending.base ??= segment.revision;
    segment.revision = message.revision;
    segment.voxels = message.voxels;
    pending.change = compose(pending.change, change);
    this.emitMask(segment, pending.number, box, change, message.final);
  }

  private onMaskSnapshot(message: MaskSnapshot): void {
    const pending = this.pending.get(message.request);
    if (pending === undefined || isObsolete(pending, this.generation)) return;
    checkSegment(message.segment, pending);
    const segment = this.segment(message.segment);
    segment.revision = message.revision;
    this.replaceMask(segment, message.mask === null ? NO_CHANGE : readMask(message.mask, segment.shape));
    segment.reconcile(this.encoding());
    this.markFresh(segment.name);
  }

  private onDone(message: Done): void {
    const pending = this.pending.get(message.id);
    if (pending === undefined) return;
    this.pending.delete(message.id);
    if (isHeartbeat(pending.request)) this.heartbeat = pending.request;
    // First, because a step that is undone or redone keeps its change if the server's is missing.
    if (!isObsolete(pending, this.generation)) {
      this.compareRevisions(pending, message);
      // If the list of present bricks was lost with a connection, all are sent.
      if (pending.request.type === 'set_image') this.upload?.acknowledge([]);
    }
    this.prioritize();
    this.record(pending);
    if (pending.number === null) return;
    const { segment, changed, voxels, revision, timings } = message;
    const done: Event = {
      type: 'done',
      result: { request: pending.number, segment, changed, voxels, revision, timings },
    };
    // A listener of the answer reads the mask, so the answer waits until the mask is right.
    (this.stale.get(segment ?? '') ?? this.events).push(done);
  }

  private onError(message: ErrorMessage): void {
    const error = errorFromServer(message.code, message.message);
    if (message.id === null) {
      const first = this.pending.values().next().value;
      // Requests run in order, so it was the first one.
      if (error.code === 'worker_lost' && first !== undefined) first.losses += 1;
      this.ended = error;
      return;
    }
    const pending = this.pending.get(message.id);
    if (pending === undefined) return;
    this.pending.delete(message.id);
    this.prioritize();
    this.onRequestFailed(pending, error);
  }

  private onRequestFailed(pending: Pending, error: ClientError): void {
    const { request } = pending;
    if (isObsolete(pending, this.generation)) {
      // No segment of the image now is concerned.
      this.fail(pending.number, error);
      return;
    }
    this.removeIfNew(pending);
    if (request.type === 'get_mask') {
      this.markFresh(request.segment); // the next change of the segment requests it again
      return;
    }
    if (request.type === 'restore' && this.retryRestoreFlattened(request, error)) return;
    if (request.type === 'set_image') {
      // Without its image, a session is useless. A new one may have memory for it.
      if (pending.number === null) this.session = null;
      else this.replaceImage(null);
    }
    if (pending.number === null) this.ended = error;
    else this.fail(pending.number, error);
  }

  /** Remove a segment whose first request failed: the server has no such segment. */
  private removeIfNew(pending: Pending): void {
    const segment = this.segments.get(segmentOf(pending) ?? '');
    if (segment?.isEmpty && createsSegment(pending)) this.forget(segment.name);
  }

  private forget(name: string): void {
    if (this.segments.delete(name)) this.events.push({ type: 'segment_removed', segment: name });
  }

  /** Restore the mask alone: another server may not support the prompts of a history, or have no memory for it. */
  private retryRestoreFlattened(request: Restore, error: ClientError): boolean {
    const segment = this.segments.get(request.segment);
    if (segment === undefined || segment.isFlat) return false;
    if (!HISTORY_REFUSED.has(error.code)) return false;
    this.flatten(segment, error.message);
    this.enqueue(this.restoreMessage(segment), null);
    return true;
  }

  private flatten(segment: Segment, reason: string): void {
    segment.flatten(this.encoding());
    const message = `The prompts of segment "${segment.name}" cannot be used on this server (${reason}). Its mask is kept.`;
    this.events.push({ type: 'notice', code: 'warning', message });
  }

  private onNotice({ code, message }: Notice): void {
    if (code === 'evicted') {
      this.isEvicted = true;
      this.ended = new ClientError('connection_failed', message);
    }
    this.events.push({ type: 'notice', code, message });
  }

  private fail(number: number | null, error: ClientError): void {
    if (number !== null) this.events.push({ type: 'failed', request: number, error });
  }

  // ---- segments ---------------------------------------------------------------------------------------------

  /** Return the segment of a name; create it if there is none. */
  private segment(name: string): Segment {
    let segment = this.segments.get(name);
    if (segment === undefined) {
      segment = new Segment(name, this.shape());
      this.segments.set(name, segment);
    }
    return segment;
  }

  /** Note that a segment needs no snapshot any more, and release the answers that were held back. */
  private markFresh(name: string): void {
    this.events.push(...(this.stale.get(name) ?? []));
    this.stale.delete(name);
  }

  private requestSnapshot(segment: string): void {
    if (!this.stale.has(segment)) this.stale.set(segment, []);
    this.enqueue({ type: 'get_mask', id: ++this.lastId, segment }, null);
  }

  /** Request a snapshot if the last change is missing, which no later change would reveal. */
  private compareRevisions(pending: Pending, done: Done): void {
    const name = segmentOf(pending);
    if (name === null || pending.request.type === 'remove_segment') return;
    if (this.segment(name).revision !== done.revision && !this.stale.has(name)) this.requestSnapshot(name);
  }

  /** Update the history as the server did for a request that succeeded. */
  private record(pending: Pending): void {
    const { request, change } = pending;
    if (isObsolete(pending, this.generation)) return;
    switch (request.type) {
      case 'set_image':
      case 'restore':
      case 'get_mask':
        break;
      case 'set_options':
        this.options = merged(this.options, request);
        break;
      case 'remove_segment':
        this.markFresh(request.segment);
        this.forget(request.segment);
        break;
      case 'undo':
      case 'redo': {
        const isFresh = !this.stale.has(request.segment);
        this.segment(request.segment).creditMove(request.type === 'undo', change, isFresh, this.encoding());
        break;
      }
      default: {
        const segment = this.segment(request.segment);
        // A run with nothing to predict makes no step.
        if (request.type !== 'run' || segment.hasPendingPrompts) segment.append(request, change, this.encoding());
      }
    }
  }

  /** Revert the previews of a pending request: they are sent again. */
  private revertPreviews(pending: Pending): void {
    const { change, base } = pending;
    pending.change = NO_CHANGE;
    pending.base = null;
    const segment = this.segments.get(segmentOf(pending) ?? '');
    if (segment === undefined || base === null || isObsolete(pending, this.generation)) return;
    segment.flip(change);
    segment.revision = base;
    const box = boundingBox(change, segment.shape);
    if (box !== null) this.emitMask(segment, pending.number, box, change, true);
  }

  /** Recompute a mask that is out of step from its history. */
  private rebuild(name: string): void {
    const segment = this.segments.get(name);
    if (segment !== undefined) this.replaceMask(segment, segment.composed());
  }

  /** Replace the mask of a segment, and emit what changed. */
  private replaceMask(segment: Segment, mask: Runs): void {
    const before = runsOf(segment.mask, wholeBox(segment.shape), segment.shape);
    segment.replaceMask(mask);
    this.emitReplaced(segment, before, mask);
  }

  /** `before`, `after`: the set voxels. */
  private emitReplaced(segment: Segment, before: Runs, after: Runs): void {
    const change = compose(before, after);
    const box = boundingBox(change, segment.shape) ?? boundingBox(after, segment.shape) ?? FIRST_VOXEL;
    this.emitMask(segment, null, box, change, true);
  }

  /** Return the message that restores a segment. A history that is too large for one message is flattened. */
  private restoreMessage(segment: Segment): Restore {
    const { name, revision } = segment;
    const make = (): Restore => ({
      type: 'restore',
      id: ++this.lastId,
      segment: name,
      revision,
      steps: [...segment.steps],
      undone: [...segment.undone],
    });
    const message = make();
    const limit = this.welcome?.limits.message_bytes ?? MAX_MESSAGE_BYTES;
    if (segment.isFlat || encode(message).length <= limit) return message;
    this.flatten(segment, `its history is larger than the ${limit} bytes of a message`);
    return make();
  }

  /** `box`: holds the change. */
  private emitMask(segment: Segment, request: number | null, box: Box, change: Runs, final: boolean): void {
    const { name, revision, voxels } = segment;
    const event: MaskDeltaEvent = { type: 'mask_delta', request, segment: name, box, change, revision, voxels, final };
    this.events.push(event);
  }
}

function announcement({ name, shape, dtype, statistics: { mean, std } }: Image): WithoutId<SetImage> {
  return { type: 'set_image', image: name, shape, dtype, mean, std };
}

/** Return the later options, with the earlier ones in place of null. */
function merged(earlier: Options, later: Options): Options {
  const { autozoom, previews } = later;
  return { type: 'set_options', autozoom: autozoom ?? earlier.autozoom, previews: previews ?? earlier.previews };
}
