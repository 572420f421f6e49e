/** State of the tab that survives a reload, and consent that the browser keeps. */

import type { SavedSession } from '../client/core';
import { bool, struct } from '../client/fields';
import { originStore, readValue, STORED_TEXT, tabStore } from './browserStore';

const SESSION = 'nninteractive-ws.session';
const TOKEN = 'nninteractive-ws.token';
const IMAGE = 'nninteractive-ws.image';
const CONSENT = 'nninteractive-ws.consent';

/** The image that the tab had open. */
export interface LastImage {
  name: string;
  isExample: boolean;
}

/**
 * Return the session of this tab before the reload, and forget it: a copy of the tab must not resume the same session.
 */
export function takeSession(): SavedSession | undefined {
  const session = readValue(tabStore, SESSION, struct<SavedSession>({ id: STORED_TEXT, secret: STORED_TEXT }));
  tabStore.removeItem(SESSION);
  return session ?? undefined;
}

/** Keep the session for a reload. Call it when the page is left. */
export function keepSession(session: SavedSession | null): void {
  if (session !== null) tabStore.setItem(SESSION, JSON.stringify(session));
}

/** The token for the server, until the tab is closed. */
export const token = {
  get: (): string | undefined => tabStore.getItem(TOKEN) ?? undefined,
  set: (entered: string): void => {
    tabStore.setItem(TOKEN, entered);
  },
};

/** The image to continue with after a reload. */
export const lastImage = {
  get: (): LastImage | null => readValue(tabStore, IMAGE, struct<LastImage>({ name: STORED_TEXT, isExample: bool })),
  set: (image: LastImage): void => {
    tabStore.setItem(IMAGE, JSON.stringify(image));
  },
  clear: (): void => {
    tabStore.removeItem(IMAGE);
  },
};

/** The user's consent to send images to this page's server. The browser keeps it for the page's origin. */
export const consent = {
  get: (): boolean => originStore.getItem(CONSENT) === 'yes',
  set: (): void => {
    originStore.setItem(CONSENT, 'yes');
  },
};
