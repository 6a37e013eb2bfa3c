// Stands in for the gateway: notes what is asked, and refuses what a test wants refused.

export const asked = [];
export const settings = new Map();
let refusal;

export function refuseNext(code) {
  refusal = code;
}

function ask(...request) {
  asked.push(request);
  if (refusal !== undefined) {
    const payload = refusal;
    refusal = undefined;
    throw Object.assign(new Error(payload), { payload });
  }
}

export const send = (...request) => ask('send', ...request);
export const close = (...request) => ask('close', ...request);
export const authenticate = (...request) => ask('authenticate', ...request);
export const startTimer = (...request) => ask('startTimer', ...request);
export const stopTimer = (...request) => ask('stopTimer', ...request);
export const publish = (...request) => ask('publish', ...request);
export const subscribe = (...request) => ask('subscribe', ...request);
export const unsubscribe = (...request) => ask('unsubscribe', ...request);
export const rawPublish = (...request) => ask('rawPublish', ...request);
export const log = (...request) => ask('log', ...request);
export const setting = (name) => settings.get(name) ?? null;
export const nowMs = () => 1000;
export const random = (length) => new Uint8Array(length);
