// Pictures of a page as people see it: node shots.mjs PAGE FOLDER wide|dark|phone…, each section and a PDF; or docs, the few
// that docs/page.md shows.
import { mkdirSync } from "node:fs";
import { opened } from "./browser.mjs";

const [, , page, folder, ...only] = process.argv;
mkdirSync(folder, { recursive: true });
const LATENT = process.env.LATENT ? `#latent-${process.env.LATENT}` : "";
const clip = (height) => ({ clip: { x: 0, y: 0, width: 1280, height } });
if (only[0] === "docs") {
  await opened(page, { viewport: { width: 1280, height: 800 } }, async (tab) => {
    await tab.evaluate(() => scrollTo(0, 0));
    await tab.screenshot({ path: `${folder}/verdict.png`, ...clip(640) });
  });
  await opened(page, { viewport: { width: 1280, height: 800 }, colorScheme: "dark" }, async (tab) => {
    await tab.evaluate(() => document.getElementById("latents").scrollIntoView({ behavior: "instant" }));
    await tab.screenshot({ path: `${folder}/latents.png` });
  });
  await opened(page, { viewport: { width: 390, height: 800 }, isMobile: true }, async (tab) => {
    await tab.screenshot({ path: `${folder}/phone.png` });
  });
}
const shots = only[0] === "docs" ? {} : {
  wide: { viewport: { width: 1280, height: 900 } },
  dark: { viewport: { width: 1280, height: 900 }, colorScheme: "dark" },
  paper: { viewport: { width: 794, height: 1123 } },
  phone: { viewport: { width: 390, height: 844 }, isMobile: true },
};
for (const [name, how] of Object.entries(shots)) {
  if (only.length && !only.includes(name)) continue;
  await opened(page, how, async (tab) => {
    await tab.screenshot({ path: `${folder}/${name}-top.png` });
    await tab.evaluate((latent) => (location.hash = latent), LATENT);
    if (name === "paper") await tab.emulateMedia({ media: "print" });
    const sections = await tab.$$eval("main > section", (all) => all.map((one) => one.id));
    for (const id of sections) await tab.locator(`#${id}`).screenshot({ path: `${folder}/${name}-${id}.png` });
    if (name === "wide") await tab.pdf({ path: `${folder}/page.pdf`, format: "A4" });
  });
}
