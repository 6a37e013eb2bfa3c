// What the gateway offers, as the component's import has it (wit/handler.wit). Handlers use polygate.js, which stands on it.

declare module 'polygate:handler/adapter@0.1.0' {
  type Qos = 'at-most-once' | 'at-least-once' | 'exactly-once';
  type Level = 'trace' | 'debug' | 'info' | 'warn' | 'error';
  type ClientInfo = {
    protoName: string;
    protoVer: string;
    clientId: string;
    username: string | null;
    mountpoint: string | null;
  };

  // Every refusal is thrown: an Error whose `payload` is the code.
  export function send(conn: number, bytes: Uint8Array): void;
  export function close(conn: number): void;
  export function authenticate(conn: number, client: ClientInfo, password: string | null): void;
  export function startTimer(conn: number, timer: 'keepalive', intervalMs: number): void;
  export function stopTimer(conn: number, timer: 'keepalive'): void;
  export function publish(conn: number, topic: string, qos: Qos, payload: Uint8Array): void;
  export function subscribe(conn: number, filter: string, qos: Qos): void;
  export function unsubscribe(conn: number, filter: string): void;
  export function rawPublish(topic: string, qos: Qos, payload: Uint8Array): void;
  export function setting(name: string): string | null;
  export function nowMs(): number;
  export function random(len: number): Uint8Array;
  export function log(level: Level, text: string): void;
}
