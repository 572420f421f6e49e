// Status texts, shortcuts, names of files, and what is kept between visits.
import { describe, expect, test } from 'vitest';
import { isLoopback } from '../../src/client/address';
import { ClientError } from '../../src/client/errors';
import { segmentsFileName } from '../../src/page/userFiles';
import type { TextStore } from '../../src/page/browserStore';
import { clearInfos, PALETTE, restoreInfos, SegmentList, storeInfos } from '../../src/page/segments';
import { actionOf, KEYS } from '../../src/page/shortcuts';
import { connectionStatus, statusOf } from '../../src/page/status';

const timings = { queued: 0, waiting_for_image: 0, network: 0, passes: 1, total: 0.84 };

describe('status', () => {
  test('states the progress of the image', () => {
    expect(statusOf({ type: 'image_progress', present: 43, total: 100 })).toMatchObject({
      message: 'Sending the image',
      detail: '43 %',
      fraction: 0.43,
    });
    expect(statusOf({ type: 'image_progress', present: 9, total: 9 })?.message).toBe('The image is on the server.');
  });

  test.each([
    ['queued', 2, 0, 'Waiting in the queue', 'number 3 in line'],
    ['waiting_for_image', 3, 12, 'Waiting for the image around the prompt', '3 of 12'],
    ['predicting', 0, 0, 'Predicting', undefined],
    ['refining', 2, 5, 'Refining', '2 of 5'],
  ] as const)('states that a request is %s', (state, done, total, message, detail) => {
    const status = statusOf({ type: 'progress', request: 1, segment: 'segment-1', state, done, total });
    expect(status).toMatchObject({ kind: 'busy', message });
    expect(status?.detail).toBe(detail);
  });

  test('states the result with its number of voxels', () => {
    const result = { request: 1, segment: 'segment-1', changed: null, voxels: 12345, revision: 1, timings };
    expect(statusOf({ type: 'done', result })?.message).toBe('Done: 12,345 voxels in 0.8 s.');
  });

  test('repeats the sentence of an error, but not of a canceled request', () => {
    const failed = (error: ClientError) => statusOf({ type: 'failed', request: 1, error });
    expect(failed(new ClientError('out_of_memory', 'Too large.'))).toEqual({ kind: 'error', message: 'Too large.' });
    expect(failed(new ClientError('cancelled', 'x'))?.message).toBe('Canceled. The segment was reverted.');
  });

  test('counts down to the next attempt', () => {
    const lost = { state: 'lost', message: 'The network is down.', retryIn: 3 } as const;
    expect(connectionStatus(lost, 0)).toMatchObject({ kind: 'lost', detail: '3 s' });
    expect(connectionStatus(lost, 1.4).detail).toBe('2 s');
    expect(connectionStatus(lost, 9).detail).toBe('0 s');
    expect(connectionStatus(lost).message).toContain('The network is down.');
  });

  test('repeats the sentence of the server that evicted the session', () => {
    const message = 'The server evicted this session because it was idle. The next request restores it.';
    expect(connectionStatus({ state: 'dormant', message })).toEqual({ kind: 'lost', message });
  });
});

describe('shortcuts', () => {
  const press = (key: string, modifiers: object = {}) =>
    actionOf({ key, ctrlKey: false, metaKey: false, altKey: false, shiftKey: false, ...modifiers });

  test('are those of the Slicer module', () => {
    expect(['p', 'b', 's', 'l', 't', 'e', 'r', 'v', 'Escape'].map((key) => press(key))).toEqual([
      'point',
      'box',
      'scribble',
      'lasso',
      'polarity',
      'nextSegment',
      'reset',
      'visibility',
      'cancel',
    ]);
    expect(press('z', { ctrlKey: true })).toBe('undo');
    expect(press('Z', { ctrlKey: true, shiftKey: true })).toBe('redo');
    expect(press('z', { metaKey: true })).toBe('undo');
    expect(Object.keys(KEYS)).toHaveLength(11);
  });

  test('leave other combinations to the browser', () => {
    expect(press('r', { ctrlKey: true })).toBeNull();
    expect(press('p', { altKey: true })).toBeNull();
    expect(press('x')).toBeNull();
  });
});

test('segments are saved under the name of the image', () => {
  expect(segmentsFileName('liver.nii.gz', 'nrrd')).toBe('liver_segments.seg.nrrd');
  expect(segmentsFileName('CT, thorax', 'dicom')).toBe('CT_thorax_segments.dcm');
});

test.each([
  ['localhost', true],
  ['127.0.0.1', true],
  ['[::1]', true],
  ['gpu.localhost', true],
  ['127.0.0.1.example.com', false],
  ['localhost.example.com', false],
  ['gpu-box', false],
])('%s is this computer: %s', (host, expected) => {
  expect(isLoopback(host)).toBe(expected);
});

describe('segments', () => {
  function memory(): TextStore & { keys: () => string[] } {
    const entries = new Map<string, string>();
    return {
      getItem: (key) => entries.get(key) ?? null,
      setItem: (key, value) => void entries.set(key, value),
      removeItem: (key) => void entries.delete(key),
      key: (n) => [...entries.keys()][n] ?? null,
      get length() {
        return entries.size;
      },
      keys: () => [...entries.keys()],
    };
  }

  test('have distinct labels, also after one was deleted', () => {
    const list = new SegmentList();
    for (let n = 0; n < 3; n++) list.add();
    list.remove('segment-2');
    expect(list.activeId).toBe('segment-3');
    expect(list.add()).toMatchObject({ id: 'segment-2', label: 2, color: PALETTE[1] });
    expect(new Set(list.all.map(({ label }) => label)).size).toBe(3);
  });

  test('do not get an id that is still in use', () => {
    const list = new SegmentList();
    expect(list.add(new Set(['segment-1', 'segment-3']))?.id).toBe('segment-2');
    expect(list.add(new Set(['segment-1', 'segment-3']))?.id).toBe('segment-4');
  });

  test('select a neighbor of a deleted one', () => {
    const list = new SegmentList();
    list.add();
    list.add();
    list.remove('segment-2');
    expect(list.activeId).toBe('segment-1');
    list.remove('segment-1');
    expect(list.active).toBeNull();
  });

  test('keep names and colors between visits, for the images used last', () => {
    const store = memory();
    const list = new SegmentList();
    Object.assign(list.add() ?? {}, { name: 'liver', color: [1, 2, 3], isVisible: false });
    for (let n = 0; n < 25; n++) storeInfos(store, `image-${n}`, list, n);
    expect(store.keys()).toHaveLength(20);
    const restored = new SegmentList();
    restoreInfos(store, 'image-24', restored);
    expect(restored.all).toEqual(list.all);
    restoreInfos(store, 'image-0', restored);
    expect(restored.all).toHaveLength(1);
  });

  test('are forgotten for all images on demand', () => {
    const store = memory();
    store.setItem('other', 'stays');
    for (let n = 0; n < 3; n++) storeInfos(store, `image-${n}`, new SegmentList(), n);
    clearInfos(store);
    expect(store.keys()).toEqual(['other']);
  });

  test('of other clients are left out, because their names are not labels', () => {
    expect(new SegmentList().restore('liver')).toBeNull();
  });

  test('cannot be more than the labels', () => {
    const list = new SegmentList();
    for (let n = 0; n < 255; n++) expect(list.add()).not.toBeNull();
    expect(list.add()).toBeNull();
  });
});
