// Headless Chromium on one page, without a network and with an empty profile.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

/** Opens a page and hands it to `work`, with what went wrong on it: errors, and requests that left the file. */
export async function opened(page, how, work) {
  const profile = mkdtempSync(join(tmpdir(), "sae-forge-page-"));
  const [path, hash] = page.split("#");
  const executablePath = process.env.CHROMIUM || "/usr/bin/chromium";
  const browser = await chromium.launchPersistentContext(profile, { executablePath, headless: true, args: FLAGS, reducedMotion: "reduce", ...how });
  try {
    const tab = browser.pages()[0] ?? (await browser.newPage()), faults = [];
    tab.setDefaultTimeout(180_000); // a busy machine is no fault of the page
    tab.on("console", (line) => ["error", "warning"].includes(line.type()) && faults.push(line.text()));
    tab.on("pageerror", (error) => faults.push(String(error)));
    tab.on("request", (asked) => /^(file|data|blob):/.test(asked.url()) || faults.push(`asked for ${asked.url()}`));
    await tab.goto(pathToFileURL(resolve(path)).href + (hash ? `#${hash}` : ""));
    await tab.waitForFunction(() => document.readyState === "complete");
    return await work(tab, faults);
  } finally {
    await browser.close();
    rmSync(profile, { recursive: true, force: true });
  }
}
