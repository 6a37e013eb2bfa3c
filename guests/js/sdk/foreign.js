// Peers that speak another protocol: when to end them, and what the log says of them.
//
//     const foreign = new Foreign('Teltonika');
//     connection.startKeepalive(FOREIGN_KEEPALIVE_MS);   // before the first frame: it runs out after 60 s
//     foreign.stray(bytes);                              // bytes in no frame
//     if (foreign.ends()) { foreign.log(); connection.close(); }

import { hex, log, nowMs } from './polygate.js';

/** So many bytes in no frame, one after the other, end a peer. */
export const FOREIGN_BYTES_MAX = 4096;
/** And for so long they may come, in milliseconds. */
export const FOREIGN_MS_MAX = 60_000;
/** For `startKeepalive` before the first frame, in milliseconds. */
export const FOREIGN_KEEPALIVE_MS = 40_000;
/** Bytes that the log shows. */
const FIRST_MAX = 16;

/** @type {[string, string][]} how a protocol begins, a character a byte, and its name */
const KNOWN = [
  ['xx', 'GT06'],
  ['yy', 'GT06'],
  ['##,imei:', 'GPS103'],
  ['imei:', 'GPS103'],
  ['##', 'GB/T 32960'],
  ['\x7e', 'JT/T 808'],
  ['\x00\x0f', 'Teltonika'],
  ['\x00\x00\x00\x00', 'Teltonika'],
  ['$$', 'Meitrack'],
  ['!AIVD', 'AIS (NMEA 0183)'],
  ['LOGIN ', 'NMEA 0183'],
  ['+RESP:', 'Queclink'],
  ['+BUFF:', 'Queclink'],
  ['+ACK:', 'Queclink'],
  ['\x16\x03', 'TLS'],
  ['GET ', 'HTTP'],
  ['POST ', 'HTTP'],
  ['PUT ', 'HTTP'],
  ['HEAD ', 'HTTP'],
  ['OPTIONS ', 'HTTP'],
  ['CONNECT ', 'HTTP'],
  ['PRI * HTTP/2', 'HTTP/2'],
  ['SSH-', 'SSH'],
  ['PROXY ', 'a PROXY header'],
  ['\r\n\r\n\x00\r\nQUIT\n', 'a PROXY header'],
  ['\x03\x00', 'RDP'],
];

/** @type {[RegExp, string][]} */
const KNOWN_FORMS = [
  [/^\*..,/s, 'H02'],
  [/^\$[A-Z]/, 'NMEA 0183'],
  [/^\$[^0-9]/s, 'H02'],
  [/^\([0-9]/, 'TK103'],
  [/^\[.[A-Z]/s, 'Watch (3G)'],
  [/^\x10...MQTT/s, 'MQTT'],
];

/**
 * Which protocol begins like this; `undefined` when it is none that is known here.
 * @param {Uint8Array} first
 * @returns {string | undefined}
 */
export function protocolOf(first) {
  const text = String.fromCharCode(...first.subarray(0, FIRST_MAX));
  const known = KNOWN.find(([begins]) => text.startsWith(begins)) ?? KNOWN_FORMS.find(([form]) => form.test(text));
  return known?.[1];
}

/** Bytes since the latest frame that are in none. */
export class Foreign {
  #protocol;
  /** @type {number[]} */
  #first = [];
  #bytes = 0;
  /** @type {number | undefined} */
  #sinceMs;
  #framed = false;

  /** @param {string} protocol the handler's own, for the log */
  constructor(protocol) {
    this.#protocol = protocol;
  }

  /** Whether a frame was ever seen. */
  get framed() {
    return this.#framed;
  }

  /** How many bytes are in no frame. */
  get bytes() {
    return this.#bytes;
  }

  /**
   * These are in no frame.
   * @param {Uint8Array} bytes
   */
  stray(bytes) {
    this.#sinceMs ??= nowMs();
    this.#bytes += bytes.length;
    this.#first.push(...bytes.subarray(0, Math.max(FIRST_MAX - this.#first.length, 0)));
  }

  /** A frame was seen: all begins anew. */
  frame() {
    this.#first = [];
    this.#bytes = 0;
    this.#sinceMs = undefined;
    this.#framed = true;
  }

  /** Whether the peer is to be ended. */
  ends() {
    return (
      this.#bytes >= FOREIGN_BYTES_MAX || (this.#sinceMs !== undefined && nowMs() - this.#sinceMs >= FOREIGN_MS_MAX)
    );
  }

  /**
   * Logs what came, as a warning.
   * @param {string} [why] what is wrong with it, if that is known
   */
  log(why) {
    const first = Uint8Array.from(this.#first);
    const name = protocolOf(first);
    log(
      'warn',
      `${this.#bytes} bytes that are no frame of ${this.#protocol}, beginning with ${hex(first)}` +
        (name === undefined ? '' : `; they look like ${name}`) +
        (why === undefined ? '' : `; ${why}`),
    );
  }
}
