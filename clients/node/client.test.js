/** The client against a real gRPC server whose answers are fixed. */

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import net from 'node:net';
import { after, before, test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { feedback, QueryRecClient, QueryRecError } from './client.js';

const HERE = fileURLToPath(new URL('.', import.meta.url));
// google.rpc.Status {5, "no such scenario", ErrorInfo {ERROR_REASON_SCENARIO_UNKNOWN, queryrec.v1,
// {"field": "scenario"}}} as bytes, so that what is tested does not also make the test's input.
const DETAILS = Buffer.concat([
  Buffer.from('08051210', 'hex'),
  Buffer.from('no such scenario'),
  Buffer.from('1a6d0a28', 'hex'),
  Buffer.from('type.googleapis.com/google.rpc.ErrorInfo'),
  Buffer.from('12410a1d', 'hex'),
  Buffer.from('ERROR_REASON_SCENARIO_UNKNOWN'),
  Buffer.from('120b', 'hex'),
  Buffer.from('queryrec.v1'),
  Buffer.from('1a130a05', 'hex'),
  Buffer.from('field'),
  Buffer.from('120a', 'hex'),
  Buffer.from('scenario!!'),
]);
// Status {8, "full", ErrorInfo {ERROR_REASON_QUEUE_FULL, queryrec.v1}}.
const FULL = Buffer.concat([
  Buffer.from('08081204', 'hex'),
  Buffer.from('full'),
  Buffer.from('1a520a28', 'hex'),
  Buffer.from('type.googleapis.com/google.rpc.ErrorInfo'),
  Buffer.from('12260a17', 'hex'),
  Buffer.from('ERROR_REASON_QUEUE_FULL'),
  Buffer.from('120b', 'hex'),
  Buffer.from('queryrec.v1'),
]);

let server;
let client;
let target;
let asked;
let received;
let deadline;
let requestIds;
const peers = new Set();

const definition = loadSync('queryrec/v1/query_recommender_service.proto', {
  includeDirs: [`${HERE}../../proto`],
  longs: Number,
  enums: String,
})['queryrec.v1.QueryRecommenderService'];

const bind = (own) =>
  promisify(own.bindAsync.bind(own))('127.0.0.1:0', grpc.ServerCredentials.createInsecure());

/** Returns a server without scenarios that counts its calls. */
async function listening() {
  const own = { server: new grpc.Server(), calls: 0 };
  own.server.addService(definition, {
    ListScenarios(_, reply) {
      own.calls += 1;
      reply(null, {});
    },
  });
  own.port = await bind(own.server);
  return own;
}

before(async () => {
  server = new grpc.Server();
  server.addService(definition, {
    Recommend({ request }, reply) {
      asked = request;
      if (request.query === 'never') return;
      if (request.query === 'full') {
        const metadata = new grpc.Metadata();
        metadata.set('grpc-status-details-bin', FULL);
        reply({ code: grpc.status.RESOURCE_EXHAUSTED, details: 'full', metadata });
        return;
      }
      if (request.scenario !== 'suggestion') {
        const metadata = new grpc.Metadata();
        metadata.set('grpc-status-details-bin', DETAILS);
        reply({ code: grpc.status.NOT_FOUND, details: 'no such scenario', metadata });
        return;
      }
      const isNewer = request.query === 'newer'; // than the .proto files
      reply(null, {
        suggestions: [
          {
            text: `${request.query} case`,
            clickProbability: 0.25,
            sources: ['SUGGESTION_SOURCE_LOG', isNewer ? 99 : 'SUGGESTION_SOURCE_GENERATED'],
            position: 1,
          },
        ],
        omissions: isNewer ? [{ stage: 'score', kind: 98, reason: 97 }] : [],
        attributionToken: 'token',
        stageTimings: [{ stage: 'total', durationUs: 1500 }],
      });
    },
    RecordFeedback(call, reply) {
      const { request } = call;
      deadline = call.getDeadline();
      received = request.events;
      reply(null, { numAccepted: request.events.length });
    },
    ListScenarios(call, reply) {
      peers.add(call.getPeer());
      requestIds = call.metadata.get('x-request-id');
      reply(null, { scenarios: [{ name: 'suggestion', maxNumSuggestions: 16 }] });
    },
  });
  target = `127.0.0.1:${await bind(server)}`;
  client = new QueryRecClient(target, { timeoutMs: 10_000 });
});

after(() => {
  client.close();
  server.forceShutdown();
});

test('an answer has the fields of the contract', async () => {
  const answer = await client.recommend({ scenario: 'suggestion', query: 'phone' });
  assert.deepEqual(answer.suggestions.map((s) => [s.text, s.clickProbability, s.position]), [
    ['phone case', 0.25, 1],
  ]);
  assert.equal(answer.stageTimings[0].durationUs, 1500);
  assert.equal((await client.listScenarios())[0].maxNumSuggestions, 16);
});

test('a click carries token, position, time and an id of its own', async () => {
  const answer = await client.recommend({ scenario: 'suggestion', query: 'phone' });
  const time = new Date('2026-03-01T00:00:00.005Z');
  const events = [feedback(answer, 'CLICK', 1, { time }), feedback(answer, 'IMPRESSION', 1)];
  assert.equal((await client.recordFeedback(events)).numAccepted, 2);
  assert.equal(received[0].kind, 'FEEDBACK_KIND_CLICK');
  assert.equal(received[0].attributionToken, 'token');
  assert.deepEqual(received[0].time, { seconds: 1_772_323_200, nanos: 5_000_000 });
  assert.notEqual(received[0].eventId, received[1].eventId);
});

test('a kind that is none is not sent', async () => {
  received = undefined;
  for (const kind of ['clicked', 'unspecified', undefined, 2]) {
    const event = feedback({ attributionToken: 'token' }, kind, 1);
    await assert.rejects(client.recordFeedback([event]), (error) => {
      assert.ok(error instanceof TypeError);
      assert.match(error.message, /^request\.events\[0\]\.kind must be one of .*_CLICK/);
      return true;
    });
  }
  assert.equal(received, undefined);
  await client.recordFeedback([feedback({ attributionToken: 'token' }, 'click', 1)]);
  assert.equal(received[0].kind, 'FEEDBACK_KIND_CLICK');
});

test('more events than a call takes are not sent', async () => {
  received = undefined;
  const event = feedback({ attributionToken: 'token' }, 'click', 1);
  await assert.rejects(client.recordFeedback(Array(257).fill(event)), TypeError);
  assert.equal(received, undefined);
  assert.equal((await client.recordFeedback(Array(256).fill(event))).numAccepted, 256);
});

test('feedback has at least five seconds unless its call says otherwise', async () => {
  const event = feedback({ attributionToken: 'token' }, 'click', 1);
  const left = [];
  for (const [timeoutMs, options] of [
    [100, undefined],
    [100, { timeoutMs: undefined }],
    [100, { timeoutMs: 60_000 }],
    [600_000, {}],
  ]) {
    const caller = new QueryRecClient(target, { timeoutMs });
    await caller.recordFeedback([event], options);
    left.push(deadline - Date.now());
    caller.close();
  }
  const [short, unset, own, long] = left;
  assert.ok(100 < short && short < 6_000, left);
  assert.ok(100 < unset && unset < 6_000, left);
  assert.ok(6_000 < own && own < 61_000 && 61_000 < long, left);
});

test('events may have been JSON in between', async () => {
  const time = new Date('2026-03-01T00:00:00.005Z');
  const event = feedback({ attributionToken: 'token' }, 'CLICK', 1, { time });
  await client.recordFeedback(JSON.parse(JSON.stringify([event])));
  assert.equal(received[0].eventId, event.eventId);
  assert.deepEqual(received[0].time, { seconds: 1_772_323_200, nanos: 5_000_000 });
});

test('an event without a valid time is not sent', async () => {
  received = undefined;
  for (const time of [new Date(NaN), 'yesterday', null, undefined, {}]) {
    const event = { ...feedback({ attributionToken: 'token' }, 'CLICK', 1), time };
    await assert.rejects(client.recordFeedback([event]), TypeError);
  }
  await assert.rejects(client.recordFeedback([null]), TypeError);
  assert.equal(received, undefined);
});

test('every field of a request arrives', async () => {
  const request = {
    scenario: 'suggestion',
    query: 'phone',
    sessionId: 's',
    userKey: 'u',
    locale: 'pt-BR',
    sessionQueries: ['phones'],
    answer: 'a',
    sideInformation: [{ kind: 'title', text: 'Audio' }],
    exclude: ['x', 'y'],
    maxSuggestions: 3,
    latencyBudget: { seconds: 1, nanos: 50_000_000 },
  };
  await client.recommend(request);
  assert.deepEqual(asked, request);
});

test('what no request can hold is a TypeError that names the field', async () => {
  const wrong = {
    max_suggestions: { max_suggestions: 3 },
    latencyBudget: { latencyBudget: 0.05 },
    'latencyBudget.millis': { latencyBudget: { millis: 50 } },
    'latencyBudget.nanos': { latencyBudget: { nanos: 5e10 } },
    maxSuggestions: { maxSuggestions: '3' },
    sessionId: { sessionId: 7 },
    exclude: { exclude: 'abc' },
    'exclude[1]': { exclude: ['a', null] },
    'sideInformation[0].txt': { sideInformation: [{ kind: 'title', txt: 'Audio' }] },
  };
  for (const [field, fields] of Object.entries(wrong)) {
    const request = { scenario: 'suggestion', query: 'phone', ...fields };
    await assert.rejects(client.recommend(request), (error) => {
      assert.ok(error instanceof TypeError);
      assert.ok(error.message.startsWith(`request.${field} `), error.message);
      return true;
    });
  }
  await assert.rejects(client.recommend('phone'), TypeError);
});

test('a timeout that is none is refused, Infinity means no deadline', async () => {
  await client.listScenarios(); // the connection is open
  for (const timeoutMs of [NaN, 0, -1, 1e15, '50', null]) {
    assert.throws(() => new QueryRecClient(target, { timeoutMs }), TypeError);
    await assert.rejects(client.listScenarios({ timeoutMs }), TypeError);
  }
  for (const timeoutMs of [1e12, Infinity]) await client.listScenarios({ timeoutMs });
});

test('an error carries status, reason and metadata', async () => {
  await assert.rejects(client.recommend({ scenario: 'no', query: 'phone' }), (error) => {
    assert.ok(error instanceof QueryRecError);
    assert.equal(error.status, 'NOT_FOUND');
    assert.equal(error.reason, 'ERROR_REASON_SCENARIO_UNKNOWN');
    assert.deepEqual({ ...error.metadata }, { field: 'scenario!!' });
    assert.equal(error.retryable, false);
    return true;
  });
});

test('a full queue is worth another try, a message that is too large is not', async () => {
  await assert.rejects(client.recommend({ scenario: 'suggestion', query: 'full' }), {
    status: 'RESOURCE_EXHAUSTED',
    reason: 'ERROR_REASON_QUEUE_FULL',
    retryable: true,
  });
  const large = { scenario: 'suggestion', query: 'phone', answer: 'a'.repeat(5 << 20) };
  await assert.rejects(client.recommend(large), {
    status: 'RESOURCE_EXHAUSTED',
    reason: undefined,
    retryable: false,
  });
});

test('a passed deadline and a missing server have no reason', async () => {
  const late = client.recommend({ scenario: 'suggestion', query: 'never' }, { timeoutMs: 50 });
  await assert.rejects(late, { status: 'DEADLINE_EXCEEDED', reason: undefined });
  const nowhere = new QueryRecClient('127.0.0.1:1', { timeoutMs: 10_000 });
  await assert.rejects(nowhere.listScenarios(), { status: 'UNAVAILABLE', retryable: true });
  nowhere.close();
});

test('a server that is away is tried again every second', { timeout: 60_000 }, async () => {
  let attempts = 0;
  const away = net.createServer((socket) => {
    attempts += 1;
    socket.on('error', () => {}).destroy();
  });
  await once(away.listen(0, '127.0.0.1'), 'listening');
  const caller = new QueryRecClient(`127.0.0.1:${away.address().port}`, { timeoutMs: 10_000 });
  // With gRPC's own back-off the tenth attempt would come after almost two minutes.
  while (attempts < 10) {
    await assert.rejects(caller.listScenarios(), { status: 'UNAVAILABLE' });
    await setTimeout(20);
  }
  caller.close();
  away.close();
});

test('each client has a connection of its own', async () => {
  const clients = [1, 2, 3].map(() => new QueryRecClient(target, { timeoutMs: 10_000 }));
  peers.clear();
  for (const own of [...clients, ...clients]) await own.listScenarios();
  assert.equal(peers.size, clients.length);
  for (const own of clients) own.close();
});

test('every address of a target gets calls', { timeout: 60_000 }, async ({ signal }) => {
  const [one, other] = await Promise.all([listening(), listening()]);
  const both = `ipv4:127.0.0.1:${one.port},127.0.0.1:${other.port}`;
  const caller = new QueryRecClient(both, { timeoutMs: 10_000 });
  // The second connection may take longer.
  while (!(one.calls && other.calls)) {
    signal.throwIfAborted();
    await caller.listScenarios();
  }
  const before = [one.calls, other.calls];
  for (let i = 0; i < 10; i += 1) await caller.listScenarios();
  assert.deepEqual([one.calls, other.calls], before.map((calls) => calls + 5));
  caller.close();
  for (const { server: own } of [one, other]) own.forceShutdown();
});

test('metadata goes with a call', async () => {
  await client.listScenarios({ metadata: { 'x-request-id': 'r-1' } });
  assert.deepEqual(requestIds, ['r-1']);
  await client.listScenarios();
  assert.deepEqual(requestIds, []);
});

test('an aborted call ends with the reason of its signal', async () => {
  const aborter = new AbortController();
  const options = { signal: aborter.signal };
  const call = client.recommend({ scenario: 'suggestion', query: 'never' }, options);
  aborter.abort();
  await assert.rejects(call, { name: 'AbortError' });
});

test('ask prints suggestions, sends a click, and exits 1 with the reason on an error', async () => {
  const run = promisify(execFile);
  const ask = (...args) =>
    run(process.execPath, ['ask.js', '--target', target, '--timeout-ms', '10000', ...args], {
      cwd: HERE,
    });
  const { stdout } = await ask('--click', '1', 'phone');
  assert.match(stdout, /^1\. phone case {2}\(25\.0 % click, log\+generated\)$/m);
  assert.match(stdout, /^feedback: 2 events stored$/m);
  await assert.rejects(ask('--scenario', 'no', 'phone'), (error) => {
    assert.equal(error.code, 1);
    assert.match(error.stderr, /NOT_FOUND ERROR_REASON_SCENARIO_UNKNOWN: no such scenario/);
    return true;
  });
  await assert.rejects(ask('--max', 'many', 'phone'), { code: 2 });
});

test('values of enums that are newer than the contract are numbers, and ask prints them', async () => {
  const answer = await client.recommend({ scenario: 'suggestion', query: 'newer' });
  assert.deepEqual(answer.suggestions[0].sources, ['SUGGESTION_SOURCE_LOG', 99]);
  assert.deepEqual([answer.omissions[0].kind, answer.omissions[0].reason], [98, 97]);
  const { stdout } = await promisify(execFile)(
    process.execPath,
    ['ask.js', '--target', target, '--timeout-ms', '10000', 'newer'],
    { cwd: HERE },
  );
  assert.match(stdout, /^1\. newer case {2}\(25\.0 % click, log\+99\)$/m);
  assert.match(stdout, /^score 98: 97$/m);
});
