/** Codes of errors from the server; see protocol.md. */
export const SERVER_CODES = [
  'bad_message',
  'unsupported_version',
  'unauthorized',
  'forbidden_origin',
  'at_capacity',
  'too_large',
  'bad_image',
  'no_image',
  'out_of_bounds',
  'unsupported_prompt',
  'unknown_segment',
  'nothing_to_undo',
  'cancelled',
  'out_of_memory',
  'worker_lost',
  'shutting_down',
  'internal',
] as const;

/** Code of an error. The last five never travel: they arise in the client. */
export type ErrorCode =
  (typeof SERVER_CODES)[number] | 'bad_journal' | 'bad_address' | 'connection_failed' | 'page_failed' | 'session_taken';

/** An error whose message is a sentence for the user. */
export class ClientError extends Error {
  override readonly name = 'ClientError';

  constructor(
    readonly code: ErrorCode,
    message: string,
  ) {
    super(message);
  }
}

/** Return the text of a caught value, which need not be an Error. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Return the error for a code and a sentence of the server. An unknown code means `internal`. */
export function errorFromServer(code: string, message: string): ClientError {
  return new ClientError(SERVER_CODES.find((known) => known === code) ?? 'internal', message);
}
