// parse_dump.js -- what others' parsers make of a file of cases: node parse_dump.js KIND FOLDER
//
// The same lines as parse_dump.c.  HTTP by the parser inside Node (llhttp), event streams by
// eventsource-parser, which is looked for in FOLDER/node_modules.
'use strict';
const fs = require('fs');
const [kind, folder] = process.argv.slice(2);

function* cases() {
  const all = fs.readFileSync(0);
  for (let at = 0; at < all.length;) {
    const lf = all.indexOf(10, at);
    const n = Number(all.toString('latin1', at, lf));
    yield all.subarray(lf + 1, lf + 1 + n);
    at = lf + 1 + n;
  }
}

const METHODS = ['DELETE', 'GET', 'HEAD', 'POST', 'PUT']; // llhttp's numbers 0 to 4

function dumpHttp(bytes) {
  const { HTTPParser } = require('_http_common');
  const parser = new HTTPParser();
  const messages = [];
  let message = null, fields = [], target = '';
  parser.initialize(kind === 'request' ? HTTPParser.REQUEST : HTTPParser.RESPONSE, {});
  parser[HTTPParser.kOnHeaders | 0] = (more, url) => { // when there are many
    fields = fields.concat(more);
    target += url;
  };
  parser[HTTPParser.kOnHeadersComplete | 0] =
    (major, minor, more, method, url, status, reason, upgrade, keepAlive) => {
      fields = fields.concat(more || []);
      message = [status || METHODS[method] || '?', status ? '' : target + (url || ''), keepAlive,
                 fields, [], false];
      fields = [];
      target = '';
      if (!status || status >= 200) messages.push(message);
      return 0;
    };
  parser[HTTPParser.kOnBody | 0] = (piece) => { message[4].push(Buffer.from(piece)); };
  parser[HTTPParser.kOnMessageComplete | 0] = () => {
    message[5] = true;
    fields = []; // the trailer's
    target = '';
  };
  const copy = Buffer.from(bytes);
  let result = parser.execute(copy);
  if (!(result instanceof Error)) result = parser.finish();
  for (const m of messages) m[4] = Buffer.concat(m[4]).toString('latin1');
  return { messages, error: result instanceof Error ? result.code : '' };
}

function dumpSse(bytes) {
  const { createParser } = require(require.resolve('eventsource-parser', { paths: [folder] }));
  const events = [];
  const parser = createParser({
    onEvent: (e) => events.push([Buffer.from(e.event || '').toString('latin1'),
                                 Buffer.from(e.data).toString('latin1')]),
  });
  parser.feed(new TextDecoder().decode(bytes)); // drops a byte order mark, as the
                                                // specification's own decoder does
  return { events };
}

const lines = [];
for (const bytes of cases()) {
  lines.push(JSON.stringify(kind === 'sse' ? dumpSse(bytes) : dumpHttp(bytes)));
}
process.stdout.write(lines.join('\n') + '\n');
