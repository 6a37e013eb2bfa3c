// The JSON echo protocol of ExProto's own suite: what a device writes as JSON is done, and the result comes back. The
// frames are listed in ../../echo/README.md.

import { Handler, Refused, decode, decodeLossy, log, rawPublish, serve, setting } from '../sdk/polygate.js';
import { Broken, Objects } from './objects.js';

const CONNECT = 1;
const CONNACK = 2;
const PUBLISH = 3;
const PUBACK = 4;
const SUBSCRIBE = 5;
const SUBACK = 6;
const UNSUBSCRIBE = 7;
const UNSUBACK = 8;
const DISCONNECT = 9;
const RAW_PUBLISH = 10;

/** Thrown for a member that is missing or malformed. */
class Malformed extends Error {}

class Echo extends Handler {
  #objects = new Objects();
  #raw = isRaw();

  /** @param {Uint8Array} bytes */
  onBytes(bytes) {
    if (this.#raw) {
      this.connection.send(bytes);
      return;
    }
    try {
      for (const object of this.#objects.push(bytes)) {
        this.#onObject(object);
      }
    } catch (error) {
      if (!(error instanceof Broken)) {
        throw error;
      }
      log('warn', `${error.message}; closing`);
      this.connection.close();
    }
  }

  /** @param {import('../sdk/polygate.js').Message} message */
  onMessage(message) {
    const qos = { 'at-most-once': 0, 'at-least-once': 1, 'exactly-once': 2 }[message.qos];
    // JSON has no bytes: what is not UTF-8 arrives with U+FFFD in its place.
    this.#send({ type: PUBLISH, topic: message.topic, qos, payload: decodeLossy(message.payload) });
  }

  /** @param {import('../sdk/polygate.js').CloseReason} reason */
  onClosed(reason) {
    log('debug', `closed: ${reason.tag}`);
  }

  /** @param {Uint8Array} bytes */
  #onObject(bytes) {
    /** @type {any} */
    let request;
    try {
      request = JSON.parse(decode(bytes) ?? '');
    } catch (error) {
      log('warn', `expected JSON in UTF-8: ${error}`);
      return;
    }
    switch (request.type) {
      case CONNECT:
        if (!this.#answer(CONNACK, () => this.#connect(request))) {
          this.connection.close();
        }
        break;
      case PUBLISH:
        this.#answer(PUBACK, () => this.connection.publish(text(request, 'topic'), text(request, 'payload'), qosOf(request)));
        break;
      case RAW_PUBLISH:
        this.#answer(PUBACK, () => rawPublish(text(request, 'topic'), text(request, 'payload'), qosOf(request)));
        break;
      case SUBSCRIBE:
        this.#answer(SUBACK, () => this.connection.subscribe(text(request, 'topic'), qosOf(request)));
        break;
      case UNSUBSCRIBE:
        this.#answer(UNSUBACK, () => this.connection.unsubscribe(text(request, 'topic')));
        break;
      case DISCONNECT:
        this.connection.close();
        break;
      default:
        log('warn', `expected a type of 1, 3, 5, 7, 9 or 10, found ${request.type}`);
    }
  }

  /** @param {any} request */
  #connect(request) {
    const client = request.clientinfo ?? {};
    this.connection.authenticate(text(client, 'clientid'), {
      username: optional(client, 'username'),
      password: optional(request, 'password'),
      protoName: optional(client, 'proto_name'),
      protoVer: optional(client, 'proto_ver'),
    });
    const keepaliveS = client.keepalive ?? 0;
    if (keepaliveS !== 0) {
      const intervalMs = keepaliveS * 1000;
      if (!Number.isInteger(keepaliveS) || intervalMs < 0 || intervalMs > 0xffff_ffff) {
        throw new Malformed(`member "keepalive": expected seconds up to 4294967, found ${keepaliveS}`);
      }
      this.connection.startKeepalive(intervalMs);
    }
  }

  /**
   * Answers a request: code 0 when it was done, 1 when it was not, and then the log says why.
   * @param {number} type
   * @param {() => void} request
   */
  #answer(type, request) {
    let code = 0;
    try {
      request();
    } catch (error) {
      if (!(error instanceof Refused || error instanceof Malformed)) {
        throw error;
      }
      log('info', `answering type ${type} with code 1: ${error.message}`);
      code = 1;
    }
    this.#send({ type, code });
    return code === 0;
  }

  /** @param {object} frame */
  #send(frame) {
    try {
      this.connection.send(JSON.stringify(frame));
    } catch (error) {
      if (!(error instanceof Refused)) {
        throw error;
      }
      log('warn', `an answer is lost: ${error.message}`);
    }
  }
}

/** With the setting `mode = "raw"` there is no protocol: every chunk goes back as it came, for measuring. */
function isRaw() {
  const mode = setting('mode') ?? 'json';
  if (mode !== 'raw' && mode !== 'json') {
    log('error', `setting mode: expected "json" or "raw", found "${mode}"; using "json"`);
  }
  return mode === 'raw';
}

/**
 * @param {any} object
 * @param {string} name
 * @returns {string}
 */
function text(object, name) {
  if (typeof object[name] !== 'string') {
    throw new Malformed(`member "${name}": expected a string, found ${typeof object[name]}`);
  }
  return object[name];
}

/**
 * @param {any} object
 * @param {string} name
 * @returns {string | undefined}
 */
function optional(object, name) {
  return typeof object[name] === 'string' ? object[name] : undefined;
}

/**
 * @param {any} request
 * @returns {0 | 1 | 2}
 */
function qosOf(request) {
  const qos = request.qos ?? 0;
  if (qos !== 0 && qos !== 1 && qos !== 2) {
    throw new Malformed(`member "qos": expected 0, 1 or 2, found ${qos}`);
  }
  return qos;
}

export const handler = serve(Echo);
