/** Uses the page of a bridge as a person would: `node visit.js URL`; prints a line for each event. */
import { chromium } from 'playwright-core';

const browser = await chromium.launch({
  executablePath: process.env.ROWCAST_CHROMIUM,
  args: ['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});
try {
  const tab = await browser.newPage();
  tab.on('pageerror', (error) => console.log(`ERROR ${error.message}`));
  await tab.goto(process.argv[2]);
  await tab.locator('#state[data-is=open]').waitFor();
  await tab.locator('#text').fill('from the page');
  await tab.locator('#text').press('Enter');
  await tab.locator('article.own', { hasText: 'from the page' }).waitFor();
  console.log('SENT');
  await tab.locator('article:not(.own)', { hasText: 'Hello from psql' }).waitFor();
  console.log('HEARD');
  console.log(JSON.stringify(await tab.locator('#messages article p').allTextContents()));
} finally {
  await browser.close();
}
