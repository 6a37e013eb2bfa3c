// A handler for Teltonika's trackers over TCP and UDP: their records become JSON messages, and messages become commands. What it
// publishes, and its limits, are listed in README.md.

import { FOREIGN_KEEPALIVE_MS, Foreign } from '../sdk/foreign.js';
import { Buffered, Handler, Refused, decode, decodeLossy, hex, log, serve, setting } from '../sdk/polygate.js';
import type { CloseReason, Connection, Message } from '../sdk/polygate.js';
import {
  ANSWERS,
  Malformed,
  answer,
  command,
  datagramAnswer,
  hasPositions,
  open,
  openDatagram,
  packetLength,
  positions,
} from './packet.js';
import type { Packet } from './packet.js';

/** Digits of an IMEI; some trackers have other numbers, with the setting `imei_length`. */
const IMEI_LENGTH = 15;
const IMEI_LENGTH_MAX = 32;
/** What a tracker sends to keep a connection alive. */
const PING = 0xff;
/** The longest command, in bytes. */
const COMMAND_MAX = 1024;
const KEEPALIVE_S_DEFAULT = 600;
const KEEPALIVE_S_MAX = 65_535;

const CODEC_NAMES = new Map([[0x8e, '8E']]);

class Teltonika extends Handler {
  #inbox = new Buffered();
  #imei: string | undefined;
  #refused = false;
  #keepaliveMs = keepaliveS() * 1000;
  #imeiLength = imeiLength();
  #commandCodec = commandCodec();
  #foreign = new Foreign('Teltonika');
  /** How often each kind of fault was; the first of a kind is a warning. */
  #faults = new Map<string, number>();

  constructor(connection: Connection) {
    super(connection);
    // Until its login a peer has 60 s.
    connection.startKeepalive(Math.min(this.#keepaliveMs, FOREIGN_KEEPALIVE_MS));
  }

  /** Whether what comes are datagrams: then each is a whole packet, and says whose it is. */
  get #datagrams(): boolean {
    return this.connection.info.kind === 'udp' || this.connection.info.kind === 'dtls';
  }

  override onBytes(bytes: Uint8Array) {
    if (this.#refused) {
      return;
    }
    if (this.#datagrams) {
      this.#onDatagram(bytes);
      return;
    }
    if (!this.#foreign.framed) {
      this.#foreign.stray(bytes);
    }
    this.#inbox.push(bytes);
    try {
      while (this.#next());
      this.#endForeign();
    } catch (error) {
      if (!(error instanceof Malformed)) {
        throw error;
      }
      if (this.#foreign.framed) {
        log('warn', `${error.message}; closing`);
      } else {
        this.#foreign.log(error.message);
      }
      this.#close();
    }
  }

  override onKeepaliveTimeout() {
    if (!this.#foreign.framed && this.#foreign.bytes > 0) {
      this.#foreign.log();
    }
  }

  override onMessage(message: Message) {
    const { length } = message.payload;
    if (length === 0 || length > COMMAND_MAX) {
      this.#tell('command/error', { error: `expected a command of 1 to ${COMMAND_MAX} bytes, found ${length}` });
      return;
    }
    if (this.#datagrams) {
      this.#tell('command/error', { error: 'expected a tracker over TCP: there are no commands in datagrams' });
      return;
    }
    try {
      this.connection.send(command(message.payload, this.#commandCodec === '14' ? this.#imei : undefined));
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
    if (this.#faults.size > 0) {
      log('info', `faults of this connection: ${[...this.#faults].map(([kind, count]) => `${kind}: ${count}`).join(', ')}`);
    }
  }

  /** The first of a kind as a warning, further ones as debug lines. */
  #fault(kind: string, text: string) {
    const count = this.#faults.get(kind) ?? 0;
    log(count === 0 ? 'warn' : 'debug', text);
    this.#faults.set(kind, count + 1);
  }

  #endForeign() {
    if (this.#foreign.bytes > 0 && this.#foreign.ends()) {
      this.#foreign.log();
      this.#close();
    }
  }

  /** One packet or several. A datagram of another tracker ends the flow: its next one begins another. */
  #onDatagram(bytes: Uint8Array) {
    let rest = bytes;
    try {
      while (rest.length > 0 && !this.#refused) {
        const datagram = openDatagram(rest);
        const imei = this.#imeiOf(datagram.imei);
        if (this.#imei === undefined && !this.#authenticate(imei)) {
          return;
        }
        if (imei !== this.#imei) {
          log('info', `a datagram of ${imei} came on the flow of ${this.#imei}; closing`);
          this.#close();
          return;
        }
        const accepted = this.#onPacket(datagram.packet, imei);
        if (accepted !== undefined) {
          this.connection.send(datagramAnswer(datagram, accepted));
        }
        rest = rest.subarray(datagram.length);
      }
    } catch (error) {
      if (!(error instanceof Malformed)) {
        throw error;
      }
      this.#fault('datagrams', `${rest.length} bytes of a datagram are refused: ${error.message}`);
      this.#foreign.stray(rest);
      this.#endForeign();
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
    this.#checkLength(length);
    if (this.#inbox.length < 2 + length) {
      return false;
    }
    const imei = this.#imeiOf(this.#inbox.take(2 + length).subarray(2));
    if (!this.#authenticate(imei)) {
      return false;
    }
    this.connection.send(Uint8Array.of(1));
    return true;
  }

  #checkLength(length: number) {
    const expected = this.#imeiLength;
    if (length === 0 || length > IMEI_LENGTH_MAX || (expected !== undefined && length !== expected)) {
      throw new Malformed(`expected an IMEI of ${expected ?? `1 to ${IMEI_LENGTH_MAX}`} digits, found a length of ${length}`);
    }
  }

  #imeiOf(digits: Uint8Array): string {
    this.#checkLength(digits.length);
    const imei = decode(digits) ?? '';
    if (!/^\d+$/.test(imei)) {
      throw new Malformed(`expected an IMEI of digits, found bytes ${hex(digits)}`);
    }
    return imei;
  }

  /** False when the gateway refuses: then the connection is closing. */
  #authenticate(imei: string): boolean {
    try {
      this.connection.authenticate(imei, { protoName: 'teltonika' });
      this.connection.subscribe(`teltonika/${imei}/command`, 1);
    } catch (error) {
      if (!(error instanceof Refused)) {
        throw error;
      }
      log('info', `${imei} is refused: ${error.message}`);
      if (!this.#datagrams) {
        this.connection.send(Uint8Array.of(0));
      }
      this.#close();
      return false;
    }
    this.#imei = imei;
    this.#foreign.frame();
    this.connection.startKeepalive(this.#keepaliveMs);
    return true;
  }

  #packet(imei: string): boolean {
    const length = packetLength(this.#inbox.peek());
    if (length === undefined || this.#inbox.length < length) {
      return false;
    }
    const accepted = this.#onPacket(open(this.#inbox.take(length)), imei);
    if (accepted !== undefined) {
      this.#acknowledge(accepted);
    }
    return true;
  }

  /** Publishes what a packet has, and gives how much of it the broker has taken; `undefined` for what is not acknowledged. */
  #onPacket(packet: Packet, imei: string): number | undefined {
    this.#foreign.frame();
    const head = { imei, codec: CODEC_NAMES.get(packet.codec) ?? String(packet.codec) };
    if (hasPositions(packet.codec)) {
      return this.#onPositions(packet, head);
    }
    if (ANSWERS.has(packet.codec)) {
      this.#onAnswer(packet, head);
      return undefined;
    }
    return this.#onOther(packet, head, 'expected a codec that is known here, found another one') ? packet.count : 0;
  }

  /** Publishes the records, and gives how many the broker has taken. */
  #onPositions(packet: Packet, head: { codec: string }): number {
    let records;
    try {
      records = positions(packet);
    } catch (error) {
      if (!(error instanceof Malformed)) {
        throw error;
      }
      // Its CRC holds, so it would come like this again, for ever.
      return this.#onOther(packet, head, error.message) ? packet.count : 0;
    }
    for (const odd of records.odd) {
      this.#fault(`odd elements of codec ${head.codec}`, `a record of codec ${head.codec} is odd: ${odd}`);
    }
    const refused = records.positions.findIndex((record) => !this.#tell('position', { ...head, ...record }));
    return refused < 0 ? records.positions.length : refused;
  }

  #onAnswer(packet: Packet, head: { codec: string }) {
    let error = 'expected an answer, found another type';
    try {
      const found = answer(packet);
      if (found !== undefined) {
        const { bytes, ...rest } = found;
        this.#tell('response', { ...head, ...rest, ...readable(bytes) });
        return;
      }
    } catch (thrown) {
      if (!(thrown instanceof Malformed)) {
        throw thrown;
      }
      error = thrown.message;
    }
    this.#onOther(packet, head, error);
  }

  /** Passes a packet on as it is. */
  #onOther(packet: Packet, head: { codec: string }, error: string): boolean {
    this.#fault(`undecoded codec ${head.codec}`, `a packet of codec ${head.codec} is passed on as it is: ${error}`);
    return this.#tell('message', { ...head, error, count: packet.count, data: hex(packet.data) });
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

/** Printable text as it is; all else in hexadecimal, and what can be read of it beside that. */
function readable(bytes: Uint8Array): { text?: string; data?: string } {
  const text = decode(bytes);
  if (text !== undefined && !/[^\P{Cc}\t\r\n]/u.test(text)) {
    return { text };
  }
  const lossy = decodeLossy(bytes);
  const printable = [...lossy].filter((character) => character !== '\ufffd' && !/\p{Cc}/u.test(character));
  return { ...(printable.length * 2 > bytes.length && { text: lossy }), data: hex(bytes) };
}

/** How many digits an IMEI has; `undefined` for any number. */
function imeiLength(): number | undefined {
  const text = setting('imei_length') ?? String(IMEI_LENGTH);
  if (text === 'any') {
    return undefined;
  }
  const length = /^\d{1,2}$/.test(text) ? Number(text) : 0;
  if (length < 1 || length > IMEI_LENGTH_MAX) {
    log('error', `setting imei_length: expected 1 to ${IMEI_LENGTH_MAX} or "any", found "${text}"; using ${IMEI_LENGTH}`);
    return IMEI_LENGTH;
  }
  return length;
}

function commandCodec(): string {
  const text = setting('command_codec') ?? '12';
  if (text !== '12' && text !== '14') {
    log('error', `setting command_codec: expected 12 or 14, found "${text}"; using 12`);
    return '12';
  }
  return text;
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
