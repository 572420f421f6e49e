/** The views: three slices and a 3-D view of the volume with its segments, drawn by NiiVue. */

import { Niivue, NVImage, SLICE_TYPE, SHOW_RENDER } from '@niivue/niivue';
import type { Box, Index } from '../client/geometry';
import type { DType } from '../client/messages';
import { axesOf, length } from '../files/geometry';
import type { Volume } from '../files/volume';
import { NIFTI_CODES } from '../files/voxels';
import { voxelAt, type Axis, type Point } from './rasterize';
import { Labelmap, type Layer } from './labelmap';

/** A color, with red, green and blue from 0 to 255. */
export type Rgb = readonly [number, number, number];

/** Opacity of a segment that is a result, and of one that is a preview. */
const RESULT_ALPHA = 150;
const PREVIEW_ALPHA = 70;

/** Window of a volume: the values shown as black and as white. */
export interface IntensityWindow {
  low: number;
  high: number;
}

/** One slice view on the screen: how voxels and pixels correspond. Pixels are those of CSS, from the canvas's corner. */
export interface SliceView {
  plane: 'axial' | 'sagittal' | 'coronal';
  /** The axis of the volume that is orthogonal to the view. */
  axis: Axis;
  /** The voxel index along `axis` of the slice. */
  slice: number;
  /** Number of slices along `axis`. */
  count: number;
  /** Left, top, width and height of the image. */
  frame: Rectangle;
  /** The part of the canvas in which the view is. */
  area: Rectangle;
  /** The position of a pixel, also of one outside of the view. */
  toVoxel(x: number, y: number): Point;
  /** The pixel of a position, projected along `axis`. */
  toPixel(point: Point): [number, number];
}

/** Space below each view, for its slider, and between the views. */
const BAR_HEIGHT = 30;
const GAP = 4;

/** The type of slice of each plane, and the axis of NiiVue's space (right, anterior, superior) that is orthogonal to it. */
const PLANES = {
  axial: { type: SLICE_TYPE.AXIAL, rasAxis: 2 },
  sagittal: { type: SLICE_TYPE.SAGITTAL, rasAxis: 0 },
  coronal: { type: SLICE_TYPE.CORONAL, rasAxis: 1 },
} as const;
type Plane = keyof typeof PLANES;
const MAX_ZOOM = 20;
/** Direction of the 3-D view in degrees: nearly from the front, with the right side of the patient at the left. */
const FRONT = { azimuth: 160, elevation: 15 };

/** The voxel types that NiiVue shows without a conversion of its own. */
const SHOWN_TYPES: readonly DType[] = ['uint8', 'int16', 'uint16', 'float32'];

/** NiiVue without uploads of zeros to textures, in which WebGL has them already. For large volumes they take long. */
class FastNiivue extends Niivue {
  override rgbaTex(texture: WebGLTexture | null, unit: number, dims: number[]): WebGLTexture | null {
    return super.rgbaTex(texture, unit, dims, false);
  }

  /** Create the bitmap and the texture of the drawing alone. NiiVue's undo and its growing tool would keep copies. */
  override createEmptyDrawing(): void {
    const dims = this.back?.dims;
    if (dims === undefined) throw new Error('There is no volume to draw on.');
    this.drawBitmap = new Uint8Array(dims[1] * dims[2] * dims[3]);
    this.drawTexture = this.r8Tex(this.drawTexture, this.gl.TEXTURE7, dims);
  }
}

/** Shows a volume and the segments on it. */
export class Viewer {
  /** Called after each drawing, for what is drawn above the views. */
  onDraw: () => void = () => undefined;
  /** Called when the browser has taken the graphics away, for instance after an error of the driver. */
  onLost: () => void = () => undefined;
  /** Called when the window has changed. */
  onWindow: () => void = () => undefined;

  private readonly nv = new FastNiivue({
    interactive: false,
    dragAndDropEnabled: false,
    show3Dcrosshair: true,
    crosshairColor: [0.45, 0.75, 1, 0.7],
    crosshairWidth: 0.4,
    crosshairWidthUnit: 'voxels',
    crosshairGap: 8,
    backColor: [0.055, 0.066, 0.082, 1],
    fontColor: [0.65, 0.69, 0.74, 1],
    fontMinPx: 12,
    isColorbar: false,
    isOrientationTextVisible: false,
    isRadiologicalConvention: true,
    sagittalNoseLeft: true,
    loadingText: '',
    logLevel: 'error',
    multiplanarShowRender: SHOW_RENDER.ALWAYS,
  });
  private shown: { image: NVImage; labelmap: Labelmap } | null = null;
  private isStale = false;
  private isWindowStale = false;
  private isRequested = false;

  constructor(private readonly canvas: HTMLCanvasElement) {}

  /** Start to draw. Rejects if the browser has no WebGL 2. */
  async attach(): Promise<void> {
    await this.nv.attachToCanvas(this.canvas);
    this.canvas.addEventListener('webglcontextlost', () => {
      this.onLost();
    });
    this.layOut();
    new ResizeObserver(() => {
      this.layOut();
    }).observe(this.canvas);
  }

  /** Show a volume in place of the previous one, without segments. Throws if it is too large for the graphics. */
  show(volume: Volume): void {
    const limit = this.nv.uiData.max3D ?? Infinity;
    if (Math.max(...volume.shape) > limit) {
      const size = volume.shape.join(' × ');
      throw new Error(`The image has ${size} voxels, and this browser shows at most ${limit} along an axis. Crop it.`);
    }
    const image = toNvImage(volume); // first, as memory may be short, and the previous volume then stays
    for (const each of [...this.nv.volumes]) this.nv.removeVolume(each);
    this.nv.addVolume(image);
    this.nv.createEmptyDrawing();
    this.nv.setDrawOpacity(1);
    const { permRAS } = image;
    const { drawBitmap } = this.nv;
    if (permRAS === undefined || drawBitmap === null) throw new Error('NiiVue did not accept the volume.');
    this.shown = { image, labelmap: new Labelmap(volume.shape, permRAS, drawBitmap) };
    this.nv.scene.pan2Dxyzmm = [0, 0, 0, 1];
    this.nv.scene.volScaleMultiplier = 1;
    Object.assign(this.nv.scene, { renderAzimuth: FRONT.azimuth, renderElevation: FRONT.elevation });
    this.crosshair = [volume.shape[0] >> 1, volume.shape[1] >> 1, volume.shape[2] >> 1];
    this.onWindow();
  }

  /** Request a drawing at the next frame. */
  draw(): void {
    this.isStale = true;
    this.drawAbove();
  }

  /** Request a drawing of what is above the views only, which is quick. */
  drawAbove(): void {
    if (this.isRequested) return;
    this.isRequested = true;
    requestAnimationFrame(() => {
      this.isRequested = false;
      this.refresh();
      this.onDraw();
    });
  }

  private refresh(): void {
    if (this.shown === null) return;
    // NiiVue uploads the whole volume again, so that this is done once per frame.
    if (this.isWindowStale) this.nv.refreshLayers(this.shown.image, 0);
    if (this.isStale) this.nv.drawScene();
    this.isWindowStale = this.isStale = false;
  }

  // ---- segments ----

  /** Show the segments inside a box. `layers`: the top one first. */
  paint(box: Box, layers: readonly Layer[]): void {
    const { labelmap } = this.current;
    const [x, y, z] = labelmap.compose(box, layers);
    const { gl } = this.nv;
    // NiiVue's refreshDrawing() uploads the whole volume.
    gl.activeTexture(gl.TEXTURE7);
    gl.bindTexture(gl.TEXTURE_3D, this.nv.drawTexture);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    gl.pixelStorei(gl.UNPACK_ROW_LENGTH, labelmap.size[0]);
    gl.pixelStorei(gl.UNPACK_IMAGE_HEIGHT, labelmap.size[1]);
    gl.pixelStorei(gl.UNPACK_SKIP_PIXELS, x[0]);
    gl.pixelStorei(gl.UNPACK_SKIP_ROWS, y[0]);
    gl.pixelStorei(gl.UNPACK_SKIP_IMAGES, z[0]);
    const [width, height, depth] = [x[1] - x[0], y[1] - y[0], z[1] - z[0]];
    const { bitmap } = labelmap;
    gl.texSubImage3D(gl.TEXTURE_3D, 0, x[0], y[0], z[0], width, height, depth, gl.RED, gl.UNSIGNED_BYTE, bitmap);
    for (const name of UNPACK_FIELDS) gl.pixelStorei(gl[name], 0);
    this.draw();
  }

  /** Set the colors of the labels 1 to n. A preview is paler than a result. */
  setColors(colors: ReadonlyMap<number, { color: Rgb; isPreview: boolean }>): void {
    const lut = new Uint8ClampedArray(256 * 4);
    for (const [label, { color, isPreview }] of colors) {
      lut.set([...color, isPreview ? PREVIEW_ALPHA : RESULT_ALPHA], 4 * label);
    }
    this.nv.drawLut = { ...this.nv.drawLut, lut };
    if (this.shown !== null) this.nv.refreshColormaps();
    this.draw();
  }

  // ---- window ----

  get window(): IntensityWindow {
    return { low: this.shown?.image.cal_min ?? 0, high: this.shown?.image.cal_max ?? 1 };
  }

  set window({ low, high }: IntensityWindow) {
    const { image } = this.current;
    image.cal_min = low;
    image.cal_max = high;
    this.isWindowStale = true;
    this.onWindow();
    this.draw();
  }

  /** The window that suits most of the voxels. */
  get automaticWindow(): IntensityWindow {
    return { low: this.shown?.image.robust_min ?? 0, high: this.shown?.image.robust_max ?? 1 };
  }

  /** From the smallest to the greatest value. */
  get fullWindow(): IntensityWindow {
    return { low: this.shown?.image.global_min ?? 0, high: this.shown?.image.global_max ?? 1 };
  }

  // ---- navigation ----

  /** The voxel at which the three slices meet. */
  get crosshair(): Index {
    return voxelAt(this.toFile(this.nv.scene.crosshairPos));
  }

  set crosshair(voxel: Index) {
    const { labelmap } = this.current;
    this.nv.scene.crosshairPos = toFraction(labelmap.toRas(voxel), labelmap.size);
    this.draw();
  }

  /** Move the crosshair to the voxel of a position, or to the nearest one of the volume. */
  moveTo(point: Point): void {
    const { shape } = this.current.labelmap;
    const voxel = voxelAt(point);
    const clamped = (n: Axis) => Math.min(shape[n] - 1, Math.max(0, voxel[n]));
    this.crosshair = [clamped(0), clamped(1), clamped(2)];
  }

  /** Move the crosshair by voxels along right, anterior and superior. */
  moveCrosshair(steps: Point): void {
    const { labelmap } = this.current;
    const ras = labelmap.toRas(this.crosshair);
    this.moveTo(labelmap.toFile([ras[0] + steps[0], ras[1] + steps[1], ras[2] + steps[2]]));
  }

  /** Show the slices of a view that are further by a number of voxels toward right, anterior or superior. */
  scroll({ axis }: SliceView, slices: number): void {
    const steps: [number, number, number] = [0, 0, 0];
    steps[this.current.labelmap.rasAxis(axis)] = slices;
    this.moveCrosshair(steps);
  }

  /** Magnify the slices around a pixel. */
  zoom(view: SliceView, x: number, y: number, factor: number): void {
    const pan = this.nv.scene.pan2Dxyzmm;
    const magnified = Math.min(MAX_ZOOM, Math.max(1, pan[3] * factor));
    const fixed = this.toMillimeters(view.toVoxel(x, y));
    // At magnification 1, the slices fill the views.
    const moved = fixed.map((mm, n) => (magnified === 1 ? 0 : pan[n] + mm * (pan[3] - magnified)));
    this.nv.scene.pan2Dxyzmm = [moved[0], moved[1], moved[2], magnified];
    this.draw();
  }

  /** Move the slices by a drag from one pixel to another. */
  pan(view: SliceView, from: Pixel, to: Pixel): void {
    const pan = this.nv.scene.pan2Dxyzmm;
    const a = this.toMillimeters(view.toVoxel(...from));
    const b = this.toMillimeters(view.toVoxel(...to));
    const moved = [0, 1, 2].map((n) => pan[n] + pan[3] * (b[n] - a[n]));
    this.nv.scene.pan2Dxyzmm = [moved[0], moved[1], moved[2], pan[3]];
    this.draw();
  }

  /** Rotate the 3-D view, in degrees. */
  rotate(azimuth: number, elevation: number): void {
    this.nv.scene.renderAzimuth += azimuth;
    this.nv.scene.renderElevation = Math.min(90, Math.max(-90, this.nv.scene.renderElevation + elevation));
    this.draw();
  }

  /** Magnify the 3-D view. */
  zoomRender(factor: number): void {
    this.nv.scene.volScaleMultiplier = Math.min(4, Math.max(0.5, this.nv.scene.volScaleMultiplier * factor));
    this.draw();
  }

  // ---- geometry ----

  /** The slice views of the last drawing. */
  get slices(): SliceView[] {
    if (this.shown === null) return [];
    return this.nv.screenSlices.flatMap((_, tile) => this.sliceView(tile) ?? []);
  }

  /** The slice view at a pixel, "render" for the 3-D view, or null. */
  viewAt(x: number, y: number): SliceView | 'render' | null {
    if (this.shown === null) return null;
    const tile = this.nv.tileIndex(x * this.scale, y * this.scale);
    if (tile < 0) return null;
    return this.sliceView(tile) ?? 'render';
  }

  private get current(): { image: NVImage; labelmap: Labelmap } {
    if (this.shown === null) throw new Error('No volume is shown.');
    return this.shown;
  }

  /** Arrange the views in two rows of two. */
  private layOut(): void {
    const { clientWidth, clientHeight } = this.canvas;
    if (clientWidth <= 0 || clientHeight <= 4 * BAR_HEIGHT) return;
    const [x, y] = [GAP / clientWidth, GAP / clientHeight];
    const [width, height] = [0.5 - 2 * x, 0.5 - BAR_HEIGHT / clientHeight - y];
    const position = (column: number, row: number): Rectangle => [column / 2 + x, row / 2 + y, width, height];
    this.nv.setCustomLayout([
      { sliceType: SLICE_TYPE.AXIAL, position: [...position(0, 0)] },
      { sliceType: SLICE_TYPE.SAGITTAL, position: [...position(1, 0)] },
      { sliceType: SLICE_TYPE.CORONAL, position: [...position(0, 1)] },
      { sliceType: SLICE_TYPE.RENDER, position: [...position(1, 1)] },
    ]);
    this.draw();
  }

  /** The part of the canvas for a plane. */
  private areaOf(plane: Plane): Rectangle {
    const view = this.nv.getCustomLayout()?.find(({ sliceType }) => sliceType === PLANES[plane].type);
    const [left, top, width, height] = view?.position ?? [0, 0, 0, 0];
    const { clientWidth, clientHeight } = this.canvas;
    return [left * clientWidth, top * clientHeight, width * clientWidth, height * clientHeight];
  }

  private get scale(): number {
    return this.nv.uiData.dpr ?? 1;
  }

  private sliceView(tile: number): SliceView | null {
    const { leftTopWidthHeight, axCorSag } = this.nv.screenSlices[tile];
    const plane = (Object.keys(PLANES) as Plane[]).find((each) => PLANES[each].type === axCorSag);
    if (plane === undefined) return null;
    const { labelmap } = this.current;
    const [left, top, width, height] = leftTopWidthHeight.map((at) => at / this.scale);
    const at = (x: number, y: number) =>
      this.toFile(
        this.nv.screenXY2TextureFrac((left + x * width) * this.scale, (top + y * height) * this.scale, tile, false),
      );
    // NiiVue maps only pixels inside of a view. The map is linear, so three of them determine it.
    const [middle, right, below] = [at(0.5, 0.5), at(0.75, 0.5), at(0.5, 0.75)];
    const perX = middle.map((m, n) => (right[n] - m) / (0.25 * width));
    const perY = middle.map((m, n) => (below[n] - m) / (0.25 * height));
    const [centerX, centerY] = [left + width / 2, top + height / 2];
    const axis = labelmap.fileAxis(PLANES[plane].rasAxis);
    const horizontal = largest(perX);
    const vertical = largest(perY);
    return {
      plane,
      axis,
      slice: this.crosshair[axis],
      count: labelmap.shape[axis],
      area: this.areaOf(plane),
      frame: [left, top, width, height],
      toVoxel: (x, y) => {
        const point = middle.map((m, n) => m + (x - centerX) * perX[n] + (y - centerY) * perY[n]);
        point[axis] = this.crosshair[axis];
        return point as unknown as Point;
      },
      toPixel: (point) => [
        centerX + (point[horizontal] - middle[horizontal]) / perX[horizontal],
        centerY + (point[vertical] - middle[vertical]) / perY[vertical],
      ],
    };
  }

  /** The position in the file's voxels of NiiVue's texture coordinates. */
  private toFile(fraction: ArrayLike<number>): Point {
    const { labelmap } = this.current;
    const ras = (n: 0 | 1 | 2) => fraction[n] * labelmap.size[n] - 0.5;
    return labelmap.toFile([ras(0), ras(1), ras(2)]);
  }

  private toMillimeters(point: Point): Point {
    const { labelmap } = this.current;
    const mm = this.nv.frac2mm(toFraction(labelmap.toRas(point), labelmap.size));
    return [mm[0], mm[1], mm[2]];
  }
}

/** NiiVue's texture coordinates of a position in its voxels. */
function toFraction(ras: Point, size: Point): [number, number, number] {
  return [(ras[0] + 0.5) / size[0], (ras[1] + 0.5) / size[1], (ras[2] + 0.5) / size[2]];
}

/** Left, top, width and height in pixels of CSS. */
export type Rectangle = readonly [left: number, top: number, width: number, height: number];

/** A pixel of CSS, from the left and top of the views. */
export type Pixel = [x: number, y: number];

const UNPACK_FIELDS = [
  'UNPACK_ROW_LENGTH',
  'UNPACK_IMAGE_HEIGHT',
  'UNPACK_SKIP_PIXELS',
  'UNPACK_SKIP_ROWS',
  'UNPACK_SKIP_IMAGES',
] as const;

/** The index of the element with the greatest absolute value. */
function largest(values: readonly number[]): number {
  return values.reduce((best, value, n) => (Math.abs(value) > Math.abs(values[best]) ? n : best), 0);
}

/** Make NiiVue's image of a volume. Voxels of types that NiiVue shows are not copied. */
function toNvImage(volume: Volume): NVImage {
  const { shape, affine, name } = volume;
  const { voxels, dtype } = displayed(volume);
  const spacing = axesOf(affine).map(length);
  const image = new NVImage();
  const header = NVImage.createNiftiHeader([...shape], spacing, affine.flat());
  header.datatypeCode = NIFTI_CODES[dtype];
  header.numBitsPerVoxel = 8 * voxels.BYTES_PER_ELEMENT;
  image.hdr = header;
  const raw = voxels.buffer;
  // The voxels are the last argument. The first one only has to be there. Between them are NiiVue's defaults, except
  // that the window is computed from the voxels.
  // prettier-ignore
  image.init(raw, name, 'gray', 1, null, NaN, NaN, false, 0.02, false, false, '', 0,
             undefined, NaN, NaN, false, null, 0, raw);
  return image;
}

/** The voxels in a type that NiiVue shows as it is, in a buffer of their own. */
function displayed({ voxels, dtype }: Volume): Pick<Volume, 'voxels' | 'dtype'> {
  if (!SHOWN_TYPES.includes(dtype)) return { voxels: Float32Array.from(voxels), dtype: 'float32' };
  return { voxels: voxels.byteLength === voxels.buffer.byteLength ? voxels : voxels.slice(), dtype };
}
