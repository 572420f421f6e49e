// DICOM files with long sequences and large values.
import { expect, test } from 'vitest';
import { EncodedItems, writeDicom, type Dataset } from '../../src/files/dicomWriter';

/** Yield items, each after more work than the page's thread does without a pause. */
function* slowItems(turns: string[]): Generator<Dataset> {
  for (let n = 0; n < 4; n++) {
    const started = performance.now();
    while (performance.now() - started < 10);
    turns.push('item');
    yield [[0x00080100, 'SH', `code ${n}`]];
  }
}

test('other work runs between the items of a long sequence', async () => {
  const turns: string[] = [];
  setTimeout(() => turns.push('other'), 0);
  await EncodedItems.of(slowItems(turns));
  expect(turns.indexOf('other')).toBeGreaterThan(0);
  expect(turns.indexOf('other')).toBeLessThan(4);
});

test('encoded items give the same file as items', async () => {
  const items: Dataset[] = [[[0x00080100, 'SH', 'odd']], [[0x00080104, 'LO', 'even']]];
  const pixels = Uint8Array.from({ length: 5 * 2 ** 20 + 1 }, (_, n) => n % 251);
  const write = async (sequence: readonly Dataset[] | EncodedItems) => {
    const dataset: Dataset = [
      [0x7fe00010, 'OB', pixels],
      [0x52009230, 'SQ', sequence],
    ];
    return Buffer.from(await (await writeDicom('1.2', '1.3', '1.4', dataset)).arrayBuffer());
  };
  const file = await write(await EncodedItems.of(items));
  expect(file.equals(await write(items))).toBe(true);
  // After the pixels, a byte that makes their number even.
  expect(file.subarray(-pixels.length - 1, -1).equals(pixels)).toBe(true);
  expect(file.at(-1)).toBe(0);
});
