// The packets of Teltonika's trackers: where one ends, whether it is whole, and what is in it. Knows nothing of connections.
// All numbers are big-endian.
//
//     TCP  zeros (4)  length (4)  data (length)  CRC (4)
//     UDP  length (2)  packet id (2)  01  AVL packet id (1)  length of the IMEI (2)  IMEI  data
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

/** One record of codec 7, 8, 8 Extended or 16. Codec 7 leaves out what the tracker does not know. */
export interface Position {
  priority: string;
  /** UTC, in ISO 8601; absent when there is no such time. */
  time?: string;
  /** Whether satellites were seen; without them the place is an older one, or zero. */
  positioned: boolean;
  latitude?: number;
  longitude?: number;
  altitude_m?: number;
  speed_kmh?: number;
  course_deg?: number;
  satellites?: number;
  /** The mobile network's cell (codec 7). */
  cell?: { lac: number; cell_id: number };
  signal_strength?: number;
  operator?: number;
  /** The id of the element whose change made the record, or 0. */
  event?: number;
  /** Why the element made the record (codec 16). */
  generation?: string;
  /** Elements by id: numbers of 1, 2 and 4 bytes as unsigned numbers, all else in hexadecimal. */
  io: Record<string, number | string>;
  /** Elements whose id came before. */
  odd?: { id: number; value: number | string }[];
  /** How many elements the record says it has, when that is not how many there are. */
  elements_promised?: number;
}

/** The records of a packet, and what is odd about them. */
export interface Records {
  positions: Position[];
  odd: string[];
}

/** An answer to a command, or what a tracker passes on from its serial port. */
export interface Answer {
  /** 6 for an answer, 0x11 when the command was for another tracker; other numbers in codec 15. */
  type: number;
  /** When the tracker had it (codecs 13 and 15). */
  time?: string;
  /** Whose it is (codecs 14 and 15). */
  imei_in_answer?: string;
  bytes: Uint8Array;
}

/** A packet in a datagram. */
export interface Datagram {
  packetId: Uint8Array;
  avlPacketId: number;
  imei: Uint8Array;
  packet: Packet;
  /** How many bytes it takes. */
  length: number;
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
  return counted(data);
}

function counted(data: Uint8Array): Packet {
  const [codec, count, last] = [data[0] ?? 0, data[1] ?? 0, data.at(-1)];
  if (data.length < DATA_MIN || count !== last) {
    throw new Malformed(`expected the count ${count} at the end again, found ${last}`);
  }
  return { codec, count, data };
}

/** The packet at the beginning of a datagram. */
export function openDatagram(bytes: Uint8Array): Datagram {
  const outer = new Reader(bytes);
  const length = outer.unsigned(2);
  const reader = new Reader(outer.take(length));
  const packetId = reader.take(2);
  const kind = reader.unsigned(1);
  if (kind !== 1) {
    throw new Malformed(`expected 01 after the packet id, found 0x${kind.toString(16)}`);
  }
  const avlPacketId = reader.unsigned(1);
  const imei = reader.take(reader.unsigned(2));
  return { packetId, avlPacketId, imei, packet: counted(reader.rest()), length: 2 + length };
}

/** What acknowledges so many records of a datagram. */
export function datagramAnswer({ packetId, avlPacketId }: Datagram, accepted: number): Uint8Array {
  return Uint8Array.of(0, 5, ...packetId, 1, avlPacketId, accepted);
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

/** A command of codec 12; with an IMEI, one of codec 14, which no other tracker obeys. */
export function command(text: Uint8Array, imei?: string): Uint8Array {
  const address = imei === undefined ? [] : (imei.padStart(16, '0').match(/../g) ?? []).map((two) => parseInt(two, 16));
  const data = new Uint8Array(8 + address.length + text.length);
  data.set([imei === undefined ? CODEC_12 : CODEC_14, 1, COMMAND]);
  new DataView(data.buffer).setUint32(3, address.length + text.length);
  data.set(address, 7);
  data.set(text, 7 + address.length);
  data[data.length - 1] = 1;
  return packet(data);
}

export const CODEC_7 = 0x07;
export const CODEC_8 = 0x08;
export const CODEC_8_EXTENDED = 0x8e;
export const CODEC_16 = 0x10;
export const CODEC_12 = 0x0c;
export const CODEC_13 = 0x0d;
export const CODEC_14 = 0x0e;
export const CODEC_15 = 0x0f;

/** Codecs whose packets are answers, and so are not acknowledged. */
export const ANSWERS = new Set([CODEC_12, CODEC_13, CODEC_14, CODEC_15]);

/** 2007-01-01, from which codec 7 counts. */
const EPOCH_2007_S = 1_167_609_600;

const COMMAND = 5;
const ANSWER = 6;
const OTHER_TRACKER = 0x11;

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
  return codec === CODEC_7 || LAYOUTS.has(codec);
}

/** The records of a packet of codec 7, 8, 8 Extended or 16. What is odd about one costs no more than that. */
export function positions(packet: Packet): Records {
  if (packet.codec === CODEC_7) {
    return read(packet, oldPosition);
  }
  let fault: Malformed | undefined;
  let odd: Records | undefined;
  for (const layout of LAYOUTS.get(packet.codec) ?? []) {
    try {
      const records = read(packet, (reader, odd) => position(reader, layout, odd));
      // Of two layouts that end where the packet ends, the one whose totals are right.
      if (records.odd.length === 0) {
        return records;
      }
      odd ??= records;
    } catch (error) {
      if (!(error instanceof Malformed)) {
        throw error;
      }
      fault ??= error;
    }
  }
  if (odd !== undefined) {
    return odd;
  }
  throw fault ?? new Malformed(`expected codec 7, 8, 8 Extended or 16, found 0x${packet.codec.toString(16)}`);
}

function read(packet: Packet, record: (reader: Reader, odd: string[]) => Position): Records {
  const reader = new Reader(packet.data.subarray(2, -1));
  const odd: string[] = [];
  const positions = Array.from({ length: packet.count }, () => record(reader, odd));
  reader.end();
  return { positions, odd };
}

/** Codec 7 counts seconds from 2007, and says with bits which fields follow. */
function oldPosition(reader: Reader, odd: string[]): Position {
  const head = reader.unsigned(4);
  const mask = reader.unsigned(1);
  const has = (mask & 1) === 0 ? 0 : reader.unsigned(1);
  const field = <T>(bit: number, read: () => T): T | undefined => ((has & (1 << bit)) === 0 ? undefined : read());
  const place = field(0, () => ({ latitude: reader.float(), longitude: reader.float() }));
  const altitude_m = field(1, () => reader.signed(2));
  const course = field(2, () => reader.unsigned(1));
  const speed_kmh = field(3, () => reader.unsigned(1));
  const satellites = field(4, () => reader.unsigned(1));
  const cell = field(5, () => ({ lac: reader.unsigned(2), cell_id: reader.unsigned(2) }));
  const signal_strength = field(6, () => reader.unsigned(1));
  const operator = field(7, () => reader.unsigned(4));
  const io: Position['io'] = {};
  const again: NonNullable<Position['odd']> = [];
  [1, 2, 4].forEach((width, at) => {
    const count = (mask & (2 << at)) === 0 ? 0 : reader.unsigned(1);
    for (let index = 0; index < count; index++) {
      set(io, again, odd, reader.unsigned(1), reader.unsigned(width));
    }
  });
  const time = date(((head & 0x3fffffff) + EPOCH_2007_S) * 1000);
  return {
    priority: PRIORITIES[head >>> 30] ?? String(head >>> 30),
    ...(time !== undefined && { time }),
    positioned: place !== undefined && (satellites ?? 1) > 0 && isPlace(place.latitude, place.longitude),
    ...place,
    ...(altitude_m !== undefined && { altitude_m }),
    ...(speed_kmh !== undefined && { speed_kmh }),
    ...(course !== undefined && { course_deg: (course * 360) / 256 }),
    ...(satellites !== undefined && { satellites }),
    ...(cell !== undefined && { cell }),
    ...(signal_strength !== undefined && { signal_strength }),
    ...(operator !== undefined && { operator }),
    io,
    ...(again.length > 0 && { odd: again }),
  };
}

function isPlace(latitude: number, longitude: number): boolean {
  return Math.abs(latitude) <= 90 && Math.abs(longitude) <= 180;
}

function position(reader: Reader, layout: Layout, odd: string[]): Position {
  const time = date(reader.unsigned(8));
  if (time === undefined) {
    odd.push('expected milliseconds since 1970, found more than a date can be');
  }
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
    ...(time !== undefined && { time }),
    positioned: satellites > 0 && isPlace(latitude, longitude),
    latitude,
    longitude,
    altitude_m,
    speed_kmh,
    course_deg,
    satellites,
    event,
    ...(generation !== undefined && { generation: GENERATIONS[generation] ?? String(generation) }),
    ...elements(reader, layout, odd),
  };
}

function elements(reader: Reader, layout: Layout, odd: string[]): Pick<Position, 'io' | 'odd' | 'elements_promised'> {
  const io: Position['io'] = {};
  const again: NonNullable<Position['odd']> = [];
  const promised = reader.unsigned(layout.count);
  let found = 0;
  for (const width of layout.widths) {
    const count = reader.unsigned(layout.count);
    found += count;
    for (let index = 0; index < count; index++) {
      const id = reader.unsigned(layout.id);
      set(io, again, odd, id, width < 8 ? reader.unsigned(width) : reader.hex(width));
    }
  }
  const variable = layout.variable ? reader.unsigned(layout.count) : 0;
  found += variable;
  for (let index = 0; index < variable; index++) {
    const id = reader.unsigned(layout.id);
    set(io, again, odd, id, reader.hex(reader.unsigned(2)));
  }
  if (found !== promised) {
    odd.push(`expected ${promised} elements as the record says, found ${found}`);
  }
  return {
    io,
    ...(again.length > 0 && { odd: again }),
    ...(found !== promised && { elements_promised: promised }),
  };
}

function set(
  io: Position['io'],
  again: NonNullable<Position['odd']>,
  odd: string[],
  id: number,
  value: number | string,
) {
  if (id in io) {
    again.push({ id, value });
    odd.push(`expected an element once, found ${id} twice`);
  } else {
    io[id] = value;
  }
}

/** What a packet of codec 12 to 15 says; `undefined` when it is something else than an answer. */
export function answer(packet: Packet): Answer | undefined {
  const { codec } = packet;
  const reader = new Reader(packet.data.subarray(2, -1));
  const type = reader.unsigned(1);
  const known =
    codec === CODEC_15 ||
    type === ANSWER ||
    (codec === CODEC_13 && type === COMMAND) ||
    (codec === CODEC_14 && type === OTHER_TRACKER);
  if (packet.count !== 1 || !known) {
    return undefined;
  }
  const content = new Reader(reader.take(reader.unsigned(4)));
  reader.end();
  const time = codec === CODEC_13 || codec === CODEC_15 ? date(content.unsigned(4) * 1000) : undefined;
  const imei = codec === CODEC_14 || codec === CODEC_15 ? content.hex(8).replace(/^0/, '') : undefined;
  return {
    type,
    ...(time !== undefined && { time }),
    ...(imei !== undefined && { imei_in_answer: imei }),
    bytes: content.rest(),
  };
}

/** `undefined` for a moment that no date can be. */
function date(ms: number): string | undefined {
  return ms > 8.64e15 ? undefined : new Date(ms).toISOString();
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

  /** To seven places, which is more than four bytes have. */
  float(): number {
    const bytes = Uint8Array.from(this.take(4));
    return Number(new DataView(bytes.buffer).getFloat32(0).toFixed(7));
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
