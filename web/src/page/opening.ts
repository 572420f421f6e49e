/** Opening of images: read, describe, ask for consent, and continue the work of earlier. */

import { isLoopback } from '../client/address';
import { ClientError, messageOf } from '../client/errors';
import { ImageSource } from '../client/imageSource';
import type { Journal } from '../client/journal';
import type { JournalStore } from '../client/journalStore';
import type { Packer } from '../client/packing';
import type { ImageFiles, Volume } from '../files';
import { originStore } from './browserStore';
import { askConsent } from './dialogs';
import { droppedFiles, readImage } from './userFiles';
import { restoreInfos } from './segments';
import type { OpenImage, Session } from './session';
import { consent, lastImage } from './tabState';

const EXAMPLE = 'example.nii.gz';
const SAVE = 'Save the segments before you close the page.';

/** Opens images in a session. One at a time. */
export class Opening {
  /** Whether an image is being opened. */
  isRunning = false;

  constructor(
    private readonly session: Session,
    private readonly reader: ImageFiles,
    private readonly packer: Packer,
    /** Journals of earlier sessions; null if the browser has no store. */
    private readonly store: JournalStore | null,
  ) {}

  /** Open the image in files that the user chose. */
  openFiles(files: readonly File[]): Promise<void> {
    return this.run(false, () => Promise.resolve(files));
  }

  /** Open the image in files or folders that the user dropped. */
  openDropped(data: DataTransfer): Promise<void> {
    return this.run(false, () => droppedFiles(data));
  }

  /** Open the example image of the server. */
  openExample(): Promise<void> {
    return this.run(true, async () => {
      this.session.setStatus({ kind: 'busy', message: 'Loading the example' });
      const response = await fetch(EXAMPLE);
      if (!response.ok) {
        throw new Error(`The server has no example image (HTTP ${response.status}). Open an image of your own.`);
      }
      return [new File([await response.blob()], EXAMPLE)];
    });
  }

  private async run(isExample: boolean, getFiles: () => Promise<readonly File[]>): Promise<void> {
    const { session } = this;
    if (this.isRunning) return;
    this.isRunning = true;
    session.onChange();
    try {
      const files = await getFiles();
      if (files.length === 0) return;
      await this.open(files, isExample);
    } catch (error) {
      session.showError(messageOf(error));
    } finally {
      this.isRunning = false;
      session.onChange();
    }
  }

  private async open(files: readonly File[], isExample: boolean): Promise<void> {
    const { session } = this;
    session.setStatus({
      kind: 'busy',
      message: `Reading ${files.length === 1 ? files[0].name : `${files.length} files`}`,
    });
    const volume = await readImage(this.reader, files, (fraction) => {
      session.setStatus({ kind: 'busy', message: 'Reading the image', fraction });
    });
    if (volume === null) {
      session.setStatus({ kind: 'ready', message: 'No image was opened.' });
      return;
    }
    if (!(await this.hasConsent())) {
      const message = `Nothing was sent. Images are sent to ${location.host} only after you agree.`;
      session.setStatus({ kind: 'ready', message });
      return;
    }
    const source = await this.describe(volume);
    const { journal, notes } = await this.earlierWork(source.name);
    this.show({ volume: { ...volume, notes: [...volume.notes, ...notes] }, source }, journal);
    restoreInfos(originStore, source.name, session.segments);
    session.showSegments();
    lastImage.set({ name: volume.name, isExample });
    // After a reload, the example must not replace this image.
    if (!isExample) history.replaceState(null, '', location.pathname);
  }

  /** Open an image with its saved segments, or without them if they are damaged. */
  private show({ volume, source }: OpenImage, journal: Journal | undefined): void {
    try {
      this.session.open({ volume, source }, journal);
    } catch (error) {
      if (!(error instanceof ClientError) || error.code !== 'bad_journal') throw error;
      const notes = [...volume.notes, `The saved segments were not restored. ${error.message}`];
      this.session.open({ volume: { ...volume, notes }, source });
    }
  }

  private async hasConsent(): Promise<boolean> {
    if (isLoopback(location.hostname) || consent.get()) return true;
    const agrees = await askConsent(location.host);
    if (agrees) consent.set();
    return agrees;
  }

  private async describe({ name, shape, voxels }: Volume): Promise<ImageSource> {
    const source = new ImageSource(name, shape, voxels, [1, shape[0], shape[0] * shape[1]]);
    await source.prepare(this.packer, (fraction) => {
      this.session.setStatus({ kind: 'busy', message: 'Preparing the image', fraction });
    });
    return source;
  }

  /** Return the newest journal of an image, and a note if the browser keeps none or cannot read it. */
  private async earlierWork(image: string): Promise<{ journal?: Journal; notes: readonly string[] }> {
    if (this.store === null) return { notes: [`This browser does not keep prompts for later. ${SAVE}`] };
    try {
      const stored = await this.store.load(image);
      return { journal: stored.at(0)?.journal, notes: [] };
    } catch (error) {
      return { notes: [`This browser cannot read the prompts that it keeps (${messageOf(error)}). ${SAVE}`] };
    }
  }
}
