/** The status line at the bottom of the page. */

import type { ConnectionState } from '../client/connection';
import { isVoxelInside } from '../client/geometry';
import { button, byId, setText } from './dom';
import { voxelAt } from './rasterize';
import type { Session } from './session';
import type { Viewer } from './viewer';

/** A pixel outside of all views. */
const AWAY: [number, number] = [-1, -1];

/** Shows the session's status, the progress, and the voxel under the pointer. */
export class StatusLine {
  private readonly footer = byId('status-line', HTMLElement);
  private readonly message = byId('status', HTMLElement);
  private readonly detail = byId('status-detail', HTMLElement);
  private readonly progress = byId('progress', HTMLProgressElement);
  private readonly position = byId('position', HTMLElement);
  private timer = 0;
  /** The pixel of the pointer; `AWAY` while it is not over the views. */
  private pointer = AWAY;

  constructor(
    private readonly session: Session,
    private readonly viewer: Viewer,
  ) {}

  /** Show the session's status. */
  refresh(): void {
    const { kind, message, detail = '', fraction } = this.session.status;
    this.footer.dataset.kind = kind;
    setText(this.message, message);
    setText(this.detail, detail);
    this.progress.hidden = kind !== 'busy';
    if (fraction === undefined) this.progress.removeAttribute('value');
    else this.progress.value = fraction;
    button('cancel').disabled = !this.session.isBusy;
  }

  /** Count down to the next attempt while the connection is lost. */
  follow(state: ConnectionState): void {
    window.clearInterval(this.timer);
    if (state.state !== 'lost') return;
    const since = performance.now();
    this.timer = window.setInterval(() => {
      const elapsed = (performance.now() - since) / 1000;
      if (this.session.status.kind === 'lost') this.session.showConnection(elapsed);
    }, 250);
  }

  /** Show the voxel at a pixel of the views, where the pointer is, and its value. */
  point(x: number, y: number): void {
    this.pointer = [x, y];
    this.refreshPosition();
  }

  /** Show no voxel, because the pointer left the views. */
  leave(): void {
    this.point(...AWAY);
  }

  /** Show the voxel under the pointer again, because the views or the image changed. */
  refreshPosition(): void {
    const view = this.viewer.viewAt(...this.pointer);
    const { image } = this.session;
    if (image === null || view === null || view === 'render') {
      setText(this.position, '');
      return;
    }
    const { shape, voxels } = image.volume;
    const voxel = voxelAt(view.toVoxel(...this.pointer));
    const [i, j, k] = voxel;
    const value = isVoxelInside(voxel, shape) ? voxels[i + shape[0] * (j + shape[1] * k)] : null;
    setText(this.position, value === null ? '' : `Voxel ${i}, ${j}, ${k}: ${Number(value.toPrecision(5))}`);
  }
}
