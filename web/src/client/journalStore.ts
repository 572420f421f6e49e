/** Journals of this origin in IndexedDB: segments survive a reload of the page. */
import { ClientError, messageOf } from './errors';
import type { Journal } from './journal';
import type { Step } from './messages';

const DATABASE = 'nninteractive-ws';
const JOURNALS = 'journals';
const BY_IMAGE = 'image';
/** Its keys hold all that is needed to drop old journals, so that none of them is read for that. */
const BY_AGE = 'age';
/** Changes in quick succession are one save. */
const SAVE_AFTER_MS = 500;
/** Limit of all journals together. */
const MAX_BYTES = 256 * 2 ** 20;
/** Bytes of a step besides its masks, roughly. */
const STEP_BYTES = 256;

/** A journal in the store, and when it was saved (milliseconds since 1970). */
export interface StoredJournal {
  readonly journal: Journal;
  readonly savedAt: number;
}

interface JournalRecord extends StoredJournal {
  readonly key: string;
  readonly image: string;
  readonly bytes: number;
  /** Number of saves, by which a tab notices those of another tab. */
  readonly version: number;
}

/** The record of this tab. */
interface OwnRecord {
  readonly key: string;
  readonly image: string;
  readonly version: number;
}

/** Journals in IndexedDB, one or more per image; the oldest are dropped at a limit of bytes. */
export class JournalStore {
  /** Called if another tab saves the same image (this tab then saves a record of its own), or if a save fails. */
  onWarning: (message: string) => void = () => undefined;

  private own: OwnRecord | null = null;
  private wanted: (() => Journal) | null = null;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private saving: Promise<void> = Promise.resolve();

  private constructor(
    private readonly database: IDBDatabase,
    private readonly maxBytes: number,
  ) {}

  /** Open the store. Rejects if the browser has none, as in some private windows. */
  static async open(maxBytes = MAX_BYTES): Promise<JournalStore> {
    const opening = indexedDB.open(DATABASE, 1);
    opening.onupgradeneeded = () => {
      const store = opening.result.createObjectStore(JOURNALS, { keyPath: 'key' });
      store.createIndex(BY_IMAGE, 'image');
      store.createIndex(BY_AGE, ['savedAt', 'bytes']);
    };
    return new JournalStore(await result(opening), maxBytes);
  }

  /** Return the journals of an image (`ImageSource.name`), the newest first. This tab continues the newest. */
  async load(image: string): Promise<StoredJournal[]> {
    await this.flush();
    const journals = this.database.transaction(JOURNALS).objectStore(JOURNALS);
    const records = (await result(journals.index(BY_IMAGE).getAll(image))) as JournalRecord[];
    records.sort((a, b) => b.savedAt - a.savedAt);
    this.own = records.at(0) ?? newRecord(image);
    return records;
  }

  /** Delete all journals. The next save stores that of the open image again. */
  async clear(): Promise<void> {
    clearTimeout(this.timer);
    this.timer = undefined;
    this.wanted = null;
    await this.saving;
    const transaction = this.database.transaction(JOURNALS, 'readwrite');
    transaction.objectStore(JOURNALS).clear();
    await completion(transaction);
  }

  /** Save soon what `journal` returns then. Calls in quick succession are one save. */
  saveSoon(journal: () => Journal): void {
    this.wanted = journal;
    this.timer ??= setTimeout(() => {
      void this.flush();
    }, SAVE_AFTER_MS);
  }

  /** Save at once what `saveSoon` was called for, for instance when the page is hidden. */
  flush(): Promise<void> {
    clearTimeout(this.timer);
    this.timer = undefined;
    const { wanted } = this;
    this.wanted = null;
    if (wanted !== null) {
      const journal = journalOf(wanted);
      if (journal !== null) this.saving = this.saving.then(() => this.save(journal));
    }
    return this.saving;
  }

  private async save(journal: Journal): Promise<void> {
    try {
      await this.write(journal);
    } catch (error) {
      this.onWarning(
        `The browser could not save the segments (${messageOf(error)}). They would be lost with this tab: download them, or ` +
          'free disk space.',
      );
    }
  }

  private async write(journal: Journal): Promise<void> {
    let own = this.own?.image === journal.image ? this.own : newRecord(journal.image);
    const transaction = this.database.transaction(JOURNALS, 'readwrite');
    const complete = completion(transaction);
    complete.catch(() => undefined); // it is awaited below, unless a request fails first
    const journals = transaction.objectStore(JOURNALS);
    const stored = (await result(journals.get(own.key))) as JournalRecord | undefined;
    const isTaken = stored !== undefined && stored.version !== own.version;
    if (isTaken) own = newRecord(journal.image);
    const record: JournalRecord = {
      ...own,
      version: own.version + 1,
      journal,
      savedAt: Date.now(),
      bytes: bytesOf(journal),
    };
    if (journal.segments.length === 0) journals.delete(own.key);
    else {
      journals.put(record);
      await this.dropOld(journals, record.key);
    }
    await complete;
    this.own = journal.segments.length === 0 ? own : record;
    if (isTaken) {
      this.onWarning(
        'Another tab works on the same image. The prompts and masks of this tab are saved apart from those of the other ' +
          'one, but names and colors are not. After a reload, a tab continues with those that were saved last.',
      );
    }
  }

  /** Delete the oldest journals over the limit, but not the one just saved. */
  private async dropOld(journals: IDBObjectStore, kept: string): Promise<void> {
    const request = journals.index(BY_AGE).openKeyCursor(null, 'prev');
    let bytes = 0;
    for (let cursor = await result(request); cursor !== null; cursor = await result(request)) {
      bytes += (cursor.key as [number, number])[1];
      if (bytes > this.maxBytes && cursor.primaryKey !== kept) journals.delete(cursor.primaryKey);
      cursor.continue();
    }
  }
}

function newRecord(image: string): OwnRecord {
  // Not crypto.randomUUID, which a page over plain HTTP lacks.
  const random = crypto.getRandomValues(new Uint32Array(4));
  return { key: `${image} ${random.join('-')}`, image, version: 0 };
}

/** Return what a caller wants to save, or null if the image is gone meanwhile. */
function journalOf(wanted: () => Journal): Journal | null {
  try {
    return wanted();
  } catch (error) {
    if (error instanceof ClientError && error.code === 'no_image') return null;
    throw error;
  }
}

function bytesOf(journal: Journal): number {
  const ofStep = ({ request, change }: Step): number =>
    STEP_BYTES + ('mask' in request ? request.mask.data.length : 0) + (change?.data.length ?? 0);
  const steps = journal.segments.flatMap((segment) => [...segment.steps, ...segment.undone]);
  return steps.reduce((bytes, step) => bytes + ofStep(step), STEP_BYTES);
}

function result<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => {
      resolve(request.result);
    };
    request.onerror = () => {
      reject(request.error ?? new Error('unknown error'));
    };
  });
}

function completion(transaction: IDBTransaction): Promise<void> {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => {
      resolve();
    };
    transaction.onabort = () => {
      reject(transaction.error ?? new Error('the transaction was aborted'));
    };
  });
}
