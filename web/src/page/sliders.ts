/** A slider below each slice view. */

import { create, setText } from './dom';
import type { Axis } from './rasterize';
import type { SliceView, Viewer } from './viewer';

const NAMES = { axial: 'Axial', sagittal: 'Sagittal', coronal: 'Coronal' } as const;

interface Slider {
  row: HTMLElement;
  field: HTMLInputElement;
  text: HTMLOutputElement;
  axis: Axis;
}

/** Sliders that show and set the slices of the views. */
export class Sliders {
  private readonly all = new Map<SliceView['plane'], Slider>();

  constructor(
    private readonly container: HTMLElement,
    private readonly viewer: Viewer,
  ) {
    for (const plane of Object.keys(NAMES) as SliceView['plane'][]) this.all.set(plane, this.newSlider(plane));
  }

  /** Update the sliders after a drawing. */
  refresh(): void {
    const { slices } = this.viewer;
    this.container.hidden = slices.length === 0;
    for (const { plane, axis, slice, count, area } of slices) {
      const slider = this.all.get(plane);
      if (slider === undefined) continue;
      slider.axis = axis;
      const [left, top, width, height] = area;
      Object.assign(slider.row.style, { left: `${left}px`, top: `${top + height}px`, width: `${width}px` });
      slider.field.max = String(count - 1);
      slider.field.value = String(slice);
      setText(slider.text, `${slice + 1} / ${count}`);
    }
  }

  private newSlider(plane: SliceView['plane']): Slider {
    const field = create('input', { type: 'range', min: '0', id: `slider-${plane}` });
    const label = create('label', { htmlFor: field.id }, NAMES[plane]);
    const text = create('output', {});
    const slider: Slider = { row: create('div', { className: 'slider' }, label, field, text), field, text, axis: 0 };
    field.setAttribute('aria-label', `${NAMES[plane]} slice`);
    field.addEventListener('input', () => {
      const voxel: [number, number, number] = [...this.viewer.crosshair];
      voxel[slider.axis] = Number(field.value);
      this.viewer.crosshair = voxel;
    });
    this.container.append(slider.row);
    return slider;
  }
}
