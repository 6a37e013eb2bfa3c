// Lets Node find the stand-in for the gateway: node --import ./tests/gateway.js --test tests/sdk.test.js

import { register } from 'node:module';

const adapter = new URL('adapter.js', import.meta.url).href;
const hooks = `export const resolve = (specifier, context, next) =>
  specifier === 'polygate:handler/adapter@0.1.0' ? { url: '${adapter}', shortCircuit: true } : next(specifier, context);`;

register(`data:text/javascript,${encodeURIComponent(hooks)}`);
