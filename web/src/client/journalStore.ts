import type { Journal } from './journal';

/** A journal in the store, and when it was saved (milliseconds since 1970). */
export interface StoredJournal {
  readonly journal: Journal;
  readonly savedAt: number;
}

/** Journals of this origin in IndexedDB: they survive a reload. */
export class JournalStore {
  /** Open the store. Rejects where the browser has none, such as in some private windows. */
  static open(maxBytes?: number): Promise<JournalStore> {
    return Promise.reject(new Error(`not yet ${String(maxBytes)}`));
  }

  /** Return the journals of an image (`ImageSource.name`), the newest first. This tab continues the newest. */
  load(image: string): Promise<StoredJournal[]> {
    return Promise.reject(new Error(`not yet ${image}`));
  }

  /** Save soon what `journal` returns then. Calls in quick succession are one save. */
  saveSoon(journal: () => Journal): void {
    throw new Error(`not yet ${String(journal)}`);
  }

  /** Save at once what `saveSoon` was called for, for instance when the page is hidden. */
  flush(): Promise<void> {
    return Promise.reject(new Error('not yet'));
  }

  /** Called if another tab saves the same image (this tab then saves to a record of its own), or if a save fails. */
  onWarning: (message: string) => void = () => undefined;
}
