/**
 * A client of the queryrec service.
 *
 * Loads the contract from the .proto files themselves. Requests and responses have the contract's
 * fields in camelCase, enums as the names of their values (as numbers, where they are newer than
 * the .proto files), and times as Date. It never retries; `QueryRecError.retryable` says when it
 * helps to ask again, `recordFeedback` when to send events again.
 *
 * What no request can hold (a field that the contract does not have, a number where a text belongs)
 * is a TypeError: nothing is sent then.
 */

import { randomUUID } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import protobuf from 'protobufjs';

const PROTO_DIR = fileURLToPath(new URL('../../proto', import.meta.url));
const DOMAIN = 'queryrec.v1';
const QUEUE_FULL = 'ERROR_REASON_QUEUE_FULL';
const MAX_TIMEOUT_MS = 1e12; // gRPC can send no time that is much longer
const MAX_EVENTS = 256;
const FEEDBACK_TIMEOUT_MS = 5000; // a disk may take longer than an answer may
const IS_WHOLE = { TYPE_INT32: (n) => n === (n | 0), TYPE_INT64: Number.isSafeInteger };
const CHANNEL_OPTIONS = {
  'grpc.use_local_subchannel_pool': 1, // else clients share connections
  // By default the first address that answers gets all calls.
  'grpc.service_config': JSON.stringify({ loadBalancingConfig: [{ round_robin: {} }] }),
  // By default a lost server is tried again after 1 s, later after up to 120 s.
  'grpc.initial_reconnect_backoff_ms': 100,
  'grpc.max_reconnect_backoff_ms': 1000,
  // A host that vanishes closes no connection; pings find out, and only while calls wait.
  'grpc.keepalive_time_ms': 10_000,
  'grpc.keepalive_timeout_ms': 5_000,
};

// google.rpc.Status and ErrorInfo, which gRPC sends as binary trailing metadata.
const rpc = protobuf.parse(`
  syntax = "proto3";
  package google.rpc;
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
`).root;
const Status = rpc.lookupType('google.rpc.Status');
const ErrorInfo = rpc.lookupType('google.rpc.ErrorInfo');

/** A call that failed. */
export class QueryRecError extends Error {
  /** @param {grpc.ServiceError} cause */
  constructor(cause) {
    const info = errorInfo(cause);
    const status = grpc.status[cause.code] ?? String(cause.code);
    super(`${info?.reason ?? status}: ${cause.details}`, { cause });
    this.name = 'QueryRecError';
    /** The gRPC status, such as 'INVALID_ARGUMENT'. */
    this.status = status;
    /**
     * Name of the ErrorReason, such as 'ERROR_REASON_QUERY_EMPTY'; undefined if the failure did not
     * come from the service itself (no connection, deadline passed).
     */
    this.reason = info?.reason;
    /** What error_reason.proto lists with the reason, such as the field. */
    this.metadata = info?.metadata ?? {};
    /**
     * Whether the same question may be answered later or on another replica. UNAVAILABLE may, from
     * whomever it comes, and so may a full queue. RESOURCE_EXHAUSTED without that reason is gRPC's
     * word for a message or metadata that are too large, now and later. Not for feedback, which is
     * to be sent again more often: see `recordFeedback`.
     */
    this.retryable = cause.code === grpc.status.UNAVAILABLE || this.reason === QUEUE_FULL;
  }
}

/**
 * What to recommend queries for; query_recommender_service.proto has the limits of each field.
 *
 * @typedef {object} RecommendRequest
 * @property {string} scenario Name of the panel, as `listScenarios` has it.
 * @property {string} query What the user searched for or has typed so far.
 * @property {string} [sessionId] Opaque id of the search session.
 * @property {string} [userKey] Checked, but at present not used; give it to `feedback`.
 * @property {string} [locale] BCP 47 tag; checked, but at present not used.
 * @property {string[]} [sessionQueries] The session's earlier queries, oldest first.
 * @property {string} [answer] The assistant's answer, for conversational search.
 * @property {{kind: string, text: string}[]} [sideInformation] Most important first.
 * @property {string[]} [exclude] Texts not to suggest.
 * @property {number} [maxSuggestions] At most this many; 0 means the scenario's default.
 * @property {{seconds?: number, nanos?: number}} [latencyBudget] Asks for an answer in less time
 *   than the deadline: { nanos: 50_000_000 } is 50 ms.
 */

/**
 * The connections to the service; share it, it carries any number of calls at once. Each client has
 * connections of its own, one to each address of its target, which take turns.
 */
export class QueryRecClient {
  #definition;
  #stub;
  #timeoutMs;

  /**
   * @param {string} target Address or addresses, such as 'localhost:50051', 'dns:///queryrec:50051'
   *   or 'ipv4:10.0.0.1:50051,10.0.0.2:50051'.
   * @param {object} [options]
   * @param {number} [options.timeoutMs] Deadline of each call: the time budget of an answer. With
   *   Infinity there is none, and the service takes its default budget. Feedback gets five seconds
   *   if this is less.
   * @param {grpc.ChannelCredentials} [options.credentials] For TLS; plain text without.
   * @param {string} [options.protoDir] Folder that holds queryrec/v1, if not this repository's.
   */
  constructor(target, { timeoutMs = 1000, credentials, protoDir = PROTO_DIR } = {}) {
    this.#timeoutMs = checkedTimeout(timeoutMs);
    this.#definition = loadSync('queryrec/v1/query_recommender_service.proto', {
      includeDirs: [protoDir],
      longs: Number,
      enums: String,
      defaults: true,
    });
    const { QueryRecommenderService } = grpc.loadPackageDefinition(this.#definition).queryrec.v1;
    this.#stub = new QueryRecommenderService(
      target,
      credentials ?? grpc.credentials.createInsecure(),
      CHANNEL_OPTIONS,
    );
  }

  /**
   * Returns suggestions for `request.query` in the panel `request.scenario`.
   *
   * @param {RecommendRequest} request Only scenario and query are required.
   * @param {object} [options]
   * @param {number} [options.timeoutMs] Deadline of this call instead of the client's.
   * @param {AbortSignal} [options.signal] Cancels the call, on the server too.
   * @param {Object<string, string>} [options.metadata] Sent with the call, such as 'x-request-id',
   *   which logs then have, or 'traceparent'. The other methods take these options, too.
   */
  async recommend(request, options) {
    return this.#call('recommend', request, options);
  }

  /**
   * Stores at most 256 events, made by `feedback`; they may have been JSON in between. Resolves
   * once all that are not in `refusals` are durable. Has at least five seconds unless `timeoutMs` is
   * given here. Send the same events again after a QueryRecError, `retryable` or not, unless its
   * status is INVALID_ARGUMENT, UNIMPLEMENTED, UNAUTHENTICATED or PERMISSION_DENIED, or
   * RESOURCE_EXHAUSTED without the reason ERROR_REASON_QUEUE_FULL: events or metadata are too large,
   * so send fewer at a time.
   */
  async recordFeedback(
    events,
    { timeoutMs = Math.max(this.#timeoutMs, FEEDBACK_TIMEOUT_MS), ...options } = {},
  ) {
    if (events.length > MAX_EVENTS) {
      throw new TypeError(`there are ${events.length} events; a call takes at most ${MAX_EVENTS}`);
    }
    const onWire = events.map((event, i) => ({ ...event, time: timestamp(event?.time, i) }));
    return this.#call('recordFeedback', { events: onWire }, { ...options, timeoutMs });
  }

  /** Returns the panels that the service can fill, by name. */
  async listScenarios(options) {
    return (await this.#call('listScenarios', {}, options)).scenarios;
  }

  /** Closes the connections. */
  close() {
    this.#stub.close();
  }

  async #call(method, request, { timeoutMs = this.#timeoutMs, signal, metadata = {} } = {}) {
    checkMessage(this.#definition, this.#stub[method].requestType.type.name, request, 'request');
    const deadline = Date.now() + checkedTimeout(timeoutMs);
    signal?.throwIfAborted();
    return new Promise((resolve, reject) => {
      const sent = new grpc.Metadata();
      for (const [key, value] of Object.entries(metadata)) sent.set(key, value);
      const cancel = () => call.cancel();
      const call = this.#stub[method](
        request,
        sent,
        { deadline },
        (error, response) => {
          signal?.removeEventListener('abort', cancel);
          if (error) reject(signal?.aborted ? signal.reason : new QueryRecError(error));
          else resolve(response);
        },
      );
      signal?.addEventListener('abort', cancel, { once: true });
    });
  }
}

/**
 * Returns a feedback event for the suggestion at `position` of `response`, with an id of its own:
 * sent twice, it counts once.
 *
 * @param {object} response What `recommend` returned.
 * @param {'impression' | 'click' | 'dismiss'} kind In capitals, too.
 * @param {number} position 1 for the first.
 * @param {object} [options]
 * @param {Date} [options.time]
 * @param {string} [options.userKey]
 */
export function feedback(response, kind, position, { time = new Date(), userKey } = {}) {
  return {
    eventId: randomUUID(),
    attributionToken: response.attributionToken,
    kind: `FEEDBACK_KIND_${String(kind).toUpperCase()}`,
    position,
    time,
    userKey,
  };
}

/** Returns the time of event `index`, a Date or what JSON makes of one, as it is sent. */
function timestamp(time, index) {
  const ms = new Date(time ?? NaN).getTime();
  if (Number.isNaN(ms)) throw new TypeError(`request.events[${index}].time must be a valid Date`);
  const seconds = Math.floor(ms / 1000);
  return { seconds, nanos: (ms - seconds * 1000) * 1_000_000 };
}

function checkedTimeout(ms) {
  if (typeof ms === 'number' && ms > 0 && (ms <= MAX_TIMEOUT_MS || ms === Infinity)) return ms;
  throw new TypeError(`timeoutMs is ${ms}; it must be above 0 and at most ${MAX_TIMEOUT_MS}`);
}

/** Throws a TypeError unless `value` has fields of the message `name` alone, each of its type. */
function checkMessage(definition, name, value, path) {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new TypeError(`${path} must be an object with the fields of ${name}`);
  }
  const type = typeOf(definition, name);
  for (const [key, content] of Object.entries(value)) {
    const field = type.field.find((f) => f.name === key);
    if (!field) {
      const names = type.field.map((f) => f.name).join(', ');
      throw new TypeError(`${path}.${key} is no field; ${name} has ${names}`);
    }
    if (content === undefined || content === null) continue; // as if not set
    if (field.label !== 'LABEL_REPEATED') {
      checkValue(definition, field, content, `${path}.${key}`);
    } else if (Array.isArray(content)) {
      content.forEach((item, i) => checkValue(definition, field, item, `${path}.${key}[${i}]`));
    } else {
      throw new TypeError(`${path}.${key} must be an array`);
    }
  }
}

/** Returns the description of a message or enum, of this package or named in full. */
function typeOf(definition, name) {
  return (definition[name] ?? definition[`${DOMAIN}.${name}`]).type;
}

function checkValue(definition, { type, typeName }, value, path) {
  if (type === 'TYPE_MESSAGE') {
    checkMessage(definition, typeName, value, path);
  } else if (type === 'TYPE_ENUM') {
    const names = typeOf(definition, typeName).value.slice(1).map((v) => v.name); // not unspecified
    if (!names.includes(value)) throw new TypeError(`${path} must be one of ${names.join(', ')}`);
  } else if (type === 'TYPE_STRING') {
    if (typeof value !== 'string') throw new TypeError(`${path} must be a string`);
  } else if (IS_WHOLE[type]?.(value) === false) {
    throw new TypeError(`${path} must be a whole number (${type.slice(5).toLowerCase()})`);
  }
}

/** Returns the service's ErrorInfo in a failed call, or undefined. */
function errorInfo(error) {
  const [bytes] = error.metadata?.get('grpc-status-details-bin') ?? [];
  if (bytes === undefined) return undefined;
  try {
    for (const detail of Status.decode(bytes).details) {
      if (detail.typeUrl.endsWith('/google.rpc.ErrorInfo')) {
        const info = ErrorInfo.decode(detail.value);
        if (info.domain === DOMAIN) return info;
      }
    }
  } catch {
    // Not readable, hence not from the service.
  }
  return undefined;
}
