/** The store of journals, with an IndexedDB in memory. */
import { IDBFactory } from 'fake-indexeddb';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { ClientError } from '../../src/client/errors';
import type { Journal } from '../../src/client/journal';
import { JournalStore } from '../../src/client/journalStore';
import type { RunLengthMask } from '../../src/client/messages';

function journal(image: string, revision = 1, bytes = 10): Journal {
  const mask: RunLengthMask = {
    box: [
      [0, 1],
      [0, 1],
      [0, 1],
    ],
    runs: 2,
    encoding: 'raw',
    data: new Uint8Array(bytes),
  };
  const request = { type: 'set_mask', id: 1, segment: 'liver', mask, flip: false, run: false } as const;
  return {
    image,
    shape: [1, 1, 1],
    segments: [{ name: 'liver', revision, steps: [{ request, change: null }], undone: [] }],
  };
}

async function save(store: JournalStore, value: Journal): Promise<void> {
  store.saveSoon(() => value);
  await store.flush();
}

async function revisions(store: JournalStore, image: string): Promise<(number | undefined)[]> {
  return (await store.load(image)).map((stored) => stored.journal.segments.at(0)?.revision);
}

/** Let the clock go on, so that one save is later than another. */
function wait(): void {
  vi.setSystemTime(Date.now() + 1000);
}

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['Date', 'setTimeout', 'clearTimeout'] });
  vi.stubGlobal('indexedDB', new IDBFactory());
});

afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

describe('the store of journals', () => {
  it('is emptied on demand, also of what is being saved', async () => {
    const store = await JournalStore.open();
    await save(store, journal('head'));
    await save(await JournalStore.open(), journal('liver'));
    store.saveSoon(() => journal('head', 2));
    const saving = store.flush();
    store.saveSoon(() => journal('head', 3));
    await store.clear();
    await vi.runAllTimersAsync();
    await saving;
    expect(await revisions(await JournalStore.open(), 'head')).toEqual([]);
    expect(await revisions(await JournalStore.open(), 'liver')).toEqual([]);
  });

  it('saves the open image again after it was emptied', async () => {
    const store = await JournalStore.open();
    const warnings: string[] = [];
    store.onWarning = (message) => warnings.push(message);
    await save(store, journal('head'));
    await store.clear();
    await save(store, journal('head', 2));
    expect(await revisions(await JournalStore.open(), 'head')).toEqual([2]);
    expect(warnings).toEqual([]);
  });

  it('has after a reload what was saved', async () => {
    await save(await JournalStore.open(), journal('head', 7));
    const [stored] = await (await JournalStore.open()).load('head');
    expect(stored.journal).toEqual(journal('head', 7));
    expect(stored.savedAt).toBe(Date.now());
    expect(await revisions(await JournalStore.open(), 'liver')).toEqual([]);
  });

  it('saves changes in quick succession once, and soon', async () => {
    const store = await JournalStore.open();
    await store.load('head');
    const made = vi.fn(() => journal('head', made.mock.calls.length));
    store.saveSoon(made);
    vi.advanceTimersByTime(400);
    store.saveSoon(made);
    expect(made).not.toHaveBeenCalled();
    vi.advanceTimersByTime(100);
    expect(made).toHaveBeenCalledOnce();
    await store.flush();
    expect(made).toHaveBeenCalledOnce();
    expect(await revisions(store, 'head')).toEqual([1]);
  });

  it('replaces what the same tab saved', async () => {
    const store = await JournalStore.open();
    await store.load('head');
    await save(store, journal('head', 1));
    await save(store, journal('head', 2));
    expect(await revisions(await JournalStore.open(), 'head')).toEqual([2]);
  });

  it('keeps the work of two tabs on one image apart, and says so', async () => {
    const [one, two] = [await JournalStore.open(), await JournalStore.open()];
    await save(one, journal('head', 1));
    wait();
    await one.load('head');
    await two.load('head');
    const [warnOne, warnTwo] = [vi.fn(), vi.fn()];
    one.onWarning = warnOne;
    two.onWarning = warnTwo;
    await save(one, journal('head', 10));
    wait();
    await save(two, journal('head', 20));
    wait();
    await save(one, journal('head', 11));
    wait();
    await save(two, journal('head', 21));
    expect(await revisions(await JournalStore.open(), 'head')).toEqual([21, 11]);
    expect(warnOne).not.toHaveBeenCalled();
    expect(warnTwo).toHaveBeenCalledOnce();
    expect(warnTwo.mock.calls[0][0]).toContain('Another tab');
  });

  it('keeps apart two tabs that both begin an image', async () => {
    const [one, two] = [await JournalStore.open(), await JournalStore.open()];
    await one.load('head');
    await two.load('head');
    await save(one, journal('head', 1));
    wait();
    await save(two, journal('head', 2));
    expect(await revisions(await JournalStore.open(), 'head')).toEqual([2, 1]);
  });

  it('drops the oldest journals at its limit, but not the newest', async () => {
    const store = await JournalStore.open(6000);
    for (const image of ['a', 'b', 'c']) {
      await save(store, journal(image, 1, 2000));
      wait();
    }
    expect(await revisions(store, 'a')).toEqual([]);
    expect(await revisions(store, 'b')).toEqual([1]);
    await save(store, journal('d', 1, 9000));
    expect(await revisions(store, 'c')).toEqual([]);
    expect(await revisions(store, 'd')).toEqual([1]);
  });

  it('forgets an image whose segments are all removed', async () => {
    const store = await JournalStore.open();
    await store.load('head');
    await save(store, journal('head'));
    await save(store, { ...journal('head'), segments: [] });
    expect(await revisions(store, 'head')).toEqual([]);
    await save(store, journal('head', 3));
    expect(await revisions(store, 'head')).toEqual([3]);
  });

  it('saves nothing when the image is gone meanwhile', async () => {
    const store = await JournalStore.open();
    await save(store, journal('head'));
    store.saveSoon(() => {
      throw new ClientError('no_image', 'There is no image.');
    });
    await store.flush();
    expect(await revisions(store, 'head')).toEqual([1]);
  });

  it('warns when a journal cannot be saved', async () => {
    const store = await JournalStore.open();
    const warn = vi.fn();
    store.onWarning = warn;
    // What cannot be cloned cannot be stored.
    await save(store, { ...journal('head'), shape: (() => undefined) as never });
    expect(warn).toHaveBeenCalledOnce();
    expect(warn.mock.calls[0][0]).toContain('could not save');
    await save(store, journal('head', 5));
    expect(await revisions(store, 'head')).toEqual([5]);
  });
});
