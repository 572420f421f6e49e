/** Segments with their masks and histories, from which the server's can be restored. */
import { ClientError } from './errors';
import { countVoxels, wholeBox, type Index } from './geometry';
import { compose, countRuns, flip, makeMask, NO_CHANGE, readMask, runsOf, type Runs } from './masks';
import type { Encoding, Step, StepRequest } from './messages';

/** A segment with its mask and its history. The mask is the composition of the changes of all steps. */
export class Segment {
  /** One byte per voxel, 0 or 1, in C order: i slowest, k fastest. Changed in place. */
  readonly mask: Uint8Array;
  /** Revision of the mask, see protocol.md. */
  revision = 0;
  /** Set voxels of the mask. */
  voxels = 0;
  /** Steps that `undo` can undo, the oldest first. */
  steps: Step[] = [];
  /** Undone steps; the one to redo next is the last. */
  undone: Step[] = [];

  constructor(
    readonly name: string,
    readonly shape: Index,
  ) {
    this.mask = new Uint8Array(countVoxels(shape));
  }

  /** Whether there are no steps and no undone steps, as in a new segment. */
  get isEmpty(): boolean {
    return this.steps.length === 0 && this.undone.length === 0;
  }

  /** Whether `flatten` would not reduce the history. */
  get isFlat(): boolean {
    return (
      this.undone.length === 0 && this.steps.length <= 1 && this.steps.every((step) => step.request.type === 'set_mask')
    );
  }

  /** Whether prompts wait for a prediction. */
  get hasPendingPrompts(): boolean {
    // The last step that predicted, or after which earlier prompts do not count, decides.
    const last = this.steps.at(-1);
    return last !== undefined && !isPrediction(last.request) && !isReset(last.request);
  }

  /** Apply a change to mask and `voxels`. */
  flip(change: Runs): void {
    this.voxels += flip(this.mask, change);
  }

  /** Append a step whose change has been applied, and drop the undone steps. */
  append(request: StepRequest, change: Runs, encoding: Encoding): void {
    this.steps.push(this.makeStep(request, change, encoding));
    this.undone = [];
  }

  /**
   * Undo (`back`) or redo a step whose change the server has sent and the mask already has.
   *
   * `change`: the server's. It may differ from the step's, if the step was credited with the changes of several. Then
   * it replaces the step's, unless the mask is not fresh.
   *
   * @throws ClientError - `bad_message` if there is no such step.
   */
  creditMove(back: boolean, change: Runs, isFresh: boolean, encoding: Encoding): void {
    const [source, target] = back ? [this.steps, this.undone] : [this.undone, this.steps];
    const step = source.pop();
    if (step === undefined) {
      throw new ClientError('bad_message', `The server moved a step of segment "${this.name}" that does not exist.`);
    }
    const differs = compose(this.read(step), change).length > 0;
    target.push(isFresh && differs ? this.makeStep(step.request, change, encoding) : step);
    if (isFresh && differs) this.reconcile(encoding);
  }

  /** Credit the last step with the difference between the mask and the composition of the steps' changes. */
  reconcile(encoding: Encoding): void {
    const difference = compose(this.composed(), runsOf(this.mask, wholeBox(this.shape), this.shape));
    const last = this.steps.pop();
    if (last !== undefined)
      this.steps.push(this.makeStep(last.request, compose(this.read(last), difference), encoding));
  }

  /** Replace the mask. The history stays as it is. */
  replaceMask(runs: Runs): void {
    this.mask.fill(0);
    this.voxels = 0;
    this.flip(runs);
  }

  /** Collapse the history into one set_mask step, which any server can restore. */
  flatten(encoding: Encoding): void {
    const runs = this.composed();
    this.steps = [];
    this.undone = [];
    if (countRuns(runs) === 0) return;
    const mask = makeMask(runs, this.shape, encoding);
    const request = { type: 'set_mask', id: 1, segment: this.name, mask, flip: false, run: false } as const;
    this.steps.push({ request, change: mask });
  }

  /** Return the composition of the changes of all steps. Throws if a step is damaged, see `readMask`. */
  composed(): Runs {
    // Pairs of pairs: merging one by one would read the first changes as often as there are steps.
    let changes = this.steps.map((step) => this.read(step));
    while (changes.length > 1) {
      const half = Math.ceil(changes.length / 2);
      changes = Array.from({ length: half }, (_, n) => compose(changes[2 * n], changes[2 * n + 1] ?? NO_CHANGE));
    }
    return changes.at(0) ?? NO_CHANGE;
  }

  private read(step: Step): Runs {
    return step.change === null ? NO_CHANGE : readMask(step.change, this.shape);
  }

  private makeStep(request: StepRequest, change: Runs, encoding: Encoding): Step {
    return { request, change: change.length === 0 ? null : makeMask(change, this.shape, encoding) };
  }
}

/** Whether a step includes a prediction, after which no prompt is pending. */
function isPrediction(request: StepRequest): boolean {
  return request.type === 'run' || (request.type !== 'reset' && request.run);
}

/** Whether the prompts before a step no longer count. */
function isReset(request: StepRequest): boolean {
  return request.type === 'set_mask' || request.type === 'reset';
}
