#!/usr/bin/env node
/** Asks a queryrec service for suggestions, prints them, and reports what was seen and clicked. */

import { parseArgs } from 'node:util';
import { feedback, QueryRecClient, QueryRecError } from './client.js';

const USAGE = `usage: node ask.js [options] QUERY
  --target HOST:PORT   where the service listens (default localhost:50051)
  --scenario NAME      panel to fill (default suggestion)
  --max N              at most this many suggestions (default: the scenario's)
  --timeout-ms MS      deadline of the question (default 1000)
  --click POSITION     report all suggestions as seen and this one as clicked
  --json               print one JSON object instead of a table`;

function parse() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      target: { type: 'string', default: 'localhost:50051' },
      scenario: { type: 'string', default: 'suggestion' },
      max: { type: 'string', default: '0' },
      'timeout-ms': { type: 'string', default: '1000' },
      click: { type: 'string' },
      json: { type: 'boolean', default: false },
    },
  });
  if (positionals.length !== 1) throw new TypeError(`give one QUERY, not ${positionals.length}`);
  const whole = (name) => {
    const value = Number(values[name] ?? 0);
    if (value !== (value | 0)) throw new TypeError(`--${name} must be a whole number`);
    return value;
  };
  const positive = (name) => {
    const value = whole(name);
    if (value < 1) throw new TypeError(`--${name} is ${value}, must be at least 1`);
    return value;
  };
  return {
    ...values,
    query: positionals[0],
    max: whole('max'),
    timeoutMs: positive('timeout-ms'),
    click: values.click === undefined ? undefined : positive('click'),
  };
}

async function main() {
  let args;
  try {
    args = parse();
  } catch (error) {
    console.error(`${error.message}\n${USAGE}`);
    return 2;
  }
  const client = new QueryRecClient(args.target, { timeoutMs: args.timeoutMs });
  try {
    const answer = await client.recommend({
      scenario: args.scenario,
      query: args.query,
      maxSuggestions: args.max,
    });
    let receipt;
    if (args.click) {
      const seen = answer.suggestions.map((s) => feedback(answer, 'impression', s.position));
      receipt = await client.recordFeedback([...seen, feedback(answer, 'click', args.click)]);
    }
    if (args.json) {
      console.log(JSON.stringify({ answer, receipt }));
    } else {
      print(answer, receipt);
    }
    return receipt?.refusals.length ? 1 : 0;
  } catch (error) {
    if (!(error instanceof QueryRecError)) throw error;
    console.error(error.reason ? `${error.status} ${error.message}` : error.message);
    for (const [key, value] of Object.entries(error.metadata)) console.error(`  ${key}: ${value}`);
    return 1;
  } finally {
    client.close();
  }
}

function print(answer, receipt) {
  if (answer.auxiliaryText) console.log(answer.auxiliaryText);
  for (const { position, text, clickProbability, sources } of answer.suggestions) {
    const from = sources.map((s) => words(s, 'SUGGESTION_SOURCE_')).join('+');
    console.log(`${position}. ${text}  (${(100 * clickProbability).toFixed(1)} % click, ${from})`);
  }
  for (const { stage, kind, reason } of answer.omissions) {
    const [what, why] = [words(kind, 'OMISSION_KIND_'), words(reason, 'OMISSION_REASON_')];
    console.log(`${stage} ${what}: ${why}`);
  }
  const timings = answer.stageTimings.map((t) => `${t.stage} ${(t.durationUs / 1000).toFixed(1)}`);
  console.log(`ms: ${timings.join(', ')}`);
  if (receipt) console.log(`feedback: ${receipt.numAccepted} events stored`);
  for (const { eventIndex, reason, message } of receipt?.refusals ?? []) {
    console.log(`event ${eventIndex} refused: ${reason}: ${message}`);
  }
}

/** Returns the name of an enum's value as words, or its number if it is newer than the contract. */
function words(value, prefix) {
  return String(value).replace(prefix, '').replaceAll('_', ' ').toLowerCase();
}

process.exitCode = await main();
