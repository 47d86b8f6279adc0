/** Runs a module in Chromium as a page's script: `node chromium.js module.mjs`; its console becomes our output. */
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { once } from 'node:events';
import { chromium } from 'playwright-core';

const source = await readFile(process.argv[2], 'utf8');
const page = '<!doctype html><title>page</title><link rel="icon" href="data:,"><script type="module" src="/module.mjs"></script>';
const server = createServer((request, response) => {
  const body = { '/': page, '/module.mjs': source }[request.url];
  response.setHeader('content-type', request.url === '/' ? 'text/html' : 'text/javascript');
  response.statusCode = body === undefined ? 404 : 200;
  response.end(body);
}).listen(0, '127.0.0.1');
await once(server, 'listening');

const browser = await chromium.launch({
  executablePath: process.env.ROWCAST_CHROMIUM,
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync'],
});
try {
  const tab = await browser.newPage();
  const done = new Promise((resolve, reject) => {
    tab.on('console', async (message) => {
      if (message.args().length === 0) return; // the browser's own messages about failed connections
      const plain = (value) => (value instanceof Error ? String(value) : value);
      const values = await Promise.all(message.args().map((arg) => arg.evaluate(plain).catch(() => String(arg))));
      const line = values.map((value) => (typeof value === 'string' ? value : JSON.stringify(value))).join(' ');
      console.log(line);
      if (line === 'DONE') resolve();
    });
    tab.on('pageerror', reject);
    setTimeout(() => reject(new Error('the page was not done in time')), 30_000).unref();
  });
  await tab.goto(`http://127.0.0.1:${server.address().port}/`);
  await done;
} finally {
  await browser.close();
  server.close();
}
