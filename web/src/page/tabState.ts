/** State of the tab that survives a reload, and consent that the browser keeps. */

import type { SavedSession } from '../client/core';

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
  const text = sessionStorage.getItem(SESSION);
  sessionStorage.removeItem(SESSION);
  return text === null ? undefined : (JSON.parse(text) as SavedSession);
}

/** Keep the session for a reload. Call it when the page is left. */
export function keepSession(session: SavedSession | null): void {
  if (session !== null) sessionStorage.setItem(SESSION, JSON.stringify(session));
}

/** The token for the server, until the tab is closed. */
export const token = {
  get: (): string | undefined => sessionStorage.getItem(TOKEN) ?? undefined,
  set: (text: string): void => {
    sessionStorage.setItem(TOKEN, text);
  },
};

/** The image to continue with after a reload. */
export const lastImage = {
  get: (): LastImage | null => {
    const text = sessionStorage.getItem(IMAGE);
    return text === null ? null : (JSON.parse(text) as LastImage);
  },
  set: (image: LastImage): void => {
    sessionStorage.setItem(IMAGE, JSON.stringify(image));
  },
  clear: (): void => {
    sessionStorage.removeItem(IMAGE);
  },
};

/** The user's consent to send images to this page's server. The browser keeps it for the page's origin. */
export const consent = {
  get: (): boolean => localStorage.getItem(CONSENT) === 'yes',
  set: (): void => {
    localStorage.setItem(CONSENT, 'yes');
  },
};
