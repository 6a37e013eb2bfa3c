// A gRPC handler in JavaScript: devices that speak lines of text.
//
// ../README.md shows the protocol and the gateway's configuration. The messages and services are read from
// proto/exproto.proto at start; there is nothing to generate.

import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';

// In bytes: without a bound, a device that never ends its line would fill our memory.
const LINE_MAX = 1024;

// In seconds; the gateway ends a device that is silent for 1.5 times as long.
const KEEPALIVE_S = 60;

const { values: args } = parseArgs({
  options: {
    listen: { type: 'string', default: '127.0.0.1:9001' }, // where the gateway calls us; port 0 takes a free one
    adapter: { type: 'string', default: 'http://127.0.0.1:9100' }, // where we call the gateway
  },
});

const PROTO = fileURLToPath(new URL('../../../proto/exproto.proto', import.meta.url));
const definition = protoLoader.loadSync(PROTO, { keepCase: true, enums: String, defaults: true });
const exproto = grpc.loadPackageDefinition(definition).emqx.exproto.v1;

const { protocol, host } = new URL(args.adapter);
if (protocol !== 'http:') throw new Error(`expected --adapter http://HOST:PORT, found ${args.adapter}`);
// Connects at the first call: handler and gateway may start in any order, and either may be restarted.
const adapter = new exproto.ConnectionAdapter(host, grpc.credentials.createInsecure());

// What has to be remembered of a device from one call to the next.
const connections = new Map();

class Refused extends Error {}

// The gateway waits for each answer before it calls for the same connection again, so nothing here can overtake.
const handler = {
  async OnSocketCreated({ conn }) {
    connections.set(conn, { unfinished: Buffer.alloc(0), id: undefined });
  },

  async OnReceivedBytes({ conn, bytes }) {
    const connection = connections.get(conn);
    // Without one, this process is younger than the connection: login and half a line are forgotten.
    // Let the device start over.
    if (!connection) return call('Close', { conn });
    for (const line of takeLines(connection, bytes)) {
      if (line.length > LINE_MAX) {
        await send(conn, `refused: a line has at most ${LINE_MAX} bytes\n`);
        return call('Close', { conn });
      }
      try {
        await onLine(conn, connection, line);
        await send(conn, 'ok\n');
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        await send(conn, `refused: ${error.message}\n`);
      }
    }
  },

  async OnReceivedMessages({ conn, messages }) {
    for (const { payload } of messages) await send(conn, Buffer.concat([payload, Buffer.from('\n')]));
  },

  async OnTimerTimeout() {},

  async OnSocketClosed({ conn }) {
    connections.delete(conn);
  },
};

// Adds bytes, cut anywhere, and takes out the lines that they complete; also one that is already too long.
function takeLines(connection, bytes) {
  const received = Buffer.concat([connection.unfinished, bytes]);
  const lines = [];
  let start = 0;
  for (let end = received.indexOf('\n'); end >= 0; end = received.indexOf('\n', start)) {
    lines.push(received.subarray(start, end));
    start = end + 1;
  }
  if (received.length - start > LINE_MAX) {
    lines.push(received.subarray(start));
    start = received.length;
  }
  // A copy: a view of a few bytes would keep all that was received alive.
  connection.unfinished = Buffer.from(received.subarray(start));
  return lines;
}

async function onLine(conn, connection, line) {
  const [word, id = '', password = ''] = line.toString().trim().split(/\s+/);
  if (word === 'login') {
    const clientinfo = { proto_name: 'lines', proto_ver: '1', clientid: id, username: id };
    await done('Authenticate', { conn, clientinfo, password });
    connection.id = id;
    await done('StartTimer', { conn, type: 'KEEPALIVE', interval: KEEPALIVE_S });
    await done('Subscribe', { conn, topic: `${id}/down`, qos: 1 });
  } else if (connection.id) {
    const payload = line.at(-1) === 0x0d ? line.subarray(0, -1) : line;
    await done('Publish', { conn, topic: `${connection.id}/up`, qos: 1, payload });
  } else {
    throw new Refused('expected login <id> [<password>]');
  }
}

// The code is ignored: if the device has disconnected, OnSocketClosed will follow.
const send = (conn, data) => call('Send', { conn, bytes: Buffer.from(data) });

// Calls the adapter; what a refusal says is a sentence for people.
async function done(method, request) {
  const { code, message } = await call(method, request);
  if (code !== 'SUCCESS') throw new Refused(message);
}

function call(method, request) {
  return new Promise((resolve, reject) => {
    adapter[method](request, (error, reply) => (error ? reject(error) : resolve(reply)));
  });
}

// grpc-js takes callbacks; an error becomes the call's status, and then the gateway sees that the handler failed.
const unary = (handle) => ({ request }, callback) => handle(request).then(() => callback(null, {}), callback);

const server = new grpc.Server();
server.addService(
  exproto.ConnectionUnaryHandler.service,
  Object.fromEntries(Object.entries(handler).map(([name, handle]) => [name, unary(handle)])),
);
server.bindAsync(args.listen, grpc.ServerCredentials.createInsecure(), (error, port) => {
  if (error) throw error;
  console.log(`listening on ${new URL(`http://${args.listen}`).hostname}:${port}`);
});
