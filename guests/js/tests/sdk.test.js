// What the SDK promises, without a gateway.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { asked, refuseNext } from './adapter.js';
import { FOREIGN_BYTES_MAX, Foreign, protocolOf } from '../sdk/foreign.js';
import {
  Buffered,
  Handler,
  LineTooLong,
  Lines,
  Refused,
  decode,
  decodeLossy,
  encode,
  hex,
  migrating,
  serve,
} from '../sdk/polygate.js';

const INFO = { kind: 'tcp', peer: { host: '::1', port: 1 }, local: { host: '::1', port: 2 }, peerCert: null };

test('UTF-8 is what Node takes for UTF-8, also where it is none', () => {
  const texts = ['', 'plain', 'h\u00e9 \u20ac \u{1f600}', '\ufffd', '\ud800', 'a\udc00b', '\u07ff\u0800\uffff\u{10ffff}', 'x'.repeat(10_000)];
  for (const text of texts) {
    assert.deepEqual(encode(text), new TextEncoder().encode(text));
    assert.equal(decode(encode(text)), text.toWellFormed());
  }
  const random = randomBytes(1);
  for (let round = 0; round < 20_000; round++) {
    const bytes = random(1 + (round % 7));
    const expected = new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes);
    assert.equal(decodeLossy(bytes), expected, hex(bytes));
    assert.equal(decode(bytes), isWellFormed(bytes) ? expected : undefined, hex(bytes));
  }
});

test('any cut gives the same lines', () => {
  const stream = encode('one\r\n\ntwo\nthr\ree\n\r\nrest');
  const expected = ['one', '', 'two', 'thr\ree', ''];
  for (let first = 0; first <= stream.length; first++) {
    for (let second = first; second <= stream.length; second++) {
      const lines = new Lines(10);
      const found = [stream.slice(0, first), stream.slice(first, second), stream.slice(second)].flatMap((piece) => [...lines.push(piece)]);
      assert.deepEqual(found.map(decodeLossy), expected);
    }
  }
});

test('a line may reach the limit, and not pass it', () => {
  assert.deepEqual([...new Lines(3).push(encode('abc\r\n'))].map(decodeLossy), ['abc']);
  assert.throws(() => [...new Lines(3).push(encode('abcd\n'))], LineTooLong);
  assert.throws(() => [...new Lines(3).push(encode('abcd'))], LineTooLong);
  const lines = new Lines(3);
  assert.deepEqual([...lines.push(encode('abc'))], []);
  assert.throws(() => [...lines.push(encode('d'))], LineTooLong);
});

test('what is buffered comes out as it went in', () => {
  const buffered = new Buffered();
  for (const piece of [[1, 2], [], [3], [4, 5, 6]]) {
    buffered.push(Uint8Array.from(piece));
  }
  assert.equal(buffered.length, 6);
  assert.deepEqual([...buffered.take(4)], [1, 2, 3, 4]);
  assert.equal(buffered.at(0), 5);
  assert.equal(buffered.at(2), undefined);
  assert.deepEqual([...buffered.peek()], [5, 6]);
  assert.throws(() => buffered.take(3), RangeError);
});

test('every connection has an object of its own, from the first event to the last', () => {
  class Counting extends Handler {
    count = 0;
    onBytes(bytes) {
      this.count += bytes.length;
      this.connection.send(String(this.count));
    }
  }
  const handler = serve(Counting);
  asked.length = 0;
  handler.onSocketCreated(1, INFO);
  handler.onSocketCreated(2, INFO);
  handler.onReceivedBytes(1, new Uint8Array(3));
  handler.onReceivedBytes(2, new Uint8Array(4));
  handler.onReceivedBytes(1, new Uint8Array(5));
  assert.deepEqual(asked, [['send', 1, encode('3')], ['send', 2, encode('4')], ['send', 1, encode('8')]]);
  handler.onSocketClosed(1, { tag: 'peer' });
  assert.throws(() => handler.onReceivedBytes(1, new Uint8Array(1)), /found 1/);
});

test('a refusal says what was asked and why it was not done; a second close is none', () => {
  class Asking extends Handler {
    onBytes() {
      refuseNext('permission-denied');
      assert.throws(() => this.connection.publish('t', 'x', 1), (error) => error instanceof Refused && error.message === 'publish: permission-denied');
      refuseNext('conn-gone');
      this.connection.close();
      refuseNext('unknown');
      assert.throws(() => this.connection.close(), Refused);
    }
  }
  const handler = serve(Asking);
  handler.onSocketCreated(3, INFO);
  handler.onReceivedBytes(3, new Uint8Array(1));
});

test('an exception is logged with its place, and goes on', () => {
  class Failing extends Handler {
    onBytes() {
      throw new TypeError('no such thing');
    }
  }
  const handler = serve(Failing);
  handler.onSocketCreated(4, INFO);
  asked.length = 0;
  assert.throws(() => handler.onReceivedBytes(4, new Uint8Array(1)), TypeError);
  const [[operation, level, text]] = asked;
  assert.deepEqual([operation, level], ['log', 'error']);
  assert.match(text, /^TypeError: no such thing\n.*onBytes/s);
});

test('state goes from one version to the next; what cannot be restored is refused in words', () => {
  class Old extends Handler {
    snapshot() {
      return { format: 1, bytes: encode('state') };
    }
  }
  class New extends Handler {
    restore(state) {
      if (state === null) {
        throw new Error('no state');
      }
      this.text = decode(state.bytes);
    }
    onBytes() {
      this.connection.send(this.text);
    }
  }
  serve(Old).onSocketCreated(5, INFO);
  const state = migrating(Old).snapshot(5);
  migrating(New).restore(6, INFO, state);
  asked.length = 0;
  serve(New).onReceivedBytes(6, new Uint8Array(1));
  assert.deepEqual(asked, [['send', 6, encode('state')]]);
  assert.throws(() => migrating(New).restore(7, INFO, null), (error) => error.payload === 'Error: no state');
});

function isWellFormed(bytes) {
  try {
    new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    return true;
  } catch {
    return false;
  }
}

/** Bytes that come near to what matters in UTF-8; the same ones every time. */
function randomBytes(seed) {
  const edges = [0x00, 0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc1, 0xc2, 0xdf, 0xe0, 0xed, 0xef, 0xf0, 0xf3, 0xf4, 0xf5, 0xff];
  let state = seed;
  return (length) =>
    Uint8Array.from({ length }, () => {
      state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
      return edges[(state >>> 16) % edges.length];
    });
}

test('a peer of another protocol is ended after so many bytes, and told in one line', () => {
  asked.length = 0;
  const foreign = new Foreign('Teltonika');
  assert.equal(foreign.ends(), false);
  foreign.stray(encode('GET / HTTP/1.1\r\n'));
  assert.equal(foreign.ends(), false);
  foreign.stray(new Uint8Array(FOREIGN_BYTES_MAX - 16));
  assert.equal(foreign.ends(), true);
  foreign.log();
  const line = '4096 bytes that are no frame of Teltonika, beginning with 474554202f20485454502f312e310d0a; they look like HTTP';
  assert.deepEqual(asked, [['log', 'warn', line]]);
  foreign.frame();
  assert.deepEqual([foreign.ends(), foreign.framed, foreign.bytes], [false, true, 0]);
  assert.equal(protocolOf(encode('*HQ,1')), 'H02');
  assert.equal(protocolOf(new Uint8Array([0x68])), undefined);
});
