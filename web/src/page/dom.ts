/** Small helpers for the document. */

/** Return the element of an id. Throws if it is missing, or of another type. */
export function byId<T extends HTMLElement>(id: string, type: new () => T): T {
  const element = document.getElementById(id);
  if (!(element instanceof type)) throw new Error(`The page has no ${type.name} "${id}".`);
  return element;
}

/** Return the button of an id. Throws as `byId`. */
export function button(id: string): HTMLButtonElement {
  return byId(id, HTMLButtonElement);
}

/** Return the input field of an id. Throws as `byId`. */
export function input(id: string): HTMLInputElement {
  return byId(id, HTMLInputElement);
}

/** Set a text if it differs, so that a screen reader does not read it again. */
export function setText(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

/** Create an element with properties and children. */
export function create<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  properties: Partial<HTMLElementTagNameMap[K]> = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Paths of icons, in a square of 24. */
const ICONS = {
  shown: 'M2 12s3.6-6.5 10-6.5S22 12 22 12s-3.6 6.5-10 6.5S2 12 2 12zM12 9a3 3 0 1 0 0 6 3 3 0 0 0 0-6z',
  hidden: 'M2 12s3.6-6.5 10-6.5S22 12 22 12s-3.6 6.5-10 6.5S2 12 2 12zM4 20 20 4',
  rename: 'M4 20l1-4L16 5l3 3L8 19zM14 7l3 3',
  remove: 'M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13',
};

/** Create an icon. It is hidden from screen readers. */
export function icon(name: keyof typeof ICONS): SVGElement {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  path.setAttribute('d', ICONS[name]);
  svg.setAttribute('viewBox', '0 0 24 24');
  svg.setAttribute('aria-hidden', 'true');
  svg.setAttribute('class', 'icon-shape');
  svg.append(path);
  return svg;
}

/** Let the browser save a file. */
export function download(blob: Blob, name: string): void {
  const url = URL.createObjectURL(blob);
  create('a', { href: url, download: name }).click();
  // The browser has started to read the file by then.
  setTimeout(() => {
    URL.revokeObjectURL(url);
  }, 60_000);
}
