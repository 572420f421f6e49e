/** Checks of the fields of a decoded message. Each returns its value in its type, or throws a ClientError. */
import { ClientError } from './errors';

/** A check of one value. `where` names it in the error. */
export type Check<T> = (value: unknown, where: string) => T;

/** Fields of a map, by name. */
export type Fields = Readonly<Record<string, unknown>>;

function invalid(where: string, expected: string): ClientError {
  return new ClientError(
    'bad_message',
    `The server sent an invalid message: ${where} is not ${expected}. Update the server, or reload the page.`,
  );
}

/** A map with string keys. */
export const fields: Check<Fields> = (value, where) => {
  if (typeof value !== 'object' || value === null || Array.isArray(value) || value instanceof Uint8Array) {
    throw invalid(where, 'a map');
  }
  return value as Fields;
};

/** A whole number within bounds. In JavaScript 1.0 is 1, so a float without a fraction passes. */
export function integer(min: number, max: number): Check<number> {
  return (value, where) => {
    if (typeof value !== 'number' || !Number.isInteger(value) || value < min || value > max) {
      throw invalid(where, `a whole number from ${min} to ${max}`);
    }
    return value;
  };
}

/** Any number. */
export const float: Check<number> = (value, where) => {
  if (typeof value !== 'number') throw invalid(where, 'a number');
  return value;
};

/** A boolean. */
export const bool: Check<boolean> = (value, where) => {
  if (typeof value !== 'boolean') throw invalid(where, 'true or false');
  return value;
};

/** A byte string. */
export const bytes: Check<Uint8Array> = (value, where) => {
  if (!(value instanceof Uint8Array)) throw invalid(where, 'a byte string');
  return value;
};

/** A string with a number of characters (code points) within bounds. */
export function text(min: number, max: number): Check<string> {
  return (value, where) => {
    // The length in UTF-16 units is at most twice that in characters, which takes long to count.
    if (typeof value !== 'string' || value.length < min || value.length > 2 * max || Array.from(value).length > max) {
      throw invalid(where, `a text of ${min} to ${max} characters`);
    }
    return value;
  };
}

/** One of some strings. */
export function oneOf<T extends string>(...known: readonly T[]): Check<T> {
  return (value, where) => {
    const found = known.find((name) => name === value);
    if (found === undefined) throw invalid(where, `one of ${known.join(', ')}`);
    return found;
  };
}

/** An array of at most `max` items. */
export function array<T>(item: Check<T>, max: number): Check<T[]> {
  return (value, where) => {
    if (!Array.isArray(value) || value.length > max) throw invalid(where, `an array of at most ${max} items`);
    return value.map((one) => item(one, `an item of ${where}`));
  };
}

/** An array of three items. */
export function triple<T>(item: Check<T>): Check<[T, T, T]> {
  return (value, where) => {
    if (!Array.isArray(value) || value.length !== 3) throw invalid(where, 'an array of 3 items');
    return [item(value[0], where), item(value[1], where), item(value[2], where)];
  };
}

/** A value, or nil. */
export function nullable<T>(check: Check<T>): Check<T | null> {
  return (value, where) => (value === null ? null : check(value, where));
}

/** A field that may be omitted. */
export function optional<T>(check: Check<T>, missing: T): Check<T> {
  return (value, where) => (value === undefined ? missing : check(value, where));
}

/** A map with these fields. Others are ignored. */
export function struct<T extends object>(checks: { readonly [K in keyof T]: Check<T[K]> }): Check<T> {
  return (value, where) => {
    const map = fields(value, where);
    const result: Partial<T> = {};
    for (const key in checks) result[key] = checks[key](map[key], `"${key}" of ${where}`);
    return result as T;
  };
}
