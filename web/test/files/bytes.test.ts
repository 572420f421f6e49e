import { gzipSync } from 'node:zlib';
import { expect, test } from 'vitest';
import { membersOf, readExactly, readStart } from '../../src/files/bytes';

const first = gzipSync(Buffer.alloc(100_000, 'abc'));
const second = gzipSync(Buffer.alloc(70_000, 'xyz'));

test('the members of a gzip file are found', async () => {
  const parts = await membersOf(new Blob([first, second, first]), 'a.gz');
  expect(parts.map((part) => part.size)).toEqual([first.length, second.length, first.length]);
});

test('a gzip file of one member, and a damaged one, are not split', async () => {
  expect(await membersOf(new Blob([first]), 'a.gz')).toHaveLength(1);
  expect(await membersOf(new Blob([first.subarray(0, 10), Buffer.alloc(50, 255)]), 'a.gz')).toHaveLength(0);
});

test('the start of a file is that of its content', async () => {
  const { start, gzip } = await readStart(new File([first], 'a.gz'), 10);
  expect(gzip).toBe(true);
  expect(Buffer.from(start).toString()).toBe('abcabcabca');
});

test('bytes are skipped and counted, and the progress grows to 1', async () => {
  const shares: number[] = [];
  const source = { name: 'a.gz', blob: new Blob([first]), packing: 'gzip', skipped: 99_990 } as const;
  const { content, surplus } = await readExactly(source, 6, (share) => shares.push(share));
  expect(Buffer.from(content).toString()).toBe('abcabc');
  expect(surplus).toBe(4);
  expect(shares).toEqual([...shares].sort((a, b) => a - b));
  expect(shares.at(-1)).toBe(1);
});

test('too few bytes are refused before memory for them is taken', async () => {
  const source = { name: 'a.nii', blob: new Blob([first]), packing: 'gzip', skipped: 0 } as const;
  await expect(readExactly(source, 1e13, () => undefined)).rejects.toThrow(
    /a\.nii is incomplete: its header announces 10,000,000,000,000 bytes of voxels, found at most/,
  );
});
