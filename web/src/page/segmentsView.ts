/** The list of segments in the panel. */

import { create, icon, setText } from './dom';
import type { SegmentInfo } from './segments';
import type { Session } from './session';
import { formatCount } from './status';
import type { Rgb } from './viewer';

/** Shows the segments of a session, and changes them as the user acts. */
export class SegmentsView {
  /** The segment whose name is being edited. */
  private edited: string | null = null;
  private shown = '';

  constructor(
    private readonly list: HTMLElement,
    private readonly session: Session,
    private readonly remove: (segment: SegmentInfo) => void,
  ) {}

  /** Update the list to the state of the session. */
  refresh(): void {
    this.refreshRows();
    this.refreshCounts();
  }

  /** Replace the rows, if anything but the numbers of voxels has changed. */
  private refreshRows(): void {
    const { all, activeId } = this.session.segments;
    const state = JSON.stringify([all, activeId, this.edited]);
    if (state === this.shown) return;
    this.shown = state;
    const focused = document.activeElement?.id ?? '';
    this.list.replaceChildren(...all.map((segment) => this.row(segment)));
    // The elements are new ones.
    if (focused.startsWith('segment-')) document.getElementById(focused)?.focus();
  }

  /**
   * Update the numbers of voxels, in the rows that are there. They change with each preview, and a new row would lose a
   * half-typed name, an open color picker, or the click of a pressed button.
   */
  private refreshCounts(): void {
    this.session.segments.all.forEach(({ id }, n) => {
      const row = this.list.children[n] as HTMLElement;
      const voxels = this.session.voxels(id);
      row.dataset.voxels = String(voxels);
      const count = row.querySelector('.count');
      if (count !== null) setText(count, `${formatCount(voxels)} voxels`);
    });
  }

  private row(segment: SegmentInfo): HTMLLIElement {
    const isActive = segment.id === this.session.segments.activeId;
    const row = create('li', { className: isActive ? 'active' : '' }, this.color(segment));
    if (this.edited === segment.id) row.append(this.nameField(segment));
    else
      row.append(
        this.nameButton(segment, isActive),
        this.visibility(segment),
        this.renaming(segment),
        this.removal(segment),
      );
    return row;
  }

  private color(segment: SegmentInfo): HTMLInputElement {
    const field = create('input', { type: 'color', id: `${segment.id}-color`, value: toHex(segment.color) });
    field.setAttribute('aria-label', `Color of ${segment.name}`);
    field.addEventListener('change', () => {
      this.session.change(segment, { color: fromHex(field.value) });
    });
    return field;
  }

  private nameButton(segment: SegmentInfo, isActive: boolean): HTMLButtonElement {
    const name = create('span', {}, segment.name);
    const button = create('button', { type: 'button', className: 'name', id: `${segment.id}-name` }, name);
    button.append(create('span', { className: 'count' }));
    button.setAttribute('aria-current', String(isActive));
    button.addEventListener('click', () => {
      this.session.select(segment.id);
    });
    button.addEventListener('dblclick', () => {
      this.edit(segment);
    });
    return button;
  }

  private visibility(segment: SegmentInfo): HTMLButtonElement {
    const { isVisible } = segment;
    const label = `${isVisible ? 'Hide' : 'Show'} ${segment.name}`;
    return this.iconButton(`${segment.id}-visibility`, label, isVisible ? 'shown' : 'hidden', () => {
      this.session.change(segment, { isVisible: !isVisible });
    });
  }

  private renaming(segment: SegmentInfo): HTMLButtonElement {
    return this.iconButton(`${segment.id}-rename`, `Rename ${segment.name}`, 'rename', () => {
      this.edit(segment);
    });
  }

  private removal(segment: SegmentInfo): HTMLButtonElement {
    return this.iconButton(`${segment.id}-delete`, `Delete ${segment.name}`, 'remove', () => {
      this.remove(segment);
    });
  }

  private iconButton(
    id: string,
    label: string,
    shape: Parameters<typeof icon>[0],
    onClick: () => void,
  ): HTMLButtonElement {
    const button = create('button', { type: 'button', className: 'icon', id, title: label }, icon(shape));
    button.setAttribute('aria-label', label);
    button.addEventListener('click', onClick);
    return button;
  }

  private edit(segment: SegmentInfo): void {
    this.edited = segment.id;
    this.refresh();
    const field = document.getElementById(`${segment.id}-field`);
    if (field instanceof HTMLInputElement) {
      field.focus();
      field.select();
    }
  }

  private nameField(segment: SegmentInfo): HTMLInputElement {
    const field = create('input', { type: 'text', id: `${segment.id}-field`, value: segment.name, maxLength: 64 });
    field.setAttribute('aria-label', `New name of ${segment.name}`);
    const finish = (name: string, keepsFocus: boolean) => {
      if (this.edited !== segment.id) return;
      this.edited = null;
      this.session.change(segment, { name: name.trim() === '' ? segment.name : name.trim() });
      if (keepsFocus) document.getElementById(`${segment.id}-name`)?.focus();
    };
    field.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' && event.key !== 'Escape') return;
      // Otherwise, the key would also press the button that gets the focus.
      event.preventDefault();
      finish(event.key === 'Enter' ? field.value : segment.name, true);
    });
    field.addEventListener('blur', () => {
      finish(field.value, false);
    });
    return field;
  }
}

function toHex(color: Rgb): string {
  return `#${color.map((value) => value.toString(16).padStart(2, '0')).join('')}`;
}

function fromHex(text: string): Rgb {
  const value = (at: number) => Number.parseInt(text.slice(at, at + 2), 16);
  return [value(1), value(3), value(5)];
}
