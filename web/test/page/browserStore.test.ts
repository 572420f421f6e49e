// What the page stores in the browser, which may block its stores, or hold texts of another version of the page.
import { expect, test, vi } from 'vitest';
import { tabStore } from '../../src/page/browserStore';
import { restoreInfos, SegmentList, storeInfos } from '../../src/page/segments';
import { keepSession, lastImage, takeSession } from '../../src/page/tabState';

const GARBAGE = ['', '{', 'null', '7', '[]', '{"id": 1}', '{"name": "ct"}', '{"savedAt": 1, "segments": [{}]}'];

test('the session of a tab is taken once', () => {
  keepSession({ id: 'a', secret: 'b' });
  expect(takeSession()).toEqual({ id: 'a', secret: 'b' });
  expect(takeSession()).toBeUndefined();
});

test.each(GARBAGE)('a text that this page has not stored is ignored: %s', (text) => {
  tabStore.setItem('nninteractive-ws.session', text);
  tabStore.setItem('nninteractive-ws.image', text);
  tabStore.setItem('nninteractive-ws.segments.ct', text);
  expect(takeSession()).toBeUndefined();
  expect(lastImage.get()).toBeNull();
  const list = new SegmentList();
  list.add();
  restoreInfos(tabStore, 'ct', list);
  expect(list.all).toHaveLength(1);
  storeInfos(tabStore, 'mr', list, 1);
  lastImage.set({ name: 'mr', isExample: false });
  expect(lastImage.get()).toEqual({ name: 'mr', isExample: false });
});

test('a browser that blocks its stores keeps texts until the page is left', async () => {
  const blocked = {
    get: () => {
      throw new DOMException('Access is denied.', 'SecurityError');
    },
  };
  const original = Object.getOwnPropertyDescriptor(globalThis, 'sessionStorage');
  Object.defineProperty(globalThis, 'sessionStorage', { ...blocked, configurable: true });
  try {
    vi.resetModules();
    const { token } = await import('../../src/page/tabState');
    expect(token.get()).toBeUndefined();
    token.set('secret');
    expect(token.get()).toBe('secret');
  } finally {
    if (original === undefined) Reflect.deleteProperty(globalThis, 'sessionStorage');
    else Object.defineProperty(globalThis, 'sessionStorage', original);
  }
});
