// The packets of Teltonika's trackers over TCP: where one ends, whether it is whole, and what is in it. Knows nothing of
// connections. All numbers are big-endian.
//
//     zeros (4)  length (4)  data (length)  CRC (4)
//     data: codec (1)  count (1)  ...  count (1)

/** The length of a packet's data, in bytes: a camera's parts of a file have 2 KiB, positions at most 1,280 bytes. */
export const DATA_MAX = 8192;

/** Codec, and the count of what is in it, twice. */
const DATA_MIN = 3;
const HEAD = 8;
const CRC = 4;

/** Thrown for bytes that are not what the protocol says. */
export class Malformed extends Error {}

/** What a packet carries; its CRC holds. */
export interface Packet {
  codec: number;
  /** How many records, commands or answers, as the tracker says. */
  count: number;
  /** All of it, from the codec to the second count. */
  data: Uint8Array;
}

/** One record of codec 8, 8 Extended or 16. */
export interface Position {
  priority: string;
  /** UTC, in ISO 8601. */
  time: string;
  /** Whether satellites were seen; without them the place is an older one, or zero. */
  positioned: boolean;
  latitude: number;
  longitude: number;
  altitude_m: number;
  speed_kmh: number;
  course_deg: number;
  satellites: number;
  /** The id of the element whose change made the record, or 0. */
  event: number;
  /** Why the element made the record (codec 16). */
  generation?: string;
  /** Elements by id: numbers of 1, 2 and 4 bytes as unsigned numbers, all else in hexadecimal. */
  io: Record<string, number | string>;
}

/** An answer to a command, or what a tracker passes on from its serial port. */
export interface Answer {
  /** When the tracker had it (codec 13). */
  time?: string;
  bytes: Uint8Array;
}

/** How long the packet is that begins here, in bytes; `undefined` when too little has arrived to say. */
export function packetLength(bytes: Uint8Array): number | undefined {
  const zeros = bytes.subarray(0, 4).findIndex((byte) => byte !== 0);
  if (zeros >= 0) {
    throw new Malformed(`expected four zero bytes before a packet, found byte 0x${bytes[zeros]?.toString(16)}`);
  }
  if (bytes.length < HEAD) {
    return undefined;
  }
  const length = new Reader(bytes.subarray(4, HEAD)).unsigned(4);
  if (length < DATA_MIN || length > DATA_MAX) {
    throw new Malformed(`expected ${DATA_MIN} to ${DATA_MAX} bytes of data, found a length of ${length}`);
  }
  return HEAD + length + CRC;
}

/** Checks a whole packet. */
export function open(bytes: Uint8Array): Packet {
  const data = bytes.subarray(HEAD, -CRC);
  const [found, expected] = [new Reader(bytes.subarray(-CRC)).unsigned(4), crc16(data)];
  if (found !== expected) {
    throw new Malformed(`expected CRC 0x${expected.toString(16)}, found 0x${found.toString(16)}`);
  }
  const [codec, count, last] = [data[0] ?? 0, data[1] ?? 0, data.at(-1)];
  if (count !== last) {
    throw new Malformed(`expected the count ${count} at the end again, found ${last}`);
  }
  return { codec, count, data };
}

/** Puts data into a packet. */
export function packet(data: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(HEAD + data.length + CRC);
  const view = new DataView(bytes.buffer);
  view.setUint32(4, data.length);
  bytes.set(data, HEAD);
  view.setUint32(HEAD + data.length, crc16(data));
  return bytes;
}

/** A command of codec 12. */
export function command(text: Uint8Array): Uint8Array {
  const data = new Uint8Array(8 + text.length);
  data.set([CODEC_12, 1, COMMAND]);
  new DataView(data.buffer).setUint32(3, text.length);
  data.set(text, 7);
  data[data.length - 1] = 1;
  return packet(data);
}

export const CODEC_8 = 0x08;
export const CODEC_8_EXTENDED = 0x8e;
export const CODEC_16 = 0x10;
export const CODEC_12 = 0x0c;
export const CODEC_13 = 0x0d;

const COMMAND = 5;
const ANSWER = 6;

const PRIORITIES = ['low', 'high', 'panic'];
const GENERATIONS = ['exit', 'entrance', 'both', 'reserved', 'hysteresis', 'change', 'eventual', 'periodical'];

/** What the codecs differ in; lengths in bytes. */
interface Layout {
  id: number;
  count: number;
  /** How long the reason of a record is (codec 16), or 0. */
  generation: number;
  /** How long the elements are, group by group. */
  widths: number[];
  /** Is there a group of elements of any length (8 Extended)? */
  variable: boolean;
}

const LAYOUT_8: Layout = { id: 1, count: 1, generation: 0, widths: [1, 2, 4, 8], variable: false };

/** Some trackers add a group to codec 8, and nothing says so but that the records end where they should. */
const LAYOUTS = new Map<number, Layout[]>([
  [CODEC_8, [LAYOUT_8, { ...LAYOUT_8, widths: [...LAYOUT_8.widths, 16] }]],
  [CODEC_8_EXTENDED, [{ ...LAYOUT_8, id: 2, count: 2, variable: true }]],
  [CODEC_16, [{ ...LAYOUT_8, id: 2, generation: 1 }]],
]);

/** Whether a codec's records are known here. */
export function hasPositions(codec: number): boolean {
  return LAYOUTS.has(codec);
}

/** The records of a packet of codec 8, 8 Extended or 16. */
export function positions(packet: Packet): Position[] {
  let fault: Malformed | undefined;
  for (const layout of LAYOUTS.get(packet.codec) ?? []) {
    try {
      const reader = new Reader(packet.data.subarray(2, -1));
      const positions = Array.from({ length: packet.count }, () => position(reader, layout));
      reader.end();
      return positions;
    } catch (error) {
      if (!(error instanceof Malformed)) {
        throw error;
      }
      fault ??= error;
    }
  }
  throw fault ?? new Malformed(`expected codec 8, 8 Extended or 16, found 0x${packet.codec.toString(16)}`);
}

function position(reader: Reader, layout: Layout): Position {
  const time = date(reader.unsigned(8));
  const priority = reader.unsigned(1);
  const longitude = reader.signed(4) / 1e7;
  const latitude = reader.signed(4) / 1e7;
  const altitude_m = reader.signed(2);
  const course_deg = reader.unsigned(2);
  const satellites = reader.unsigned(1);
  const speed_kmh = reader.unsigned(2);
  const event = reader.unsigned(layout.id);
  const generation = layout.generation ? reader.unsigned(layout.generation) : undefined;
  return {
    priority: PRIORITIES[priority] ?? String(priority),
    time,
    positioned: satellites > 0 && Math.abs(latitude) <= 90 && Math.abs(longitude) <= 180,
    latitude,
    longitude,
    altitude_m,
    speed_kmh,
    course_deg,
    satellites,
    event,
    ...(generation !== undefined && { generation: GENERATIONS[generation] ?? String(generation) }),
    io: elements(reader, layout),
  };
}

function elements(reader: Reader, layout: Layout): Position['io'] {
  const io: Position['io'] = {};
  const promised = reader.unsigned(layout.count);
  let found = 0;
  for (const width of layout.widths) {
    const count = reader.unsigned(layout.count);
    found += count;
    for (let index = 0; index < count; index++) {
      const id = reader.unsigned(layout.id);
      set(io, id, width < 8 ? reader.unsigned(width) : reader.hex(width));
    }
  }
  const variable = layout.variable ? reader.unsigned(layout.count) : 0;
  found += variable;
  for (let index = 0; index < variable; index++) {
    const id = reader.unsigned(layout.id);
    set(io, id, reader.hex(reader.unsigned(2)));
  }
  if (found !== promised) {
    throw new Malformed(`expected ${promised} elements as the record says, found ${found}`);
  }
  return io;
}

function set(io: Position['io'], id: number, value: number | string) {
  if (id in io) {
    throw new Malformed(`expected an element once, found ${id} twice`);
  }
  io[id] = value;
}

/** What a packet of codec 12 or 13 says; `undefined` when it is something else than an answer. */
export function answer(packet: Packet): Answer | undefined {
  const reader = new Reader(packet.data.subarray(2, -1));
  const type = reader.unsigned(1);
  const dated = packet.codec === CODEC_13;
  if (packet.count !== 1 || !(type === ANSWER || (dated && type === COMMAND))) {
    return undefined;
  }
  const content = new Reader(reader.take(reader.unsigned(4)));
  reader.end();
  const time = dated ? { time: date(content.unsigned(4) * 1000) } : {};
  return { ...time, bytes: content.rest() };
}

function date(ms: number): string {
  // The last moment that a date can be.
  if (ms > 8.64e15) {
    throw new Malformed(`expected milliseconds since 1970, found ${ms}`);
  }
  return new Date(ms).toISOString();
}

/** CRC-16/IBM (also called ARC): the polynomial 0x8005, bits reversed, from 0. */
function crc16(bytes: Uint8Array): number {
  let crc = 0;
  for (const byte of bytes) {
    crc = (crc >> 8) ^ (CRC_OF_BYTE[(crc ^ byte) & 0xff] ?? 0);
  }
  return crc;
}

const CRC_OF_BYTE = Uint16Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) {
    crc = crc & 1 ? (crc >> 1) ^ 0xa001 : crc >> 1;
  }
  return crc;
});

/** Reads fields one after the other, and no byte too many. */
class Reader {
  #at = 0;

  constructor(private readonly bytes: Uint8Array) {}

  take(length: number): Uint8Array {
    const end = this.#at + length;
    if (end > this.bytes.length) {
      throw new Malformed(`expected ${length} bytes more, found ${this.bytes.length - this.#at}`);
    }
    const taken = this.bytes.subarray(this.#at, end);
    this.#at = end;
    return taken;
  }

  /** Exact up to 2^53, beyond which only malformed times are. */
  unsigned(length: number): number {
    return this.take(length).reduce((value, byte) => value * 256 + byte, 0);
  }

  signed(length: number): number {
    const value = this.unsigned(length);
    return value < 2 ** (8 * length - 1) ? value : value - 2 ** (8 * length);
  }

  hex(length: number): string {
    return Array.from(this.take(length), (byte) => byte.toString(16).padStart(2, '0')).join('');
  }

  rest(): Uint8Array {
    return this.take(this.bytes.length - this.#at);
  }

  end() {
    if (this.#at !== this.bytes.length) {
      throw new Malformed(`expected the end, found ${this.bytes.length - this.#at} bytes more`);
    }
  }
}
