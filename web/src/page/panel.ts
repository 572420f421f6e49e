/** The tool panel and the keyboard shortcuts. */

import { messageOf } from '../client/errors';
import { askConfirmation, showHelp } from './dialogs';
import { button, byId, create, download, input } from './dom';
import type { Gestures, Tool } from './gestures';
import { segmentsFile, segmentsFileName, type Format } from './userFiles';
import { NEGATIVE, POSITIVE } from './marks';
import type { SegmentInfo } from './segments';
import { SegmentsView } from './segmentsView';
import type { Session } from './session';
import { KEYS, listen, type Action } from './shortcuts';
import type { Viewer } from './viewer';

/** For each tool: its button, and the prompts of which the model must support one. */
const TOOLS: Readonly<Record<Tool, { id: string; prompts: readonly string[] }>> = {
  point: { id: 'tool-point', prompts: ['point'] },
  box: { id: 'tool-box', prompts: ['bbox2d', 'bbox3d'] },
  scribble: { id: 'tool-scribble', prompts: ['scribble'] },
  lasso: { id: 'tool-lasso', prompts: ['lasso'] },
};
const TOOL_NAMES = Object.keys(TOOLS) as Tool[];
const COMMANDS = ['undo', 'redo', 'reset', 'run'] as const;
const OPTIONS = ['live', 'previews', 'autozoom'] as const;
const FORMATS = ['nrrd', 'nifti', 'dicom'] as const;

const HELP: readonly (readonly [string, string])[] = [
  ['Click or drag', 'Use the tool in a slice. Without a tool, or with Shift: move the crosshair'],
  ['Wheel', 'Show the next slice. With Ctrl: magnify'],
  ['Middle button', 'Move the slices'],
  ['Right button', 'Drag to the side for the width of the window, and up or down for its level'],
  ['Two fingers', 'Move and magnify the slices'],
  ['Drag in 3-D', 'Rotate'],
  ['Arrow keys, Page Up, Page Down', 'Move the crosshair, while the views have the focus'],
  ['Enter', 'Add a point at the crosshair, while the views have the focus'],
  [`${KEYS.point}, ${KEYS.box}, ${KEYS.scribble}, ${KEYS.lasso}`, 'Point, bounding box, scribble, lasso'],
  [KEYS.polarity, 'Switch between positive and negative'],
  [KEYS.nextSegment, 'Next segment: add an empty one'],
  [KEYS.visibility, 'Hide or show the segment'],
  [KEYS.reset, 'Reset: clear the segment and its prompts'],
  [`${KEYS.undo}, ${KEYS.redo}`, 'Undo, redo'],
  [KEYS.cancel, 'Cancel: the stroke, or else the running prompts, or else the tool'],
];

/** Connects the panel's controls with the session and the views. */
export class Panel {
  isPositive = true;
  private readonly segments: SegmentsView;
  private readonly preset = byId('window-preset', HTMLSelectElement);

  constructor(
    private readonly session: Session,
    private readonly viewer: Viewer,
    private readonly gestures: Gestures,
    private readonly overlay: HTMLElement,
  ) {
    this.segments = new SegmentsView(byId('segments', HTMLElement), session, (segment) => {
      void this.remove(segment);
    });
    this.connectPrompts();
    this.connectWindow();
    this.connectOptions();
    this.connectKeys();
    this.refresh();
  }

  /** The color of the marks of new prompts. */
  get color(): string {
    return this.isPositive ? POSITIVE : NEGATIVE;
  }

  /** Update the controls to the state of the session. */
  refresh(): void {
    const { session } = this;
    const hasImage = session.image !== null;
    const supported = session.connection.core.welcome?.model.prompts;
    for (const tool of TOOL_NAMES) {
      const each = button(TOOLS[tool].id);
      each.disabled = !hasImage || !TOOLS[tool].prompts.some((prompt) => supported?.includes(prompt) ?? true);
      each.setAttribute('aria-pressed', String(this.gestures.tool === tool));
    }
    button('positive').setAttribute('aria-pressed', String(this.isPositive));
    button('negative').setAttribute('aria-pressed', String(!this.isPositive));
    button('undo').disabled = !session.canUndo;
    button('redo').disabled = !session.canRedo;
    button('reset').disabled = !session.canUndo;
    button('run').disabled = !hasImage || session.options.live;
    button('next-segment').disabled = !hasImage;
    const isEmpty = !session.segments.all.some(({ id }) => session.voxels(id) > 0);
    for (const format of FORMATS) button(`save-${format}`).disabled = isEmpty;
    button('save-dicom').hidden = session.image?.volume.source !== 'dicom';
    for (const id of ['window-width', 'window-level']) input(id).disabled = !hasImage;
    this.preset.disabled = !hasImage;
    this.segments.refresh();
  }

  /** Use a tool, or null to navigate. */
  use(tool: Tool | null): void {
    this.gestures.abandon();
    this.gestures.tool = tool;
    if (tool === null) delete this.overlay.dataset.tool;
    else this.overlay.dataset.tool = tool;
    this.refresh();
  }

  private setPolarity(isPositive: boolean): void {
    this.isPositive = isPositive;
    this.refresh();
  }

  private connectPrompts(): void {
    onClick('positive', () => {
      this.setPolarity(true);
    });
    onClick('negative', () => {
      this.setPolarity(false);
    });
    for (const tool of TOOL_NAMES) {
      onClick(TOOLS[tool].id, () => {
        this.use(this.gestures.tool === tool ? null : tool);
      });
    }
    for (const command of COMMANDS) {
      onClick(command, () => {
        this.session.command(command);
      });
    }
    onClick('cancel', () => {
      this.session.cancel();
    });
    onClick('next-segment', () => {
      this.session.addSegment();
      this.setPolarity(true); // a negative prompt in an empty segment does nothing
    });
    for (const format of FORMATS) onClick(`save-${format}`, () => void this.save(format));
    onClick('help', () => void showHelp(HELP));
  }

  private connectOptions(): void {
    for (const name of OPTIONS) {
      input(name).addEventListener('change', () => {
        this.session.setOptions({ [name]: input(name).checked });
      });
    }
  }

  // ---- window ----

  private connectWindow(): void {
    this.viewer.onWindow = () => {
      this.showWindow();
    };
    for (const id of ['window-width', 'window-level']) {
      input(id).addEventListener('change', () => {
        this.setWindow(input('window-width').valueAsNumber, input('window-level').valueAsNumber);
      });
    }
    this.preset.addEventListener('change', () => {
      const { value } = this.preset;
      const [width, level] = value.split(' ').map(Number);
      if (value === 'automatic') this.viewer.window = this.viewer.automaticWindow;
      else if (value === 'full') this.viewer.window = this.viewer.fullWindow;
      else this.setWindow(width, level);
    });
  }

  private setWindow(width: number, level: number): void {
    if (width > 0 && Number.isFinite(level)) this.viewer.window = { low: level - width / 2, high: level + width / 2 };
    else this.showWindow();
  }

  /** Show the window in the fields, and the preset if it is one. */
  showWindow(): void {
    const { low, high } = this.viewer.window;
    const { automaticWindow, fullWindow } = this.viewer;
    input('window-width').value = String(Number((high - low).toPrecision(4)));
    input('window-level').value = String(Number(((high + low) / 2).toPrecision(4)));
    const isSame = (window: { low: number; high: number }) => window.low === low && window.high === high;
    const text = `${high - low} ${(high + low) / 2}`;
    const isPreset = [...this.preset.options].some(({ value }) => value === text);
    this.preset.value = isSame(automaticWindow) ? 'automatic' : isSame(fullWindow) ? 'full' : isPreset ? text : '';
  }

  // ---- keys ----

  private connectKeys(): void {
    const actions: Record<Action, () => void> = {
      ...this.clicks(),
      polarity: () => {
        this.setPolarity(!this.isPositive);
      },
      visibility: () => {
        const { active } = this.session.segments;
        if (active !== null) this.session.change(active, { isVisible: !active.isVisible });
      },
      cancel: () => {
        if (this.gestures.abandon()) return;
        if (this.session.isBusy) this.session.cancel();
        else this.use(null);
      },
    };
    listen(
      (action) => {
        actions[action]();
      },
      () => input('shortcuts').checked,
    );
    this.overlay.addEventListener('keydown', (event) => {
      this.onViewKey(event);
    });
  }

  /** Actions of buttons that show the key. The key of a tool does not put it away. */
  private clicks(): Record<Exclude<Action, 'polarity' | 'visibility' | 'cancel'>, () => void> {
    const click = (id: string, action: Action) => {
      showKey(button(id), action);
      return () => {
        button(id).click();
      };
    };
    const use = (tool: Tool) => {
      showKey(button(TOOLS[tool].id), tool);
      return () => {
        if (!button(TOOLS[tool].id).disabled) this.use(tool);
      };
    };
    return {
      point: use('point'),
      box: use('box'),
      scribble: use('scribble'),
      lasso: use('lasso'),
      nextSegment: click('next-segment', 'nextSegment'),
      reset: click('reset', 'reset'),
      undo: click('undo', 'undo'),
      redo: click('redo', 'redo'),
    };
  }

  private onViewKey(event: KeyboardEvent): void {
    if (this.session.image === null || event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = STEPS[event.key];
    if (steps !== undefined) this.viewer.moveCrosshair(steps);
    else if (event.key !== 'Enter') return;
    else if (!event.repeat) this.session.addPointAtCrosshair(this.isPositive); // one point for a key that is held
    event.preventDefault();
  }

  // ---- segments ----

  private async remove(segment: SegmentInfo): Promise<void> {
    const isEmpty = this.session.voxels(segment.id) === 0;
    const title = `Delete ${segment.name}?`;
    if (isEmpty || (await askConfirmation(title, 'The segment and its prompts cannot be restored.', 'Delete'))) {
      this.session.removeSegment(segment.id);
      // The button that had the focus is gone.
      const { activeId } = this.session.segments;
      (document.getElementById(`${String(activeId)}-name`) ?? button('next-segment')).focus();
    }
  }

  private async save(format: Format): Promise<void> {
    const { image, saved } = this.session;
    const { welcome } = this.session.connection.core;
    if (image === null) return;
    try {
      const { name } = image.volume;
      const file = await segmentsFile(
        format,
        image.volume,
        saved,
        welcome?.model.name ?? 'nnInteractive',
        welcome?.server_version ?? '',
      );
      download(file, segmentsFileName(name, format));
      this.session.setStatus({ kind: 'ready', message: `Saved ${segmentsFileName(name, format)}.` });
    } catch (error) {
      this.session.showError(messageOf(error));
    }
  }
}

/** Steps of the crosshair along right, anterior and superior. The slices show the right side of the patient at the left. */
const STEPS: Readonly<Partial<Record<string, readonly [number, number, number]>>> = {
  ArrowLeft: [1, 0, 0],
  ArrowRight: [-1, 0, 0],
  ArrowUp: [0, 1, 0],
  ArrowDown: [0, -1, 0],
  PageUp: [0, 0, 1],
  PageDown: [0, 0, -1],
};

/** Show the key of an action on its button. */
function showKey(target: HTMLButtonElement, action: Action): void {
  const text = KEYS[action];
  target.setAttribute('aria-keyshortcuts', text.replace('Ctrl', 'Control'));
  target.title = `${target.title} (${text})`.trim();
  if (text.includes('+')) return; // too long for the button
  const key = create('kbd', {}, text);
  key.setAttribute('aria-hidden', 'true');
  target.append(key);
}

function onClick(id: string, action: () => void): void {
  button(id).addEventListener('click', action);
}
