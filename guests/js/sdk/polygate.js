// What a handler in JavaScript or TypeScript stands on: a class `Handler` of which every connection has an object, its
// `Connection`, and what a protocol usually needs (UTF-8, lines, a buffer). All of it is documented for TypeScript, which
// reads these comments when `allowJs` is set.
//
//     import { Handler, serve } from './polygate.js';
//
//     class Echo extends Handler {
//       onBytes(bytes) {
//         this.connection.send(bytes);
//       }
//     }
//
//     export const handler = serve(Echo);

import * as adapter from 'polygate:handler/adapter@0.1.0';

/** @typedef {'trace' | 'debug' | 'info' | 'warn' | 'error'} Level */
/** @typedef {'at-most-once' | 'at-least-once' | 'exactly-once'} Qos */
/** @typedef {'unknown' | 'conn-gone' | 'bad-params' | 'permission-denied' | 'not-authenticated' | 'overloaded' | 'timeout'} ErrorCode */
/** @typedef {{ host: string, port: number }} Address */
/** @typedef {{ cn: string, dn: string }} Certificate */
/**
 * @typedef {object} ConnInfo
 * @property {'tcp' | 'tls' | 'udp' | 'dtls' | 'websocket'} kind
 * @property {Address} peer the device's address, or the one a PROXY header carried
 * @property {Address} local the address of the listener that accepted it
 * @property {Certificate | null} peerCert
 */
/**
 * @typedef {object} ClientInfo
 * @property {string} protoName
 * @property {string} protoVer
 * @property {string} clientId
 * @property {string | null} username
 * @property {string | null} mountpoint
 */
/**
 * @typedef {object} Message
 * @property {string} node the gateway or broker node that took it in
 * @property {string} id
 * @property {string} topic without the listener's mountpoint
 * @property {Uint8Array} payload
 * @property {Qos} qos the publisher's
 * @property {string} sender the publisher's client id
 * @property {number} timestampMs milliseconds since the Unix epoch
 */
/**
 * Why a connection ended. `val` says it in words, with the tag `error`.
 * @typedef {{ tag: 'peer' | 'handler' | 'keepalive-timeout' | 'idle-timeout' | 'replaced' | 'kicked' | 'expired' | 'host' | 'error', val?: string }} CloseReason
 */
/** @typedef {{ format: number, bytes: Uint8Array }} State the state of one connection, for a newer version of its handler */

/** Thrown when the gateway does not do what was asked. */
export class Refused extends Error {
  /**
   * @param {string} operation what was asked
   * @param {ErrorCode} code why it was not done; the gateway's log, at level debug, says more
   */
  constructor(operation, code) {
    super(`${operation}: ${code}`);
    this.name = 'Refused';
    this.operation = operation;
    this.code = code;
  }
}

/**
 * @template T
 * @param {string} operation
 * @param {() => T} ask
 * @returns {T}
 */
function asked(operation, ask) {
  try {
    return ask();
  } catch (error) {
    const code = error instanceof Error && 'payload' in error ? error.payload : undefined;
    throw typeof code === 'string' ? new Refused(operation, /** @type {ErrorCode} */ (code)) : error;
  }
}

/** @type {readonly Qos[]} */
const QOS = ['at-most-once', 'at-least-once', 'exactly-once'];

/**
 * @param {0 | 1 | 2} number
 * @returns {Qos}
 */
function qosOf(number) {
  const qos = QOS[number];
  if (qos === undefined) {
    throw new RangeError(`expected a QoS of 0, 1 or 2, found ${number}`);
  }
  return qos;
}

/** @param {Uint8Array | string} payload */
function bytesOf(payload) {
  return typeof payload === 'string' ? encode(payload) : payload;
}

/** One accepted peer, and what may be asked for it. Whatever is not done throws {@link Refused}. */
export class Connection {
  #conn;

  /**
   * @param {number} conn
   * @param {ConnInfo} info
   */
  constructor(conn, info) {
    this.#conn = conn;
    /** Who is at the far end. */
    this.info = info;
  }

  /**
   * Queues bytes for the peer, or text as UTF-8; the order of calls is the order on the wire.
   * @param {Uint8Array | string} bytes
   */
  send(bytes) {
    asked('send', () => adapter.send(this.#conn, bytesOf(bytes)));
  }

  /** Sends what is queued and closes; `onClosed` follows. Nothing happens when it has ended already. */
  close() {
    try {
      asked('close', () => adapter.close(this.#conn));
    } catch (error) {
      if (!(error instanceof Refused && error.code === 'conn-gone')) {
        throw error;
      }
    }
  }

  /**
   * Says who the peer is. Waits for the answer; when refused, it may be tried again.
   * @param {string} clientId the newest connection with the same id ends the older one
   * @param {{ username?: string, password?: string, protoName?: string, protoVer?: string }} [more]
   */
  authenticate(clientId, { username, password, protoName = '', protoVer = '' } = {}) {
    const client = { protoName, protoVer, clientId, username: username ?? null, mountpoint: null };
    asked('authenticate', () => adapter.authenticate(this.#conn, client, password ?? null));
  }

  /**
   * Ends the connection after 1.5 times so long without a byte from the peer; `onKeepaliveTimeout` comes first.
   * A second call replaces the first.
   * @param {number} intervalMs
   */
  startKeepalive(intervalMs) {
    asked('startKeepalive', () => adapter.startTimer(this.#conn, 'keepalive', intervalMs));
  }

  stopKeepalive() {
    asked('stopKeepalive', () => adapter.stopTimer(this.#conn, 'keepalive'));
  }

  /**
   * @param {string} topic
   * @param {Uint8Array | string} payload text goes as UTF-8
   * @param {0 | 1 | 2} [qos]
   */
  publish(topic, payload, qos = 0) {
    asked('publish', () => adapter.publish(this.#conn, topic, qosOf(qos), bytesOf(payload)));
  }

  /**
   * @param {string} filter
   * @param {0 | 1 | 2} [qos]
   */
  subscribe(filter, qos = 0) {
    asked('subscribe', () => adapter.subscribe(this.#conn, filter, qosOf(qos)));
  }

  /** @param {string} filter */
  unsubscribe(filter) {
    asked('unsubscribe', () => adapter.unsubscribe(this.#conn, filter));
  }
}

/** What happens on one connection. A handler extends it, and overrides what it wants to know. */
export class Handler {
  /** @param {Connection} connection not a byte of it was read yet */
  constructor(connection) {
    this.connection = connection;
  }

  /**
   * The next bytes of the stream, cut anywhere; or one whole datagram.
   * @param {Uint8Array} bytes
   */
  onBytes(bytes) {}

  /**
   * A message for one of the connection's subscriptions.
   * @param {Message} message
   */
  onMessage(message) {}

  /** The keepalive timer ran out. The connection is closed afterwards. */
  onKeepaliveTimeout() {}

  /**
   * The last event.
   * @param {CloseReason} reason
   */
  onClosed(reason) {}

  /**
   * The state to carry over to a newer version of the handler; see {@link migrating}.
   * @returns {State | null}
   */
  snapshot() {
    return null;
  }

  /**
   * Takes over what the older version's `snapshot` gave. An exception keeps the connection there.
   * @param {State | null} state
   */
  restore(state) {}
}

/** @type {Map<number, Handler>} */
const handlers = new Map();

/**
 * @param {number} conn
 * @returns {Handler}
 */
function handlerOf(conn) {
  const handler = handlers.get(conn);
  if (handler === undefined) {
    throw new Error(`expected a connection that was created, found ${conn}`);
  }
  return handler;
}

/**
 * An exception ends the connection as a failure of the handler. The gateway cannot see what it was, so it is logged here.
 * @template T
 * @param {() => T} event
 * @returns {T}
 */
function told(event) {
  try {
    return event();
  } catch (error) {
    log('error', error instanceof Error ? `${error.name}: ${error.message}\n${error.stack}` : String(error));
    throw error;
  }
}

/**
 * Makes the component's export of a class: `export const handler = serve(Echo);`
 * @param {new (connection: Connection) => Handler} type
 */
export function serve(type) {
  return {
    /** @type {(conn: number, info: ConnInfo) => void} */
    onSocketCreated: (conn, info) => told(() => void handlers.set(conn, new type(new Connection(conn, info)))),
    /** @type {(conn: number, bytes: Uint8Array) => void} */
    onReceivedBytes: (conn, bytes) => told(() => handlerOf(conn).onBytes(bytes)),
    /** @type {(conn: number, timer: 'keepalive') => void} */
    onTimerTimeout: (conn, _timer) => told(() => handlerOf(conn).onKeepaliveTimeout()),
    /** @type {(conn: number, messages: Message[]) => void} */
    onReceivedMessages: (conn, messages) =>
      told(() => {
        const handler = handlerOf(conn);
        for (const message of messages) {
          handler.onMessage(message);
        }
      }),
    /** @type {(conn: number, reason: CloseReason) => void} */
    onSocketClosed: (conn, reason) =>
      told(() => {
        const handler = handlerOf(conn);
        handlers.delete(conn);
        handler.onClosed(reason);
      }),
  };
}

/**
 * Makes the second export of a component of the world `migrating-connection-handler`, whose connections outlive a change
 * of the handler: `export const migrate = migrating(Echo);`
 * @param {new (connection: Connection) => Handler} type
 */
export function migrating(type) {
  return {
    /** @type {(conn: number) => State | null} */
    snapshot: (conn) => told(() => handlerOf(conn).snapshot()),
    /** @type {(conn: number, info: ConnInfo, state: State | null) => void} */
    restore: (conn, info, state) => {
      try {
        const handler = new type(new Connection(conn, info));
        handler.restore(state);
        handlers.set(conn, handler);
      } catch (error) {
        // The export's error is a text, and this is how a component throws one.
        throw Object.assign(new Error('restore'), { payload: String(error) });
      }
    },
  };
}

/**
 * Publishes on no connection's behalf: no mountpoint, no rules.
 * @param {string} topic
 * @param {Uint8Array | string} payload text goes as UTF-8
 * @param {0 | 1 | 2} [qos]
 */
export function rawPublish(topic, payload, qos = 0) {
  asked('rawPublish', () => adapter.rawPublish(topic, qosOf(qos), bytesOf(payload)));
}

/**
 * A value from the handler's `settings` in the configuration.
 * @param {string} name
 * @returns {string | undefined}
 */
export function setting(name) {
  return adapter.setting(name) ?? undefined;
}

/**
 * Milliseconds since the Unix epoch. `Date.now()`, and `new Date()` without an argument, end the connection as a failure of
 * the handler.
 */
export function nowMs() {
  return adapter.nowMs();
}

/**
 * Bytes from the gateway's secure generator. `Math.random()` gives every connection the same numbers.
 * @param {number} length at most 1024
 */
export function random(length) {
  return adapter.random(length);
}

/**
 * A line in the gateway's log, with the connection's id beside it.
 * @param {Level} level
 * @param {string} text
 */
export function log(level, text) {
  adapter.log(level, text);
}

/**
 * Text as UTF-8. QuickJS has no TextEncoder. Half a surrogate pair becomes U+FFFD.
 * @param {string} text
 */
export function encode(text) {
  const bytes = new Uint8Array(text.length * 3);
  let at = 0;
  for (const character of text) {
    let point = character.codePointAt(0) ?? 0;
    if (point >= 0xd800 && point < 0xe000) {
      point = 0xfffd;
    }
    if (point < 0x80) {
      bytes[at++] = point;
    } else if (point < 0x800) {
      bytes[at++] = 0xc0 | (point >> 6);
      bytes[at++] = 0x80 | (point & 0x3f);
    } else if (point < 0x10000) {
      bytes[at++] = 0xe0 | (point >> 12);
      bytes[at++] = 0x80 | ((point >> 6) & 0x3f);
      bytes[at++] = 0x80 | (point & 0x3f);
    } else {
      bytes[at++] = 0xf0 | (point >> 18);
      bytes[at++] = 0x80 | ((point >> 12) & 0x3f);
      bytes[at++] = 0x80 | ((point >> 6) & 0x3f);
      bytes[at++] = 0x80 | (point & 0x3f);
    }
  }
  return bytes.slice(0, at);
}

/**
 * The text that these bytes are in UTF-8; `undefined` when they are none.
 * @param {Uint8Array} bytes
 * @returns {string | undefined}
 */
export function decode(bytes) {
  const text = decodeLossy(bytes);
  // What was no UTF-8 has become U+FFFD, and so differs when it is encoded again.
  return !text.includes('\ufffd') || same(encode(text), bytes) ? text : undefined;
}

/**
 * The text that these bytes are in UTF-8, with U+FFFD for what is none.
 * @param {Uint8Array} bytes
 */
export function decodeLossy(bytes) {
  /** @type {string[]} */
  const pieces = [];
  /** @type {number[]} */
  let points = [];
  for (let at = 0; at < bytes.length; ) {
    const [point, length] = pointAt(bytes, at);
    points.push(point);
    at += length;
    // A call takes a bounded number of arguments.
    if (points.length === 4096) {
      pieces.push(String.fromCodePoint(...points));
      points = [];
    }
  }
  pieces.push(String.fromCodePoint(...points));
  return pieces.join('');
}

/**
 * The code point that begins here, and how many bytes it takes; U+FFFD for the longest run that begins none (Unicode 3.9).
 * @param {Uint8Array} bytes
 * @param {number} at
 * @returns {[number, number]}
 */
function pointAt(bytes, at) {
  const first = bytes[at] ?? 0;
  if (first < 0x80) {
    return [first, 1];
  }
  const length = first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
  if (length === 0) {
    return [0xfffd, 1];
  }
  // What the second byte may be keeps out what is too long, surrogates, and what lies beyond U+10FFFF.
  const low = first === 0xe0 ? 0xa0 : first === 0xf0 ? 0x90 : 0x80;
  const high = first === 0xed ? 0x9f : first === 0xf4 ? 0x8f : 0xbf;
  let point = first & (0x7f >> length);
  for (let index = 1; index < length; index++) {
    const byte = bytes[at + index] ?? 0;
    if (byte < (index === 1 ? low : 0x80) || byte > (index === 1 ? high : 0xbf)) {
      return [0xfffd, index];
    }
    point = (point << 6) | (byte & 0x3f);
  }
  return [point, length];
}

/**
 * @param {Uint8Array} one
 * @param {Uint8Array} other
 */
function same(one, other) {
  return one.length === other.length && one.every((byte, at) => byte === other[at]);
}

/**
 * Lower-case hexadecimal digits.
 * @param {Uint8Array} bytes
 */
export function hex(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** Bytes that have arrived and are not understood yet. */
export class Buffered {
  /** @type {Uint8Array} */
  #bytes = new Uint8Array(0);

  /** How many there are. */
  get length() {
    return this.#bytes.length;
  }

  /** @param {Uint8Array} bytes */
  push(bytes) {
    if (this.#bytes.length === 0) {
      this.#bytes = new Uint8Array(bytes);
      return;
    }
    const all = new Uint8Array(this.#bytes.length + bytes.length);
    all.set(this.#bytes);
    all.set(bytes, this.#bytes.length);
    this.#bytes = all;
  }

  /**
   * The byte at this place; `undefined` when it has not arrived.
   * @param {number} at
   */
  at(at) {
    return this.#bytes[at];
  }

  /** All of them, which stay here. The view is good until the next `push` or `take`. */
  peek() {
    return this.#bytes;
  }

  /**
   * Removes the first `length` bytes and gives them.
   * @param {number} length at most as many as there are
   */
  take(length) {
    if (length > this.#bytes.length) {
      throw new RangeError(`expected at most ${this.#bytes.length} bytes to be taken, found ${length}`);
    }
    const taken = this.#bytes.slice(0, length);
    this.#bytes = this.#bytes.subarray(length);
    return taken;
  }
}

/** Thrown by {@link Lines} for a line that is too long. */
export class LineTooLong extends Error {
  /** @param {number} max */
  constructor(max) {
    super(`expected a line of at most ${max} bytes`);
    this.name = 'LineTooLong';
  }
}

/** Cuts a stream into lines, which end in LF or CRLF. */
export class Lines {
  #max;
  /** @type {Uint8Array} */
  #held = new Uint8Array(0);

  /** @param {number} max bytes of the longest line, without its end */
  constructor(max) {
    this.#max = max;
  }

  /**
   * Takes the next bytes and gives the lines that they complete, without their ends.
   * @param {Uint8Array} bytes
   * @returns {Generator<Uint8Array, void>} throws {@link LineTooLong}, after which nothing that follows can be understood
   */
  *push(bytes) {
    let rest = bytes;
    for (;;) {
      const end = rest.indexOf(0x0a);
      const piece = end < 0 ? rest : rest.subarray(0, end);
      let line = piece;
      if (this.#held.length > 0) {
        line = new Uint8Array(this.#held.length + piece.length);
        line.set(this.#held);
        line.set(piece, this.#held.length);
      }
      const content = line.at(-1) === 0x0d ? line.subarray(0, -1) : line;
      if (content.length > this.#max) {
        throw new LineTooLong(this.#max);
      }
      if (end < 0) {
        this.#held = line === piece ? line.slice() : line;
        return;
      }
      this.#held = new Uint8Array(0);
      rest = rest.subarray(end + 1);
      yield content;
    }
  }
}
