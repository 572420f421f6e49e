import type { Vector } from './volume';

/** XYZ of the primaries of sRGB, by rows, and of its white point D65 (IEC 61966-2-1). */
const SRGB_TO_XYZ: readonly Vector[] = [
  [0.4124, 0.3576, 0.1805],
  [0.2126, 0.7152, 0.0722],
  [0.0193, 0.1192, 0.9505],
];
const D65: Vector = [0.9505, 1, 1.089];

/** Return an sRGB color (0 to 1) as DICOM's CIELab value: three numbers from 0 to 65535. */
export function dicomLab(color: Vector): number[] {
  const linear = color.map((c) => (c > 0.04045 ? ((c + 0.055) / 1.055) ** 2.4 : c / 12.92));
  const [x, y, z] = SRGB_TO_XYZ.map((row, n) => {
    const ratio = (row[0] * linear[0] + row[1] * linear[1] + row[2] * linear[2]) / D65[n];
    return ratio > (6 / 29) ** 3 ? Math.cbrt(ratio) : ratio / (3 * (6 / 29) ** 2) + 4 / 29;
  });
  const [l, a, b] = [116 * y - 16, 500 * (x - y), 200 * (y - z)];
  return [l / 100, (a + 128) / 255, (b + 128) / 255].map((part) => Math.round(Math.min(1, Math.max(0, part)) * 65535));
}
