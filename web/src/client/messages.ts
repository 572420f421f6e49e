/**
 * Types of the protocol's messages, as in protocol.md. protocol.ts checks those of a server.
 *
 * Positions are array indices (i, j, k) in voxels. Boxes are end-exclusive.
 */

import type { Box, Index } from './geometry';

/** Array encodings of this client. */
export type Encoding = 'deflate' | 'raw';
/** A brick's voxels, or a layer of them. */
export type Layer = 'whole' | 'base' | 'enhancement';
/** Types in which voxels travel. */
export type DType = 'int8' | 'uint8' | 'int16' | 'uint16' | 'int32' | 'uint32' | 'float32';
export type ProgressState = 'queued' | 'waiting_for_image' | 'predicting' | 'refining';
export type NoticeCode = 'loading_model' | 'worker_lost' | 'shutting_down' | 'evicted' | 'warning';

/** Set voxels of a box: run lengths in C order, of unset and set voxels in turn, as packed uint32. */
export interface RunLengthMask {
  readonly box: Box;
  readonly runs: number;
  readonly encoding: Encoding;
  readonly data: Uint8Array;
}

/** One brick of the image, or a layer of it, packed. */
export interface Brick {
  readonly index: number;
  readonly encoding: Encoding;
  readonly data: Uint8Array;
  readonly layer: Layer;
  /** The number of bits in the enhancement layer; 0 for whole voxels. */
  readonly low_bits: number;
}

/** One step of a history: its request, and the voxels that it flipped. */
export interface Step {
  readonly request: StepRequest;
  readonly change: RunLengthMask | null;
}

/** Durations in seconds. `passes`: forward passes of the network. */
export interface Timings {
  readonly queued: number;
  readonly waiting_for_image: number;
  readonly network: number;
  readonly passes: number;
  readonly total: number;
}

export interface Model {
  readonly name: string;
  readonly license: string;
  readonly patch_size: Index;
  readonly prompts: readonly string[];
  /** Preferred thickness of strokes, in voxels along i, j, k. */
  readonly scribble_thickness: Index;
}

export interface Limits {
  readonly message_bytes: number;
  readonly image_voxels: number;
  readonly segments: number;
  readonly steps: number;
  readonly unacknowledged_bricks: number;
  readonly session_bytes: number;
}

/** Bytes at the time of `welcome`. */
export interface FreeMemory {
  readonly device: number;
  readonly device_total: number;
  readonly images: number;
}

// ---- from the client ----------------------------------------------------------------------------------------

export interface Hello {
  readonly type: 'hello';
  readonly version: number;
  readonly client: string;
  readonly features: readonly string[];
  readonly encodings: readonly Encoding[];
  readonly session_id: string | null;
  readonly session_secret: string | null;
  readonly allow_eviction: boolean;
}

export interface SetImage {
  readonly type: 'set_image';
  readonly id: number;
  readonly image: string;
  readonly shape: Index;
  readonly dtype: DType;
  readonly mean: number;
  readonly std: number;
}

export interface ImageBricks {
  readonly type: 'image_bricks';
  readonly image: string;
  readonly bricks: readonly Brick[];
}

interface About<T extends string> {
  readonly type: T;
  readonly id: number;
  readonly segment: string;
}

interface PromptOf<T extends string> extends About<T> {
  readonly positive: boolean;
  readonly run: boolean;
}

export interface SetMask extends About<'set_mask'> {
  readonly mask: RunLengthMask;
  readonly flip: boolean;
  readonly run: boolean;
}
export interface AddPoint extends PromptOf<'add_point'> {
  readonly point: Index;
}
export interface AddBbox extends PromptOf<'add_bbox'> {
  readonly box: Box;
}
export interface AddScribble extends PromptOf<'add_scribble'> {
  readonly mask: RunLengthMask;
}
export interface AddLasso extends PromptOf<'add_lasso'> {
  readonly mask: RunLengthMask;
}
export type Run = About<'run'>;
export type Undo = About<'undo'>;
export type Redo = About<'redo'>;
export type Reset = About<'reset'>;
export type RemoveSegment = About<'remove_segment'>;
export type GetMask = About<'get_mask'>;

export interface Restore extends About<'restore'> {
  readonly revision: number;
  readonly steps: readonly Step[];
  readonly undone: readonly Step[];
}

export interface SetOptions {
  readonly type: 'set_options';
  readonly id: number;
  readonly autozoom: boolean | null;
  readonly previews: boolean | null;
}

export interface Cancel {
  readonly type: 'cancel';
  readonly request: number | null;
}

export interface Bye {
  readonly type: 'bye';
}

export type Prompt = AddPoint | AddBbox | AddScribble | AddLasso;
export type StepRequest = SetMask | Prompt | Run | Reset;
export type Request = SetImage | StepRequest | Undo | Redo | Restore | RemoveSegment | GetMask | SetOptions;
export type ClientMessage = Hello | ImageBricks | Cancel | Bye | Request;

// ---- from the server ----------------------------------------------------------------------------------------

export interface Welcome {
  readonly type: 'welcome';
  readonly version: number;
  readonly server_version: string;
  readonly features: readonly string[];
  readonly encoding: Encoding;
  readonly session_id: string;
  readonly session_secret: string;
  readonly resumed: boolean;
  readonly last_id: number;
  readonly revisions: ReadonlyMap<string, number>;
  readonly image: string | null;
  readonly present_bricks: Uint8Array;
  readonly limits: Limits;
  readonly model: Model;
  readonly device: string;
  readonly memory: FreeMemory | null;
}

export interface ImageProgress {
  readonly type: 'image_progress';
  readonly image: string;
  readonly received: readonly number[];
  /** Bricks of which only the base layer was received. */
  readonly received_base: readonly number[];
  readonly present: number;
  readonly total: number;
}

export interface Progress {
  readonly type: 'progress';
  readonly id: number;
  readonly state: ProgressState;
  readonly done: number;
  readonly total: number;
  readonly box: Box | null;
  /** Whether the request waits only for the base layers of the bricks in the box. */
  readonly base_layers_suffice: boolean;
}

export interface MaskDelta {
  readonly type: 'mask_delta';
  readonly segment: string;
  readonly request: number;
  readonly base_revision: number;
  readonly revision: number;
  readonly change: RunLengthMask;
  readonly checksum: number;
  readonly voxels: number;
  readonly final: boolean;
}

export interface MaskSnapshot {
  readonly type: 'mask_snapshot';
  readonly segment: string;
  readonly request: number;
  readonly revision: number;
  readonly mask: RunLengthMask | null;
  readonly voxels: number;
}

export interface Done {
  readonly type: 'done';
  readonly id: number;
  readonly segment: string | null;
  readonly revision: number;
  readonly changed: Box | null;
  readonly voxels: number;
  readonly timings: Timings;
}

export interface ErrorMessage {
  readonly type: 'error';
  readonly code: string;
  readonly message: string;
  readonly id: number | null;
}

export interface Notice {
  readonly type: 'notice';
  readonly code: NoticeCode;
  readonly message: string;
}

export type ServerMessage =
  Welcome | ImageProgress | Progress | MaskDelta | MaskSnapshot | Done | ErrorMessage | Notice;
