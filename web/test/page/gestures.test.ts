/** Strokes of the pointer, with events as browsers deliver them. */
import { beforeEach, describe, expect, test, vi } from 'vitest';
import { Gestures, type Stroke } from '../../src/page/gestures';
import type { SliceView, Viewer } from '../../src/page/viewer';

type Listener = (event: unknown) => void;

const view = { axis: 2, toVoxel: (x: number, y: number) => [x, y, 7] } as unknown as SliceView;
const listeners = new Map<string, Listener>();
const target = {
  addEventListener: (type: string, listener: Listener) => listeners.set(type, listener),
  getBoundingClientRect: () => ({ left: 0, top: 0 }),
  setPointerCapture: () => undefined,
};

let viewer: { viewAt: () => SliceView; drawAbove: () => void; scroll: ReturnType<typeof vi.fn> };
let gestures: Gestures;
let strokes: Stroke[];

beforeEach(() => {
  vi.stubGlobal('WheelEvent', { DOM_DELTA_PIXEL: 0 });
  viewer = { viewAt: () => view, drawAbove: () => undefined, scroll: vi.fn() };
  gestures = new Gestures(target as unknown as HTMLElement, viewer as unknown as Viewer);
  strokes = [];
  gestures.onStroke = (stroke) => strokes.push(stroke);
});

function send(type: string, x: number, more: object = {}): void {
  listeners.get(type)?.({ pointerId: 1, button: 0, shiftKey: false, clientX: x, clientY: 5, ...more });
}

describe('a stroke', () => {
  test.each(['box', 'scribble', 'lasso'] as const)('with the tool %s needs no coalesced events', (tool) => {
    gestures.tool = tool;
    send('pointerdown', 1);
    send('pointermove', 4); // as in Firefox without TLS: no getCoalescedEvents
    send('pointerup', 6);
    expect(strokes.map(({ points }) => points.at(-1))).toEqual([[6, 5, 7]]);
    expect(gestures.stroke).toBeNull();
  });

  test('has the positions between two frames', () => {
    gestures.tool = 'scribble';
    send('pointerdown', 1);
    const between = [2, 3].map((clientX) => ({ clientX, clientY: 5 }));
    send('pointermove', 3, { getCoalescedEvents: () => between });
    expect(gestures.stroke?.points.map(([i]) => i)).toEqual([1, 2, 3]);
  });

  test.each(['pointermove', 'pointerup'])('is discarded after an error of %s', (type) => {
    gestures.tool = 'lasso';
    send('pointerdown', 1);
    const getCoalescedEvents = () => {
      throw new Error('broken');
    };
    expect(() => {
      send(type, 3, { getCoalescedEvents });
    }).toThrow('broken');
    expect(gestures.stroke).toBeNull();
    expect(strokes).toEqual([]);
  });

  test('stays in its slice when the wheel turns', () => {
    gestures.tool = 'box';
    const wheel = { deltaMode: 0, deltaY: 80, preventDefault: vi.fn(), ctrlKey: false };
    send('pointerdown', 1);
    send('wheel', 1, wheel);
    expect(viewer.scroll).not.toHaveBeenCalled();
    expect(wheel.preventDefault).toHaveBeenCalledOnce();
    send('pointerup', 2);
    send('wheel', 1, wheel);
    expect(viewer.scroll).toHaveBeenCalledOnce();
  });
});
