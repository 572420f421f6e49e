/** Work on the page's thread pauses after this time, so that the page can draw its next frame. */
const MAX_WORK_MS = 8;

/** Return a function to be awaited between small steps of long work. It lets the page do its own work if that is due. */
export function pauses(): () => Promise<void> {
  let started = performance.now();
  return async () => {
    if (performance.now() - started < MAX_WORK_MS) return;
    await nextTask();
    started = performance.now();
  };
}

/** Wait for the tasks that are due. A timeout would wait for at least 4 milliseconds. */
async function nextTask(): Promise<void> {
  const { port1, port2 } = new MessageChannel();
  await new Promise((resolve) => {
    port1.onmessage = resolve;
    port2.postMessage(undefined);
  });
  port1.close();
}
