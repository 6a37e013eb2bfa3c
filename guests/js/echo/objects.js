// Cuts a stream of JSON objects, written one after the other, into single ones. Knows nothing of their contents.

/** The longest object: what a connection may keep of an unfinished one, in bytes. */
export const OBJECT_MAX = 1 << 20;

/** Thrown when a stream cannot be cut any further. */
export class Broken extends Error {}

const [QUOTE, BACKSLASH, OPEN, CLOSE] = ['"', '\\', '{', '}'].map((character) => character.charCodeAt(0));
const WHITE = new Set([0x20, 0x09, 0x0a, 0x0c, 0x0d]);

/**
 * It only counts braces outside of strings, which is enough to find the end of an object that is well-formed; whether it
 * is, its reader will say.
 */
export class Objects {
  /** @type {Uint8Array[]} pieces of the unfinished object */
  #held = [];
  #heldBytes = 0;
  #depth = 0;
  #inString = false;
  #escaped = false;

  /**
   * Takes the next bytes and gives the objects that they complete.
   * @param {Uint8Array} bytes
   * @returns {Generator<Uint8Array, void>} throws {@link Broken}
   */
  *push(bytes) {
    let from = 0;
    for (let at = 0; at < bytes.length; at++) {
      const byte = bytes[at];
      if (this.#inString) {
        this.#inString = byte !== QUOTE || this.#escaped;
        this.#escaped = byte === BACKSLASH && !this.#escaped;
      } else if (byte === OPEN) {
        from = this.#depth === 0 ? at : from;
        this.#depth++;
      } else if (this.#depth === 0) {
        if (!WHITE.has(byte ?? 0)) {
          throw new Broken(`expected a JSON object, found byte 0x${byte?.toString(16)}`);
        }
      } else if (byte === QUOTE) {
        this.#inString = true;
      } else if (byte === CLOSE && --this.#depth === 0) {
        this.#hold(bytes.subarray(from, at + 1));
        yield this.#release();
        from = at + 1;
      }
    }
    if (this.#depth > 0) {
      this.#hold(bytes.slice(from));
    }
  }

  /** @param {Uint8Array} piece */
  #hold(piece) {
    this.#heldBytes += piece.length;
    if (this.#heldBytes > OBJECT_MAX) {
      throw new Broken(`expected an object of at most ${OBJECT_MAX} bytes`);
    }
    this.#held.push(piece);
  }

  #release() {
    const object = new Uint8Array(this.#heldBytes);
    let at = 0;
    for (const piece of this.#held) {
      object.set(piece, at);
      at += piece.length;
    }
    this.#held = [];
    this.#heldBytes = 0;
    return object;
  }
}
