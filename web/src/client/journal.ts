/** Journal of a session: the histories of the segments of an image, without the image. */
import { ClientError } from './errors';
import type { Index } from './geometry';
import { Segment } from './history';
import type { Step } from './messages';

/** History of one segment, as the protocol's `restore` has it. */
export interface SegmentHistory {
  readonly name: string;
  readonly revision: number;
  readonly steps: readonly Step[];
  readonly undone: readonly Step[];
}

/** Prompts and masks of an image, without the image. It can be cloned, so that a database can store it. */
export interface Journal {
  /** `name` of the image source: one name for one content. */
  readonly image: string;
  readonly shape: Index;
  readonly segments: readonly SegmentHistory[];
}

/** Return the journal of segments. Later changes of the segments do not change it. */
export function makeJournal(image: string, shape: Index, segments: Iterable<Segment>): Journal {
  const histories = Array.from(segments, ({ name, revision, steps, undone }) => ({
    name,
    revision,
    steps: [...steps],
    undone: [...undone],
  }));
  return { image, shape, segments: histories };
}

/**
 * Return new segments with the histories of a journal.
 *
 * @throws ClientError - `bad_journal` if it belongs to another image, or is damaged.
 */
export function segmentsOf(journal: Journal, image: string, shape: Index): Segment[] {
  if (journal.image !== image || journal.shape.join() !== shape.join()) {
    throw new ClientError(
      'bad_journal',
      'The saved segments belong to another image. Open the image with which they were saved, or start without them.',
    );
  }
  return journal.segments.map((history) => {
    const segment = new Segment(history.name, shape);
    segment.revision = history.revision;
    segment.steps = [...history.steps];
    segment.undone = [...history.undone];
    try {
      segment.flip(segment.composed()); // not replaceMask(), which would write all pages of the empty mask
    } catch (error) {
      if (!(error instanceof ClientError)) throw error;
      throw new ClientError(
        'bad_journal',
        `Of the saved segments, "${history.name}" is damaged (${error.message}). Open the image without them.`,
      );
    }
    return segment;
  });
}
