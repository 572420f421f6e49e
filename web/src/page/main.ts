/** The page: puts the views, the panel and the session together. */

import { Connection, type ConnectionState } from '../client/connection';
import { JournalStore } from '../client/journalStore';
import { messageOf } from '../client/errors';
import { createPacker } from '../client/packing';
import { ImageFiles } from '../files';
import { originStore } from './browserStore';
import { askConfirmation, askToken } from './dialogs';
import { button, byId, input, setText } from './dom';
import { drawTrail, Gestures, middleOf } from './gestures';
import { drawMarks } from './marks';
import { Opening } from './opening';
import { drawLetters } from './orientation';
import { Panel } from './panel';
import { clearInfos, storeInfos } from './segments';
import { Session } from './session';
import { Sliders } from './sliders';
import { StatusLine } from './statusLine';
import { keepSession, lastImage, takeSession, token } from './tabState';
import { Viewer } from './viewer';
import { startFilesWorker, startPackingWorker } from './workers';

const overlay = byId('overlay', HTMLCanvasElement);
const frame = byId('canvas-frame', HTMLElement);
const packer = createPacker(startPackingWorker());
const connection = new Connection(new URL('.', location.origin + location.pathname).href, {
  packer,
  token: token.get(),
  session: takeSession(),
});
const viewer = new Viewer(byId('canvas', HTMLCanvasElement));
const session = new Session(connection, viewer);
const gestures = new Gestures(overlay, viewer);
const panel = new Panel(session, viewer, gestures, overlay);
const sliders = new Sliders(byId('sliders', HTMLElement), viewer);
const statusLine = new StatusLine(session, viewer);

/** Draw letters and the marks of the prompts above the views, and refresh the sliders and the readout. */
function drawOverlay(): void {
  const ratio = window.devicePixelRatio;
  const { clientWidth, clientHeight } = overlay;
  Object.assign(overlay, { width: Math.round(clientWidth * ratio), height: Math.round(clientHeight * ratio) });
  const context = overlay.getContext('2d');
  if (context === null) return;
  context.scale(ratio, ratio);
  const { slices } = viewer;
  const { image, marks } = session;
  if (image !== null) for (const view of slices) drawLetters(context, view, image.volume.affine);
  const counts = slices.map((view) => `${view.plane} ${drawMarks(context, view, marks)}`);
  overlay.dataset.marks = counts.join(', ');
  if (gestures.stroke !== null) drawTrail(context, gestures.stroke, panel.color);
  sliders.refresh();
  statusLine.refreshPosition();
}

function refresh(): void {
  const { image } = session;
  const model = connection.core.welcome?.model;
  setText(byId('image-name', HTMLElement), image?.volume.name ?? '');
  setText(byId('model', HTMLElement), model === undefined ? '' : `${model.name}, license ${model.license}`);
  const notes = byId('notes', HTMLElement);
  setText(notes, image?.volume.notes.join(' ') ?? '');
  notes.hidden = notes.textContent === '';
  byId('start', HTMLElement).hidden = image !== null;
  for (const id of ['open-files', 'open-folder', 'open-example', 'start-files', 'start-folder', 'start-example']) {
    button(id).disabled = opening?.isRunning ?? true;
  }
  panel.refresh();
  statusLine.refresh();
}

function onState(state: ConnectionState): void {
  statusLine.follow(state);
  button('enter-token').hidden = !(state.state === 'refused' && state.code === 'unauthorized');
  if (state.state === 'refused' && state.code === 'unauthorized') void enterToken(state.message);
}

async function enterToken(reason: string): Promise<void> {
  const entered = await askToken(reason);
  if (entered === null) return;
  token.set(entered);
  connection.connect(entered);
}

async function openStore(): Promise<JournalStore | null> {
  try {
    const opened = await JournalStore.open();
    opened.onWarning = (message) => {
      session.showError(message);
    };
    return opened;
  } catch (error) {
    // Some private windows have no store. The page works without one, but a reload then loses the segments.
    console.info('Segments are not kept for a reload.', error);
    return null;
  }
}

/** Move the focus to the views if the button that had it is gone. */
function focusViews(): void {
  if (document.activeElement === document.body && session.image !== null) overlay.focus();
}

function connectOpening(opener: Opening): void {
  for (const [name, field] of [
    ['files', input('files')],
    ['folder', input('folder')],
  ] as const) {
    for (const id of [`open-${name}`, `start-${name}`]) {
      button(id).addEventListener('click', () => {
        field.click();
      });
    }
    field.addEventListener('change', () => {
      void opener.openFiles([...(field.files ?? [])]).then(focusViews);
      field.value = '';
    });
  }
  for (const id of ['open-example', 'start-example']) {
    button(id).addEventListener('click', () => void opener.openExample().then(focusViews));
  }
  document.addEventListener('dragover', (event) => {
    event.preventDefault();
    frame.classList.add('drop');
  });
  document.addEventListener('dragleave', (event) => {
    if (event.relatedTarget === null) frame.classList.remove('drop');
  });
  document.addEventListener('drop', (event) => {
    event.preventDefault();
    frame.classList.remove('drop');
    if (event.dataTransfer !== null) void opener.openDropped(event.dataTransfer).then(focusViews);
  });
}

function connectStore(store: JournalStore | null): void {
  button('delete-saved').addEventListener('click', () => void deleteSaved(store));
  session.onRecord = () => {
    const { image } = session;
    if (image === null) return;
    store?.saveSoon(() => session.journal());
    try {
      storeInfos(originStore, image.source.name, session.segments, Date.now());
    } catch (error) {
      session.showError(`The browser could not store the names of the segments: ${messageOf(error)}`);
    }
  };
  window.addEventListener('pagehide', () => {
    keepSession(connection.session);
    void store?.flush();
  });
  document.addEventListener('visibilitychange', () => {
    if (document.visibilityState === 'hidden') void store?.flush();
  });
}

/** Continue with the image that was open before a reload, or ask for it. `areSegmentsKept`: whether there is a store. */
async function continueWork(opener: Opening, areSegmentsKept: boolean): Promise<void> {
  const last = lastImage.get();
  if (new URLSearchParams(location.search).has('example') || last?.isExample === true) {
    await opener.openExample();
  } else if (last !== null && areSegmentsKept) {
    const text = byId('start-continue', HTMLElement);
    text.textContent = `Open ${last.name} again to continue. The segments are kept.`;
    text.hidden = false;
  }
}

/** Delete the user's work that this browser keeps, after a question. */
async function deleteSaved(store: JournalStore | null): Promise<void> {
  const agrees = await askConfirmation(
    'Delete saved prompts?',
    'This browser keeps the prompts, masks and names of segments, so that you can continue later. They will be deleted ' +
      'for all images. The open segments stay in this tab, and are saved again with the next prompt.',
    'Delete',
  );
  if (!agrees) return;
  try {
    await store?.clear();
    clearInfos(originStore);
    lastImage.clear();
    byId('start-continue', HTMLElement).hidden = true;
    session.setStatus({ kind: 'ready', message: 'The saved prompts were deleted.' });
  } catch (error) {
    session.showError(`The saved prompts could not be deleted: ${messageOf(error)}`);
  }
}

/** Start the views. Returns false in a browser that cannot draw them, and tells the user. */
async function attachViews(): Promise<boolean> {
  try {
    await viewer.attach();
    return true;
  } catch (error) {
    console.info('The views cannot be drawn.', error);
    const problem = byId('start-problem', HTMLElement);
    problem.textContent =
      'This browser cannot show images, because WebGL 2 does not work in it. Turn on hardware acceleration in the ' +
      'settings of the browser, or use another browser or computer.';
    problem.hidden = false;
    session.showError(problem.textContent);
    return false;
  }
}

async function start(): Promise<void> {
  if (!(await attachViews())) return; // before a session is opened, which could not be used
  connection.onState(onState);
  connection.connect();
  const store = await openStore();
  opening = new Opening(session, new ImageFiles(startFilesWorker()), packer, store);
  connectOpening(opening);
  connectStore(store);
  viewer.onLost = () => {
    const advice =
      store === null ? 'Save the segments, and reload the page.' : 'Reload the page; the segments are kept.';
    session.showError(`The browser lost the graphics. ${advice}`);
  };
  panel.use('point');
  refresh();
  await continueWork(opening, store !== null);
}

let opening: Opening | null = null;
viewer.onDraw = drawOverlay;
session.onChange = refresh;
gestures.onStroke = (stroke) => {
  viewer.moveTo(middleOf(stroke));
  session.addStroke(stroke, panel.isPositive);
};
overlay.addEventListener('pointermove', (event) => {
  statusLine.point(event.offsetX, event.offsetY);
});
overlay.addEventListener('pointerleave', ({ pointerType }) => {
  // A finger leaves the views when it is lifted, and the user then reads the voxel.
  if (pointerType !== 'touch') statusLine.leave();
});
button('enter-token').addEventListener('click', () => {
  void enterToken('Enter a token.');
});
await start();
