/** The browser's stores of short texts. */

import { text, type Check } from '../client/fields';

/** A store of texts, such as `localStorage`. */
export type TextStore = Pick<Storage, 'getItem' | 'setItem' | 'removeItem' | 'key' | 'length'>;

/** Texts of this page, until it is left. */
class MemoryStore implements TextStore {
  private readonly texts = new Map<string, string>();

  get length(): number {
    return this.texts.size;
  }

  key(index: number): string | null {
    return [...this.texts.keys()].at(index) ?? null;
  }

  getItem(key: string): string | null {
    return this.texts.get(key) ?? null;
  }

  setItem(key: string, text: string): void {
    this.texts.set(key, text);
  }

  removeItem(key: string): void {
    this.texts.delete(key);
  }
}

/** Return a store of the browser, or one in memory: a browser that blocks cookies throws for its own. */
function openStore(open: () => TextStore): TextStore {
  try {
    return open();
  } catch {
    return new MemoryStore();
  }
}

/** Texts of this tab, which survive a reload. */
export const tabStore = openStore(() => sessionStorage);
/** Texts of this page's origin, which survive the tab. */
export const originStore = openStore(() => localStorage);

/** A name, an id or a secret in a stored value. */
export const STORED_TEXT = text(0, 4096);

/** Return a stored value, or null if there is none, or one that another version of the page has stored. */
export function readValue<T>(store: TextStore, key: string, check: Check<T>): T | null {
  const stored = store.getItem(key);
  if (stored === null) return null;
  try {
    return check(JSON.parse(stored), key);
  } catch {
    return null;
  }
}
