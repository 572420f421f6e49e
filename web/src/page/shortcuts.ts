/** Keyboard shortcuts, the same as in the Slicer module. */

/** An action that a key triggers. */
export type Action =
  | 'point'
  | 'box'
  | 'scribble'
  | 'lasso'
  | 'polarity'
  | 'nextSegment'
  | 'reset'
  | 'visibility'
  | 'undo'
  | 'redo'
  | 'cancel';

/** Texts of the keys. */
export const KEYS: Readonly<Record<Action, string>> = {
  point: 'P',
  box: 'B',
  scribble: 'S',
  lasso: 'L',
  polarity: 'T',
  nextSegment: 'E',
  reset: 'R',
  visibility: 'V',
  undo: 'Ctrl+Z',
  redo: 'Ctrl+Shift+Z',
  cancel: 'Esc',
};

type Press = Pick<KeyboardEvent, 'key' | 'ctrlKey' | 'metaKey' | 'altKey' | 'shiftKey'>;

/** Return the action of a key press, or null. The Command key of Macs is taken as Ctrl. */
export function actionOf({ key, ctrlKey, metaKey, altKey, shiftKey }: Press): Action | null {
  if (altKey) return null;
  const parts = [
    ctrlKey || metaKey ? 'Ctrl' : '',
    shiftKey ? 'Shift' : '',
    key === 'Escape' ? 'Esc' : key.toUpperCase(),
  ];
  const text = parts.filter((part) => part !== '').join('+');
  return (Object.keys(KEYS) as Action[]).find((action) => KEYS[action] === text) ?? null;
}

/** Call a function for each shortcut that is pressed. Keys for a text field or a dialog are left to it. */
export function listen(onAction: (action: Action) => void, isEnabled: () => boolean): void {
  document.addEventListener('keydown', (event) => {
    if (!isEnabled() || document.querySelector('dialog[open]') !== null || isTyping(event.target)) return;
    const action = actionOf(event);
    if (action === null || (event.repeat && action !== 'undo' && action !== 'redo')) return;
    event.preventDefault();
    onAction(action);
  });
}

function isTyping(target: EventTarget | null): boolean {
  if (target instanceof HTMLInputElement) return !['checkbox', 'range', 'color', 'button'].includes(target.type);
  return target instanceof HTMLSelectElement || target instanceof HTMLTextAreaElement;
}
