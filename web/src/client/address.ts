/** The address of a server, and errors that say why it cannot be reached. */
import { ClientError, type ErrorCode } from './errors';

/** Timeout of the request that asks why a connection was refused. */
const PROBE_TIMEOUT_MS = 10_000;
/** Longest sentence of a server that is shown. */
const MAX_SENTENCE = 300;
const SUBPROTOCOL = 'nninteractive.v1';
/** Characters of a subprotocol, RFC 9110. */
const TOKEN_PATTERN = /^[A-Za-z0-9!#$%&'*+.^_`|~-]+$/;

/** URLs of a server. */
export interface Address {
  readonly webSocket: string;
  readonly capabilities: string;
  /** Whether the server is on this computer. */
  readonly isLoopback: boolean;
}

/**
 * Parse the URL of a server or of a file beside it: `http(s)://host:port/` or `ws(s)://host:port/`.
 *
 * @throws ClientError - `bad_address`.
 */
export function parseAddress(text: string): Address {
  const url = URL.canParse(text) ? new URL('.', text) : null;
  if (url === null || !/^(https?|wss?):$/.test(url.protocol)) {
    throw new ClientError(
      'bad_address',
      `"${text}" is no address of a server. Write http://host:port/ or ws://host:port/.`,
    );
  }
  const secure = /^(https|wss):$/.test(url.protocol) ? 's' : '';
  const rest = `${url.host}${url.pathname}`;
  return {
    webSocket: `ws${secure}://${rest}`,
    capabilities: `http${secure}://${rest}capabilities`,
    isLoopback: isLoopback(url.hostname),
  };
}

/** Return whether the host name of a URL is this computer. */
export function isLoopback(host: string): boolean {
  return /^(localhost|.+\.localhost|127(\.\d+){3}|\[::1\])$/.test(host);
}

/**
 * Return the subprotocols of a WebSocket: the token travels as one, because a page cannot set headers.
 *
 * @throws ClientError - `unauthorized` for characters that no token has.
 */
export function subprotocols(token: string | undefined): string[] {
  if (token === undefined) return [SUBPROTOCOL];
  if (!TOKEN_PATTERN.test(token)) {
    throw new ClientError(
      'unauthorized',
      'The token has characters that no token has, such as a space or a line break. Copy it again.',
    );
  }
  return [SUBPROTOCOL, `${SUBPROTOCOL}.bearer.${token}`];
}

/** Ask the server over HTTP why it refused a WebSocket, which a page cannot see. */
export async function refusal(address: Address, token: string | undefined): Promise<ClientError> {
  const headers: Record<string, string> = token === undefined ? {} : { Authorization: `Bearer ${token}` };
  let status: number;
  let text: string;
  try {
    const signal = AbortSignal.timeout(PROBE_TIMEOUT_MS);
    const response = await fetch(address.capabilities, { headers, signal, cache: 'no-store' });
    status = response.status;
    const isText = response.headers.get('Content-Type')?.startsWith('text/plain') ?? false;
    text = isText ? (await response.text()).trim().slice(0, MAX_SENTENCE) : '';
  } catch {
    return new ClientError(
      'connection_failed',
      'The server cannot be reached. Check that it is running, and that this computer is connected to its network.',
    );
  }
  const [code, sentence] = refusalOf(status, token !== undefined);
  // A proxy's page is no sentence for the user. The server's own are plain text.
  return new ClientError(
    code === 'at_capacity' && text.includes('shutting down') ? 'shutting_down' : code,
    text || sentence,
  );
}

function refusalOf(status: number, hasToken: boolean): [ErrorCode, string] {
  switch (status) {
    case 401:
      return [
        'unauthorized',
        hasToken
          ? 'The server refused this token. Check that it is complete and was not revoked.'
          : "This server needs a token. Ask the server's administrator for one.",
      ];
    case 403:
      return ['forbidden_origin', 'The server does not accept this web page. Open the page from the server itself.'];
    case 421:
      return [
        'forbidden_origin',
        'The server does not accept the name in the address. Use the name it was started with.',
      ];
    case 503:
      return ['at_capacity', 'The server is busy or not ready yet.'];
    case 200:
      return [
        'connection_failed',
        'The server answers, but its WebSocket cannot be opened. A proxy in between may not forward WebSockets.',
      ];
    default:
      return [
        'connection_failed',
        `The server answers with the HTTP status ${status}. Check the address, and that the server is running.`,
      ];
  }
}
