// A handler for Teltonika's trackers over TCP: their records become JSON messages, and messages become commands. What it
// publishes, and its limits, are listed in README.md.

import { Buffered, Handler, Refused, decode, hex, log, serve, setting } from '../sdk/polygate.js';
import type { CloseReason, Connection, Message } from '../sdk/polygate.js';
import { CODEC_12, CODEC_13, Malformed, answer, command, hasPositions, open, packetLength, positions } from './packet.js';
import type { Packet } from './packet.js';

/** Digits of an IMEI. */
const IMEI_LENGTH = 15;
/** What a tracker sends to keep a connection alive. */
const PING = 0xff;
/** The longest command, in bytes. */
const COMMAND_MAX = 1024;
const KEEPALIVE_S_DEFAULT = 600;
const KEEPALIVE_S_MAX = 65_535;

/** Codecs whose packets are answers, and so are not acknowledged. */
const ANSWERS = new Set([CODEC_12, CODEC_13, 0x0e, 0x0f]);
const CODEC_NAMES = new Map([[0x8e, '8E']]);

class Teltonika extends Handler {
  #inbox = new Buffered();
  #imei: string | undefined;
  #refused = false;

  constructor(connection: Connection) {
    super(connection);
    connection.startKeepalive(keepaliveS() * 1000);
  }

  override onBytes(bytes: Uint8Array) {
    if (this.#refused) {
      return;
    }
    this.#inbox.push(bytes);
    try {
      while (this.#next());
    } catch (error) {
      if (!(error instanceof Malformed)) {
        throw error;
      }
      log('warn', `${error.message}; closing`);
      this.#close();
    }
  }

  override onMessage(message: Message) {
    const { length } = message.payload;
    if (length === 0 || length > COMMAND_MAX) {
      this.#tell('command/error', { error: `expected a command of 1 to ${COMMAND_MAX} bytes, found ${length}` });
      return;
    }
    try {
      this.connection.send(command(message.payload));
    } catch (error) {
      if (!(error instanceof Refused)) {
        throw error;
      }
      this.#tell('command/error', { error: error.message });
    }
  }

  override onClosed(_reason: CloseReason) {
    if (this.#inbox.length > 0 && !this.#refused) {
      log('info', `${this.#inbox.length} bytes of an unfinished packet are lost`);
    }
  }

  /** Takes the next ping, login or packet; false when it has not arrived as a whole. */
  #next(): boolean {
    if (this.#inbox.at(0) === PING) {
      this.#inbox.take(1);
      return true;
    }
    if (this.#refused || this.#inbox.length < 2) {
      return false;
    }
    return this.#imei === undefined ? this.#login() : this.#packet(this.#imei);
  }

  /** The length of the IMEI in two bytes, and its digits. */
  #login(): boolean {
    const length = (this.#inbox.at(0) ?? 0) * 256 + (this.#inbox.at(1) ?? 0);
    if (length !== IMEI_LENGTH) {
      throw new Malformed(`expected an IMEI of ${IMEI_LENGTH} digits, found a length of ${length}`);
    }
    if (this.#inbox.length < 2 + IMEI_LENGTH) {
      return false;
    }
    const digits = this.#inbox.take(2 + IMEI_LENGTH).subarray(2);
    const imei = decode(digits) ?? '';
    if (!/^\d{15}$/.test(imei)) {
      throw new Malformed(`expected an IMEI of ${IMEI_LENGTH} digits, found bytes ${hex(digits)}`);
    }
    try {
      this.connection.authenticate(imei, { protoName: 'teltonika' });
      this.connection.subscribe(`teltonika/${imei}/command`, 1);
    } catch (error) {
      if (!(error instanceof Refused)) {
        throw error;
      }
      log('info', `${imei} is refused: ${error.message}`);
      this.connection.send(Uint8Array.of(0));
      this.#close();
      return false;
    }
    this.#imei = imei;
    this.connection.send(Uint8Array.of(1));
    return true;
  }

  #packet(imei: string): boolean {
    const length = packetLength(this.#inbox.peek());
    if (length === undefined || this.#inbox.length < length) {
      return false;
    }
    const packet = open(this.#inbox.take(length));
    const head = { imei, codec: CODEC_NAMES.get(packet.codec) ?? String(packet.codec) };
    if (hasPositions(packet.codec)) {
      this.#acknowledge(this.#onPositions(packet, head));
    } else if (ANSWERS.has(packet.codec)) {
      this.#onAnswer(packet, head);
    } else {
      this.#acknowledge(this.#onOther(packet, head) ? packet.count : 0);
    }
    return true;
  }

  /** Publishes the records, and gives how many the broker has taken. */
  #onPositions(packet: Packet, head: object): number {
    let records;
    try {
      records = positions(packet);
    } catch (error) {
      if (!(error instanceof Malformed)) {
        throw error;
      }
      // Its CRC holds, so it would come like this again, for ever.
      return this.#onOther(packet, { ...head, error: error.message }) ? packet.count : 0;
    }
    const refused = records.findIndex((record) => !this.#tell('position', { ...head, ...record }));
    return refused < 0 ? records.length : refused;
  }

  #onAnswer(packet: Packet, head: object) {
    let error;
    try {
      const found = packet.codec === CODEC_12 || packet.codec === CODEC_13 ? answer(packet) : undefined;
      if (found !== undefined) {
        const { bytes, ...time } = found;
        this.#tell('response', { ...head, ...time, ...readable(bytes) });
        return;
      }
    } catch (thrown) {
      if (!(thrown instanceof Malformed)) {
        throw thrown;
      }
      error = thrown.message;
    }
    this.#onOther(packet, { ...head, ...(error !== undefined && { error }) });
  }

  #onOther(packet: Packet, head: object): boolean {
    return this.#tell('message', { ...head, count: packet.count, data: hex(packet.data) });
  }

  #acknowledge(accepted: number) {
    const bytes = new Uint8Array(4);
    new DataView(bytes.buffer).setUint32(0, accepted);
    this.connection.send(bytes);
  }

  /** Publishes JSON; false when it was refused. */
  #tell(what: string, value: object): boolean {
    try {
      this.connection.publish(`teltonika/${this.#imei}/${what}`, JSON.stringify(value), 1);
      return true;
    } catch (error) {
      if (!(error instanceof Refused)) {
        throw error;
      }
      log('warn', `a ${what} is not published: ${error.message}`);
      return false;
    }
  }

  #close() {
    this.#refused = true;
    this.connection.close();
  }
}

/** Printable text as it is, all else in hexadecimal. */
function readable(bytes: Uint8Array): { text: string } | { data: string } {
  const text = decode(bytes);
  return text !== undefined && !/[^\P{Cc}\t\r\n]/u.test(text) ? { text } : { data: hex(bytes) };
}

function keepaliveS(): number {
  const text = setting('keepalive_s');
  if (text === undefined) {
    return KEEPALIVE_S_DEFAULT;
  }
  const seconds = /^\d{1,5}$/.test(text) ? Number(text) : 0;
  if (seconds < 1 || seconds > KEEPALIVE_S_MAX) {
    log('error', `setting keepalive_s: expected 1 to ${KEEPALIVE_S_MAX}, found "${text}"; using ${KEEPALIVE_S_DEFAULT}`);
    return KEEPALIVE_S_DEFAULT;
  }
  return seconds;
}

export const handler = serve(Teltonika);
