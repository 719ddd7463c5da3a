/**
 * A client of the queryrec service.
 *
 * Loads the contract from the .proto files themselves. Requests and responses have the contract's
 * fields in camelCase, enums as the names of their values (as numbers, where they are newer than the
 * .proto files), and times as Date. It never retries; `QueryRecError.retryable` says when that helps.
 */

import { randomUUID } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import protobuf from 'protobufjs';

const PROTO_DIR = fileURLToPath(new URL('../../proto', import.meta.url));
const DOMAIN = 'queryrec.v1';
const QUEUE_FULL = 'ERROR_REASON_QUEUE_FULL';

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
     * Whether the same call may succeed later or on another replica. UNAVAILABLE may, from whomever
     * it comes, and so may a full queue. RESOURCE_EXHAUSTED without that reason is gRPC's word for a
     * message that is too large, now and later.
     */
    this.retryable = cause.code === grpc.status.UNAVAILABLE || this.reason === QUEUE_FULL;
  }
}

/**
 * One connection to the service; share it, it carries any number of calls at once. Each client has a
 * connection of its own, also where several have the same target.
 */
export class QueryRecClient {
  #stub;
  #timeoutMs;

  /**
   * @param {string} target Address, such as 'localhost:50051' or 'dns:///queryrec:50051'.
   * @param {object} [options]
   * @param {number} [options.timeoutMs] Deadline of each call: the time budget of an answer.
   * @param {grpc.ChannelCredentials} [options.credentials] For TLS; plain text without.
   * @param {string} [options.protoDir] Folder that holds queryrec/v1, if not this repository's.
   */
  constructor(target, { timeoutMs = 1000, credentials, protoDir = PROTO_DIR } = {}) {
    const definition = loadSync('queryrec/v1/query_recommender_service.proto', {
      includeDirs: [protoDir],
      longs: Number,
      enums: String,
      defaults: true,
    });
    const { QueryRecommenderService } = grpc.loadPackageDefinition(definition).queryrec.v1;
    this.#stub = new QueryRecommenderService(
      target,
      credentials ?? grpc.credentials.createInsecure(),
      { 'grpc.use_local_subchannel_pool': 1 }, // else clients share a connection
    );
    this.#timeoutMs = timeoutMs;
  }

  /**
   * Returns suggestions for `request.query` in the panel `request.scenario`.
   *
   * @param {object} request A RecommendRequest; only scenario and query are required.
   * @param {object} [options]
   * @param {number} [options.timeoutMs] Deadline of this call instead of the client's.
   * @param {AbortSignal} [options.signal] Cancels the call, on the server too.
   * @param {Object<string, string>} [options.metadata] Sent with the call, such as 'x-request-id',
   *   which logs then have, or 'traceparent'. The other methods take these options, too.
   */
  recommend(request, options) {
    return this.#call('recommend', request, options);
  }

  /**
   * Stores at most 256 events, made by `feedback`. Resolves once all that are not in `refusals` are
   * durable; after an error, send the same events again.
   */
  recordFeedback(events, options) {
    const onWire = events.map((event) => ({ ...event, time: timestamp(event.time) }));
    return this.#call('recordFeedback', { events: onWire }, options);
  }

  /** Returns the panels that the service can fill, by name. */
  async listScenarios(options) {
    return (await this.#call('listScenarios', {}, options)).scenarios;
  }

  /** Closes the connection. */
  close() {
    this.#stub.close();
  }

  #call(method, request, { timeoutMs = this.#timeoutMs, signal, metadata = {} } = {}) {
    return new Promise((resolve, reject) => {
      signal?.throwIfAborted();
      const sent = new grpc.Metadata();
      for (const [key, value] of Object.entries(metadata)) sent.set(key, value);
      const cancel = () => call.cancel();
      const call = this.#stub[method](
        request,
        sent,
        { deadline: Date.now() + timeoutMs },
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
 * @param {'IMPRESSION' | 'CLICK' | 'DISMISS'} kind
 * @param {number} position 1 for the first.
 * @param {object} [options]
 * @param {Date} [options.time]
 * @param {string} [options.userKey]
 */
export function feedback(response, kind, position, { time = new Date(), userKey } = {}) {
  return {
    eventId: randomUUID(),
    attributionToken: response.attributionToken,
    kind: `FEEDBACK_KIND_${kind}`,
    position,
    time,
    userKey,
  };
}

function timestamp(date) {
  const ms = date.getTime();
  const seconds = Math.floor(ms / 1000);
  return { seconds, nanos: (ms - seconds * 1000) * 1_000_000 };
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
