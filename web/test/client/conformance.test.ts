/** The core against the conformance suite of protocol.md. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { FOLDER } from './conformance';
import { Runner, type JsonMap, type Scenario } from './scenario';

const SCENARIOS = join(FOLDER, 'scenarios');

function read(...path: string[]): unknown {
  return JSON.parse(readFileSync(join(FOLDER, ...path), 'utf8'));
}

describe('the conformance suite', () => {
  const defaults = read('defaults.json') as Record<string, JsonMap>;
  const files = readdirSync(SCENARIOS).filter((name) => name.endsWith('.json'));

  it('has scenarios', () => {
    expect(files).not.toHaveLength(0);
  });

  it.for(files)('%s', async (name) => {
    await Runner.run(read('scenarios', name) as Scenario, defaults);
  });
});
