// Uses a page as a person would, and prints what was found as JSON: node check.mjs PAGE. Times are of the main thread's
// processor, so that what else the machine does is no matter.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { opened } from "./browser.mjs";

const page = process.argv[2];
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const found = { faults: [], axe: [] };

/** Milliseconds of the processor that each task of the page's main thread took during `work`. */
async function tasks(tab, work) {
  const session = await tab.context().newCDPSession(tab), events = [];
  session.on("Tracing.dataCollected", ({ value }) => events.push(...value));
  const done = new Promise((resolve) => session.once("Tracing.tracingComplete", resolve));
  await session.send("Tracing.start", { transferMode: "ReportEvents", traceConfig: { includedCategories: ["toplevel", "disabled-by-default-devtools.timeline"] } });
  await work();
  await session.send("Tracing.end");
  await done;
  const main = events.filter((one) => one.name === "thread_name" && one.args.name === "CrRendererMain").map((one) => `${one.pid}/${one.tid}`);
  return events.filter((one) => /RunTask$/.test(one.name) && one.tdur && main.includes(`${one.pid}/${one.tid}`)).map((one) => one.tdur / 1000);
}

/** The text of a snippet and of the token it is about, as the data have them. */
const expected = (tab, latent) => tab.evaluate((latent) => {
  const sae = JSON.parse(document.getElementById("data").textContent).saes[0], card = sae.cards.find((one) => one.latent === latent);
  if (!card || !card.snippets.length) return null;
  const [, , start, length, peak] = card.snippets[0], pieces = sae.text.slice(start, start + length).map((place) => sae.pieces[place].replaceAll("\n", "↵"));
  return { text: pieces.join(""), peak: pieces[peak] };
}, latent);
const card = (tab) => tab.evaluate(() => {
  const line = document.querySelector("#card .snippet"), peak = line?.querySelector(".peak");
  const text = line && [...line.childNodes].filter((node) => !["act", "where"].includes(node.className)).map((node) => node.textContent).join("");
  return { title: document.querySelector("#card h3 a")?.textContent, text, peak: peak?.textContent, shade: peak && getComputedStyle(peak).backgroundColor };
});

for (const [name, how] of Object.entries({ light: {}, dark: { colorScheme: "dark" }, phone: { viewport: { width: 390, height: 844 } } })) {
  await opened(page, { viewport: { width: 1280, height: 900 }, ...how }, async (tab, faults) => {
    for (const fold of await tab.$$("details")) await fold.evaluate((one) => (one.open = true));
    await tab.evaluate(axe);
    const told = await tab.evaluate(() => window.axe.run());
    for (const one of told.violations) if (["serious", "critical"].includes(one.impact)) found.axe.push(`${name}: ${one.id}: ${one.help}: ${one.nodes[0].html.slice(0, 160)}: ${one.nodes[0].any[0]?.message ?? ""}`);
    found[`${name}_background`] = await tab.evaluate(() => getComputedStyle(document.body).backgroundColor);
    found[`${name}_too_wide`] = await tab.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    found.faults.push(...faults);
  });
}

await opened(page, { viewport: { width: 1280, height: 900 } }, async (tab, faults) => {
  found.drawn = await tab.evaluate(() => {
    const scatter = document.getElementById("scatter"), pixels = scatter.getContext("2d").getImageData(0, 0, scatter.width, scatter.height).data;
    let inked = 0;
    for (let i = 3; i < pixels.length; i += 4) inked += pixels[i] > 0;
    const figures = [...document.querySelectorAll("figure svg")].map((one) => [one.getBoundingClientRect().width, one.getBoundingClientRect().height, one.querySelectorAll("path, use, rect").length]);
    return { inked, figures, bars: document.querySelectorAll("#card .bars rect").length };
  });

  // a click near the middle of the cloud, and what the label said before it
  const box = await tab.locator("#scatter").boundingBox();
  await tab.locator("#scatter").scrollIntoViewIfNeeded();
  found.clicks = [];
  for (const share of [0.35, 0.45, 0.55, 0.65, 0.75]) {
    await tab.locator("#scatter").hover({ position: { x: box.width * share, y: box.height * (1 - share) } });
    if (await tab.locator("#hover").isHidden()) continue;
    const label = await tab.locator("#hover").textContent();
    await tab.locator("#scatter").click({ position: { x: box.width * share, y: box.height * (1 - share) } });
    await tab.waitForFunction((words) => document.querySelector("#card h3 a")?.textContent === words, `Latent ${label.split(" ")[1]}`, { timeout: 20_000 }).catch(() => {}); // what is shown then is what the test reads
    const latent = Number(label.split(" ")[1]);
    found.clicks.push({ label, hash: new URL(tab.url()).hash, shown: await card(tab), expected: await expected(tab, latent) });
  }

  const rare = await tab.evaluate(() => {
    const { cards } = JSON.parse(document.getElementById("data").textContent).saes[0], last = cards.at(-1);
    return { latent: last.latent, word: last.favourites[0][0].trim() };
  });
  const listed = () => tab.$$eval("#list tbody tr", (rows) => rows.map((row) => Number(row.dataset.latent)));
  const search = async (words) => {
    await tab.fill("#find", words);
    await tab.waitForTimeout(400);
    return listed();
  };
  found.search = { rare, by_word: await search(rare.word), by_number: await search(String(rare.latent)), shown: await card(tab), nothing: await search("no such word at all") };
  await search("");
  await tab.click("#list thead button:text-is('peak')");
  await tab.waitForTimeout(400);
  found.sorted = await tab.evaluate(() => {
    const { tHead, tBodies } = document.getElementById("list"), column = [...tHead.rows[0].cells].findIndex((head) => head.textContent === "peak");
    return [...tBodies[0].rows].map((row) => Number(row.cells[column].textContent));
  });
  for (const place of [0, 1]) await tab.locator("#list tbody input").nth(place).check();
  found.picked = { value: await tab.inputValue("#picked"), rows: (await listed()).slice(0, 2) };
  await tab.focus("#scatter");
  const before = (await card(tab)).title;
  await tab.keyboard.press("ArrowRight");
  await tab.waitForTimeout(200);
  found.keyboard = { before, after: (await card(tab)).title };
  await tab.keyboard.press("Enter");
  found.keyboard.focused = await tab.evaluate(() => document.activeElement.id);
  const methods = tab.locator("#methods table.sort").first();
  await methods.locator("th button").nth(1).click();
  found.methods = await methods.locator("tbody tr td:nth-child(2)").allTextContents();
  await tab.locator("#made table.sort th button").nth(1).click();
  found.thousands = await tab.locator("#made table.sort td:nth-child(2)").allTextContents();
  await tab.selectOption("#right", { index: 1 });
  found.texts = { pairs: await tab.locator(".pair").count(), marks: await tab.locator("#texts mark").allTextContents() };
  found.faults.push(...faults);
});

await opened(`${page}#latent-${found.search.rare.latent}`, {}, async (tab) => (found.linked = await card(tab)));

await opened(process.argv[3] ?? page, { viewport: { width: 1280, height: 900 } }, async (tab) => {
  const loading = await tasks(tab, async () => {
    await tab.reload({ waitUntil: "load" });
    await tab.evaluate(() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn))));
  });
  found.load = { cpu_ms: loading.reduce((sum, one) => sum + one, 0), wall_ms: await tab.evaluate(() => performance.now()), latents: await tab.evaluate(() => atob(JSON.parse(document.getElementById("data").textContent).saes[0].forget).length / 2) };
  await tab.waitForTimeout(500);
  await tab.evaluate(() => addEventListener("scroll", () => (window.farthest = Math.max(window.farthest ?? 0, scrollY))));
  await tab.mouse.move(8, 450);
  const scrolling = await tasks(tab, async () => {
    for (let turn = 0; turn < 60; turn++) {
      await tab.mouse.wheel(0, turn < 40 ? 400 : -400);
      await tab.waitForTimeout(16);
    }
  });
  found.scroll = { tasks: scrolling.length, longest_cpu_ms: Math.max(0, ...scrolling), scrolled: await tab.evaluate(() => window.farthest ?? 0) };
});
console.log(JSON.stringify(found));
