'use strict';

const polka = require('polka');
const log = require('pino')();
const { seconds } = require('./duration');

const { HOST = '127.0.0.1', PORT = '3000' } = process.env;

const server = polka().get('/:duration', (request, response) => {
  const found = seconds(request.params.duration);
  response.statusCode = found === null ? 400 : 200;
  response.setHeader('content-type', 'application/json');
  response.end(JSON.stringify({ seconds: found }));
});
server.listen(PORT, HOST, () => log.info({ HOST, PORT }, 'listening'));
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(0));
