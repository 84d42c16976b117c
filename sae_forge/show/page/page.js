"use strict";
// The page is readable without this; it draws the latents and the written texts, sorts tables, and finds things.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const make = (tag, given = {}, ...inside) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(given)) {
      if (value === true || value === false || typeof value === "function") made[name] = value;
      else made.setAttribute(name, value);
    }
    made.append(...inside);
    return made;
  };
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const short = (value) => (value === null || value === undefined ? "" : value === 0 ? "0" : String(+value.toPrecision(3)));
  const percent = (value) => (value === null || value === undefined || Number.isNaN(value) ? "" : `${short(100 * value)}%`);
  const plain = (piece) => piece.replaceAll("\n", "↵");

  // ---- tables that sort ------------------------------------------------------------------------

  const sortable = (table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = make("button", { type: "button" }, head.textContent);
      head.replaceChildren(button);
      button.onclick = () => {
        const up = head.getAttribute("aria-sort") === "descending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const value = (row) => row.cells[column].textContent;
        const order = (one, other) => {
          const [a, b] = [value(one), value(other)];
          const [x, y] = [a, b].map((cell) => parseFloat(cell.replaceAll(/(\d),(?=\d{3})/g, "$1"))); // 1,200 is no 1
          if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1; // empty cells come last both ways
          return (up ? 1 : -1) * (Number.isNaN(x) ? a.localeCompare(b) : x - y);
        };
        table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
      };
    });
  };
  document.querySelectorAll("table.sort").forEach(sortable);

  // ---- latents ---------------------------------------------------------------------------------

  const NEVER = 0, UNKNOWN = 65535, STEPS = 65533, DECADES = 8;
  const decoded = (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const codes = new Uint16Array(bytes.buffer), shares = new Float32Array(codes.length);
    for (let i = 0; i < codes.length; i++)
      shares[i] = codes[i] === NEVER ? 0 : codes[i] === UNKNOWN ? NaN : 10 ** (DECADES * ((codes[i] - 1) / STEPS - 1));
    return shares;
  };

  let sae, number = 0, byLatent, rows = [], limit = 50, sorted = { column: 0, up: true }, shown = null, hovered = null;
  const picked = new Set();
  let columns = [];
  const statistics = [
    ["latent", (card) => card.latent, String],
    ["rank", (card) => card.rank, (rank) => (rank === null ? "" : rank + 1)],
    ["score", (card) => card.score, short],
    ["forget", (card) => sae.forget[card.latent], percent],
    ["retain", (card) => sae.retain[card.latent], percent],
    ["forget / retain", (card) => ratio(card), short],
    ["mean act", (card) => card.mean, short],
    ["peak", (card) => card.peak, short],
    ["on content words", (card) => card.content, percent],
    ["fires on", (card) => card.favourites.map(([piece]) => piece.trim()).join(" "), plain],
    ["promotes", (card) => (card.promoted || []).map((piece) => piece.trim()).join(" "), plain],
  ];
  const ratio = (card) => {
    const retain = sae.retain[card.latent];
    return retain > 0 ? sae.forget[card.latent] / retain : null;
  };

  const open = (which) => {
    number = which;
    sae = data.saes[which];
    if (typeof sae.forget === "string") [sae.forget, sae.retain] = [decoded(sae.forget), decoded(sae.retain)];
    byLatent = new Map(sae.cards.map((card) => [card.latent, card]));
    sae.ranks ??= new Map(sae.chosen.map((latent, rank) => [latent, rank]));
    for (const card of sae.cards) {
      if (card.rank !== undefined) break; // opened before
      card.rank = sae.ranks.get(card.latent) ?? null;
      card.snippets = card.snippets.map(([percentile, corpus, start, length, peak, fired, acts]) => ({ percentile, corpus, start, length, peak, fired, acts }));
    }
    columns = statistics.filter(([, value]) => sae.cards.some((card) => (value(card) ?? "") !== "")); // none that is empty
    $("about").textContent = sae.about;
    $("scatter").setAttribute("aria-label", `Forget frequency against retain frequency of ${sae.forget.length} latents, ${sae.chosen.length} of them chosen`);
    sorted = { column: sae.chosen.length ? 1 : 0, up: true };
    shown = null;
    heads();
    filter();
    draw();
  };

  // ---- the scatter: points by pixel, as 65,536 shapes would take too long ----------------------

  const scene = { base: document.createElement("canvas"), x: null, y: null };
  const draw = () => {
    const canvas = $("scatter"), dense = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width || !height) return;
    const base = scene.base;
    base.width = canvas.width = Math.round(width * dense);
    base.height = canvas.height = Math.round(height * dense);
    const pen = base.getContext("2d");
    const { forget, retain } = sae;
    let least = 1;
    for (let i = 0; i < forget.length; i++) {
      if (forget[i] > 0 && forget[i] < least) least = forget[i];
      if (retain[i] > 0 && retain[i] < least) least = retain[i];
    }
    const first = Math.floor(Math.log10(least)), room = { left: 52, right: 10, top: 10, bottom: 40 };
    // half a decade below the least is the place of what never fires, for which a logarithm has none
    const at = (share) => (share > 0 ? (Math.log10(share) - first + 0.5) / (0.5 - first) : 0);
    const across = (share) => room.left + at(share) * (width - room.left - room.right);
    const down = (share) => height - room.bottom - at(share) * (height - room.top - room.bottom);
    scene.x = new Float32Array(forget.length).fill(NaN);
    scene.y = new Float32Array(forget.length).fill(NaN);
    const counts = new Uint16Array(base.width * base.height), size = Math.max(2, Math.round(2 * dense));
    for (let i = 0; i < forget.length; i++) {
      if (!(forget[i] > 0 || retain[i] > 0)) continue; // one that never fires is nowhere
      scene.x[i] = across(forget[i]);
      scene.y[i] = down(retain[i]);
      const left = Math.round(scene.x[i] * dense) - (size >> 1), top = Math.round(scene.y[i] * dense) - (size >> 1);
      for (let dy = 0; dy < size; dy++)
        for (let dx = 0; dx < size; dx++) counts[(top + dy) * base.width + left + dx]++;
    }
    const grey = colour("grey").match(/\w\w/g).map((part) => parseInt(part, 16));
    const image = pen.createImageData(base.width, base.height);
    for (let i = 0; i < counts.length; i++)
      if (counts[i]) image.data.set([...grey, Math.min(255, 90 + 45 * counts[i])], 4 * i);
    pen.putImageData(image, 0, 0);
    pen.scale(dense, dense);
    pen.font = "11px system-ui, sans-serif";
    pen.strokeStyle = colour("line");
    pen.fillStyle = colour("soft");
    for (let power = first - 1; power <= 0; power++) {
      const share = power < first ? 0 : 10 ** power, name = share ? percent(share) : "never";
      pen.beginPath();
      pen.moveTo(across(share), room.top), pen.lineTo(across(share), height - room.bottom);
      pen.moveTo(room.left, down(share)), pen.lineTo(width - room.right, down(share));
      pen.stroke();
      pen.textAlign = "center", pen.fillText(name, Math.min(across(share), width - 22), height - room.bottom + 15);
      pen.textAlign = "right", pen.fillText(name, room.left - 6, down(share) + 4);
    }
    pen.textAlign = "center";
    pen.fillStyle = colour("ink");
    pen.fillText("forget frequency, share of tokens", (width + room.left) / 2, height - 8);
    pen.save(), pen.translate(11, (height - room.bottom) / 2), pen.rotate(-Math.PI / 2);
    pen.fillText("retain frequency", 0, 0), pen.restore();
    pen.setLineDash([3, 3]), pen.beginPath(), pen.moveTo(across(0), down(0)), pen.lineTo(across(1), down(1)), pen.stroke(), pen.setLineDash([]);
    const dots = (latents, name, radius) => {
      pen.fillStyle = colour(name);
      for (const latent of latents) {
        if (Number.isNaN(scene.x[latent])) continue;
        pen.beginPath(), pen.arc(scene.x[latent], scene.y[latent], radius, 0, 7), pen.fill();
      }
    };
    dots(sae.cards.filter((card) => card.rank === null).map((card) => card.latent), "blue", 1.6);
    dots(sae.chosen, "vermillion", 3.2);
    scene.across = across;
    ring();
  };
  const ring = () => {
    const canvas = $("scatter"), pen = canvas.getContext("2d"), dense = window.devicePixelRatio || 1;
    pen.setTransform(1, 0, 0, 1, 0, 0), pen.clearRect(0, 0, canvas.width, canvas.height);
    if (scene.base.width) pen.drawImage(scene.base, 0, 0);
    pen.scale(dense, dense);
    for (const [latent, width] of [[shown, 2.5], [hovered, 1.5]]) {
      if (latent === null || Number.isNaN(scene.x[latent])) continue;
      pen.strokeStyle = colour("ink"), pen.lineWidth = width;
      pen.beginPath(), pen.arc(scene.x[latent], scene.y[latent], 7, 0, 7), pen.stroke();
    }
  };
  const nearest = (event) => {
    const away = (i) => (scene.x[i] - event.offsetX) ** 2 + (scene.y[i] - event.offsetY) ** 2;
    let best = null, reach = 8 ** 2;
    for (const { latent } of sae.cards) if (away(latent) < reach) [best, reach] = [latent, away(latent)];
    if (best !== null) return best; // one that has a card is what is looked for in a crowd
    reach = 14 ** 2;
    for (let i = 0; i < scene.x.length; i++) if (away(i) < reach) [best, reach] = [i, away(i)];
    return best;
  };
  const told = (latent) => {
    const rank = sae.ranks.get(latent);
    return `latent ${latent} · forget ${percent(sae.forget[latent])} · retain ${percent(sae.retain[latent])}${rank === undefined ? "" : ` · chosen, ${rank + 1}.`}`;
  };
  const hover = (event) => {
    hovered = event.type === "pointerleave" ? null : nearest(event);
    const label = $("hover");
    label.hidden = hovered === null;
    if (hovered !== null) {
      label.textContent = told(hovered);
      label.style.left = `${Math.max(0, Math.min(scene.x[hovered] + 10, $("scatter").clientWidth - label.offsetWidth))}px`;
      label.style.top = `${Math.max(0, scene.y[hovered] - 32)}px`;
    }
    ring();
  };

  // ---- one card --------------------------------------------------------------------------------

  const address = (latent) => `#latent-${latent}${number ? `-of-${number + 1}` : ""}`;
  const chips = (title, pieces) => (pieces && pieces.length ? [make("div", {}, make("h4", {}, title), make("div", { class: "tokens" }, ...pieces.map((piece) => make("span", {}, plain(piece)))))] : []);
  const snippet = (card, one) => {
    const line = make("div", { class: "snippet" }), acts = new Map(one.fired.map((place, i) => [place, one.acts[i]]));
    line.append(make("span", { class: "act" }, short(acts.get(one.peak) ?? 0)));
    for (let i = 0; i < one.length; i++) {
      const piece = plain(sae.pieces[sae.text[one.start + i]]), act = acts.get(i);
      if (act === undefined) line.append(piece);
      else {
        const token = make("span", { class: i === one.peak ? "on peak" : "on", title: `fires at ${short(act)}` }, piece);
        token.style.setProperty("--a", Math.max(0.18, Math.min(1, act / (card.peak || 1))).toFixed(2));
        line.append(token);
      }
    }
    if (one.corpus) line.append(make("span", { class: "where" }, ` (${sae.corpora[one.corpus]})`));
    return line;
  };
  const bars = (card) => {
    const most = Math.max(...card.histogram[0], ...card.histogram[1], 1), across = card.histogram[0].length;
    const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    for (const [name, value] of Object.entries({ class: "bars", role: "img", viewBox: `0 0 ${across} 2`, preserveAspectRatio: "none",
      "aria-label": `Firings by strength from 0 to ${short(card.peak)}: upwards in text to forget, downwards in text to keep` })) picture.setAttribute(name, value);
    card.histogram.forEach((counts, side) => counts.forEach((count, place) => {
      const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect"), tall = Math.sqrt(count / most);
      for (const [name, value] of Object.entries({ class: side ? "retain" : "forget", x: place + 0.08, width: 0.84, y: side ? 1.02 : 0.98 - 0.98 * tall, height: 0.98 * tall })) bar.setAttribute(name, value);
      picture.append(bar);
    }));
    return picture;
  };
  const facts = (card) => Object.entries({
    ...(card.rank === null ? {} : { rank: card.rank + 1 }),
    "forget frequency": percent(sae.forget[card.latent]), "retain frequency, the highest": percent(sae.retain[card.latent]),
    ...Object.fromEntries(sae.corpora.map((name, i) => [`fires in ${name}`, sae.tokens[i] ? `${card.fires[i]} of ${sae.tokens[i].toLocaleString("en")}` : String(card.fires[i])])),
    "mean act": short(card.mean), peak: short(card.peak),
    ...(card.stats || {}),
  });
  const show = (latent) => {
    const card = byLatent.get(latent), article = $("card");
    shown = latent;
    const pick = make("button", { type: "button", onclick: () => toggle(latent) });
    const link = make("a", { href: address(latent), title: "link to this card" }, `Latent ${latent}`);
    article.replaceChildren(make("h3", { id: address(latent).slice(1) }, link, " ", pick));
    if (!card) article.append(make("p", {}, `${told(latent)}. It has no card: those have one that were chosen or fire most.`));
    else {
      const [forget, retain] = [0, 1].map((side) => card.snippets.filter((one) => (one.corpus > 0) === (side > 0)));
      article.append(make("p", { class: "soft" }, told(latent)), make("div", { class: "columns" }, ...chips("Fires on", card.favourites.map(([piece, count]) => `${piece} ×${count}`)),
        ...chips("Promotes", card.promoted), ...chips("Suppresses", card.suppressed)));
      const group = (title, those) => { if (those.length) article.append(make("h4", {}, title), ...those.map((one) => snippet(card, one))); };
      group("In text to forget, where it fires most", forget.filter((one) => one.percentile === 100));
      for (const share of new Set(forget.map((one) => one.percentile).filter((share) => share < 100)))
        group(`Stronger than ${share}% of its firings there`, forget.filter((one) => one.percentile === share));
      group("In text to keep, where it fires most", retain);
      if (card.histogram[0].length) article.append(make("h4", {}, `Firings by strength, 0 to ${short(card.peak)}; up: forget, down: retain (square roots)`), bars(card));
      article.append(make("h4", {}, "Numbers"), make("dl", {}, ...facts(card).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))));
      if (!sae.contexts) article.append(make("p", { class: "soft" }, "Text to forget is left out of this page: report --include_contexts puts it in."));
    }
    $("said").textContent = told(latent);
    ring();
    mark();
    ticks();
  };
  const toggle = (latent) => {
    picked.has(latent) ? picked.delete(latent) : picked.add(latent);
    ticks();
  };
  const ticks = () => {
    $("picked").value = [...picked].join(",");
    for (const row of $("list").tBodies[0].rows) row.querySelector("input").checked = picked.has(Number(row.dataset.latent));
    const button = $("card").querySelector("button"); // changed in place, so that the focus stays where it is
    if (!button) return;
    button.setAttribute("aria-pressed", String(picked.has(shown)));
    button.textContent = picked.has(shown) ? "Picked" : "Pick";
  };

  // ---- the list --------------------------------------------------------------------------------

  const heads = (focused = null) => {
    const row = make("tr", {}, ...columns.map(([name], column) => make("th", { scope: "col", ...(sorted.column === column ? { "aria-sort": sorted.up ? "ascending" : "descending" } : {}) },
      make("button", { type: "button", onclick: () => { sorted = { column, up: sorted.column === column ? !sorted.up : column < 2 }; heads(column); filter(); } }, name))), make("th", { scope: "col" }, "pick"));
    $("list").tHead.replaceChildren(row);
    if (focused !== null) row.cells[focused].firstChild.focus(); // as it was, on the head that was clicked
  };
  const list = () => {
    $("list").tBodies[0].replaceChildren(...rows.slice(0, limit).map((card) => {
      const link = make("a", { href: address(card.latent) }, String(card.latent));
      const cells = columns.slice(1).map(([, value, words]) => make("td", typeof value(card) === "string" ? { class: "text" } : {}, String(words(value(card)))));
      const box = make("input", { type: "checkbox", checked: picked.has(card.latent), "aria-label": `pick latent ${card.latent}`, onchange: () => toggle(card.latent) });
      const row = make("tr", {}, make("th", { scope: "row" }, link), ...cells, make("td", {}, box));
      row.dataset.latent = card.latent;
      return row;
    }));
    $("more").hidden = rows.length <= limit;
    mark();
  };
  const mark = () => {
    for (const row of $("list").tBodies[0].rows) Number(row.dataset.latent) === shown ? row.setAttribute("aria-current", "true") : row.removeAttribute("aria-current");
  };
  const words = (card) => (card.words ??= [...card.favourites.map(([piece]) => piece), ...(card.promoted || []), ...(card.suppressed || []),
    ...card.snippets.map((one) => { let text = ""; for (let i = 0; i < one.length; i++) text += sae.pieces[sae.text[one.start + i]]; return text; })].join("\n").toLowerCase());
  let asked = 0;
  const filter = () => {
    const mine = ++asked, wanted = $("find").value.trim().toLowerCase(), latent = /^\d+$/.test(wanted) ? Number(wanted) : null, of = sae;
    const matches = [];
    let next = 0;
    const fits = (card) => (!$("only").checked || card.rank !== null) && (!wanted || (latent === null ? words(card).includes(wanted) : card.latent === latent));
    const step = () => {
      if (mine !== asked || of !== sae) return;
      const until = Math.min(next + 100, sae.cards.length); // a few at a time: the page must go on scrolling
      for (; next < until; next++) if (fits(sae.cards[next])) matches.push(sae.cards[next]);
      if (next < sae.cards.length) return void setTimeout(step);
      const value = columns[sorted.column][1];
      const order = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if ((x ?? "") === "" || (y ?? "") === "") return ((x ?? "") === "") - ((y ?? "") === "");
        return (sorted.up ? 1 : -1) * (typeof x === "string" ? x.localeCompare(y) : x - y);
      };
      rows = matches.sort(order);
      $("count").textContent = `${rows.length} of ${sae.cards.length}`;
      limit = 50;
      list();
      if (latent !== null && latent < sae.forget.length) location.hash = address(latent);
      else if (shown === null && rows.length) show(rows[0].latent);
    };
    step();
  };

  const go = () => {
    const named = /^#latent-(\d+)(?:-of-(\d+))?$/.exec(location.hash);
    if (!named || !data.saes.length) return;
    const which = Number(named[2] || 1) - 1;
    if (which !== number && data.saes[which]) { open(which); $("which").value = which; }
    if (Number(named[1]) < sae.forget.length) { show(Number(named[1])); $("card").scrollIntoView({ block: "nearest" }); }
  };
  if (data.saes.length) {
    const scatter = $("scatter");
    $("which-line").hidden = data.saes.length < 2;
    $("which").append(...data.saes.map((one, i) => make("option", { value: i }, one.name)));
    $("which").onchange = () => open(Number($("which").value));
    scatter.addEventListener("pointermove", hover);
    scatter.addEventListener("pointerleave", hover);
    scatter.addEventListener("click", (event) => { const latent = hovered ?? nearest(event); if (latent !== null) location.hash = address(latent); });
    scatter.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key], place = rows.findIndex((card) => card.latent === shown);
      if (step && rows.length) { event.preventDefault(); location.hash = address(rows[Math.max(0, Math.min(rows.length - 1, place + step))].latent); }
      else if (event.key === "Enter") $("card").focus();
    });
    let waiting;
    $("find").oninput = () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); };
    $("search").onsubmit = (event) => { event.preventDefault(); filter(); };
    $("only").onchange = filter;
    $("more").onclick = () => { limit += 50; list(); };
    $("none").onclick = () => { picked.clear(); ticks(); };
    $("copy").onclick = () => {
      $("picked").select();
      navigator.clipboard ? navigator.clipboard.writeText($("picked").value).catch(() => document.execCommand("copy")) : document.execCommand("copy");
    };
    open(0);
    go();
    window.addEventListener("hashchange", go);
    new ResizeObserver(() => requestAnimationFrame(draw)).observe(scatter);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    window.addEventListener("beforeprint", () => { document.documentElement.dataset.print = ""; draw(); });
    window.addEventListener("afterprint", () => { delete document.documentElement.dataset.print; draw(); });
  }

  // ---- what was written, side by side ----------------------------------------------------------

  const texts = data.texts;
  if (texts.length) {
    const titles = [...new Set(texts.flatMap((one) => Object.keys(one.under)))];
    const side = (written) => {
      const cell = make("div");
      if (!written) return cell;
      let past = 0;
      for (const [start, end, latents] of written.edited) {
        cell.append(written.text.slice(past, start), make("mark", { title: `edited; latents ${latents}` }, written.text.slice(start, end)));
        past = end;
      }
      cell.append(written.text.slice(past));
      return cell;
    };
    const write = () => $("texts").replaceChildren(...texts.map((one) => make("div", { class: "pair" }, make("div", { class: "prompt" }, `${one.prompt} …`),
      side(one.under[$("left").value]), side(one.under[$("right").value]))));
    for (const [id, place] of [["left", 0], ["right", Math.min(1, titles.length - 1)]]) {
      $(id).append(...titles.map((title) => make("option", { value: title }, title)));
      $(id).value = titles[place];
      $(id).onchange = write;
    }
    write();
  }
})();
