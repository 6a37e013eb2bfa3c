// Lines of text. The first is "HELLO <clientid>"; each one after it is published on `up`; what arrives on `down` is sent.

import { Handler, LineTooLong, Lines, Refused, decodeLossy, log, serve } from './polygate.js';

const LINE_BYTES_MAX = 1024;
const KEEPALIVE_MS = 300_000;

class Device extends Handler {
  #lines = new Lines(LINE_BYTES_MAX);
  #known = false;
  #closing = false;

  /** @param {Uint8Array} bytes */
  onBytes(bytes) {
    try {
      for (const line of this.#lines.push(bytes)) {
        if (!this.#closing) {
          this.#answer(() => (this.#known ? this.connection.publish('up', line, 1) : this.#hello(decodeLossy(line))));
        }
      }
    } catch (error) {
      if (!(error instanceof LineTooLong)) {
        throw error;
      }
      log('warn', `${error.message}; closing`);
      this.#close();
    }
  }

  /** @param {import('./polygate.js').Message} message */
  onMessage(message) {
    this.connection.send(Uint8Array.of(...message.payload, 0x0a));
  }

  onKeepaliveTimeout() {
    this.#close();
  }

  /** @param {string} line */
  #hello(line) {
    const clientId = /^HELLO (\S+)$/.exec(line)?.[1];
    if (clientId === undefined) {
      throw new Refused('hello', 'bad-params');
    }
    this.connection.authenticate(clientId, { protoName: 'lines' });
    this.connection.startKeepalive(KEEPALIVE_MS);
    this.connection.subscribe('down', 1);
    this.#known = true;
  }

  /** @param {() => void} request */
  #answer(request) {
    try {
      request();
      this.connection.send('OK\n');
    } catch (error) {
      if (!(error instanceof Refused)) {
        throw error;
      }
      this.connection.send(`ERR ${error.code}\n`);
      if (!this.#known) {
        this.#close();
      }
    }
  }

  #close() {
    this.#closing = true;
    this.connection.close();
  }
}

export const handler = serve(Device);
