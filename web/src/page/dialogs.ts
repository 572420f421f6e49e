/** Questions to the user. */

import { byId, button, create, input } from './dom';

/** Ask for consent to send images to a server. */
export async function askConsent(host: string): Promise<boolean> {
  byId('consent-host', HTMLElement).textContent = host;
  return (await ask('consent')) === 'yes';
}

/** Ask for a token. Returns null if the user gives none. */
export async function askToken(reason: string): Promise<string | null> {
  byId('token-reason', HTMLElement).textContent = reason;
  const text = input('token-text');
  text.value = '';
  const answer = await ask('token');
  const token = text.value.trim();
  text.value = '';
  return answer === 'yes' && token !== '' ? token : null;
}

/** Ask which of several images to open. Returns its index, or null. */
export async function askChoice(labels: readonly string[]): Promise<number | null> {
  const choices = labels.map((label, n) => create('button', { value: String(n), textContent: label }));
  byId('choices', HTMLElement).replaceChildren(...choices);
  const answer = await ask('choose');
  return /^\d+$/.test(answer) ? Number(answer) : null;
}

/** Ask whether to do something that cannot be undone. `action`: the text of the button that does it. */
export async function askConfirmation(title: string, text: string, action: string): Promise<boolean> {
  byId('confirm-title', HTMLElement).textContent = title;
  byId('confirm-text', HTMLElement).textContent = text;
  button('confirm-yes').textContent = action;
  return (await ask('confirm')) === 'yes';
}

/** Show the help. `rows`: pairs of an input and its effect. */
export async function showHelp(rows: readonly (readonly [string, string])[]): Promise<void> {
  const list = rows.flatMap(([term, text]) => [create('dt', {}, term), create('dd', {}, text)]);
  byId('help-list', HTMLElement).replaceChildren(...list);
  await ask('help-dialog');
}

/** Show a dialog. Resolves with the value of the button that closed it, or with "" after Escape. */
function ask(id: string): Promise<string> {
  const dialog = byId(id, HTMLDialogElement);
  dialog.returnValue = '';
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener(
      'close',
      () => {
        resolve(dialog.returnValue);
      },
      { once: true },
    );
  });
}
