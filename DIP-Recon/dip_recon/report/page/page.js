// Shows one run of the page at a time: two pictures of it under a slider, curves, settings.
// data.js has put everything into window.dipRecon. What is shown is said by the address, as in
// #run=NAME&left=measurement&right=restored&at=250, so that a link leads to it.
// Names and settings may hold anything: they become text, never markup.
"use strict";

(() => {
  const { facets, runs } = window.dipRecon;
  const byId = new Map(runs.map((run) => [run.id, run]));
  const element = (id) => document.getElementById(id);
  const slider = element("slider");
  const natural = new Intl.Collator("en", { numeric: true }).compare;

  const shown = { run: null, left: "measurement", right: "restored", at: null };
  let plot = null;

  // ------------------------------------------------------------ helpers

  function make(tag, text, attributes = {}) {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  }

  function bringIntoView(node) {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    node.scrollIntoView({ behavior: still ? "auto" : "smooth" });
  }

  const decibels = (value) => (value === null ? "" : `${value.toFixed(2)} dB`);
  const count = (value) => value.toLocaleString("en");

  // ------------------------------------------------------------ the address

  function readAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    const run = byId.get(given.get("run"));
    if (!run) return null;
    const at = given.has("at") ? Number(given.get("at")) : null;
    return { run, left: given.get("left"), right: given.get("right"), at };
  }

  function address(run = shown.run) {
    const parts = { run: run.id, left: shown.left, right: shown.right };
    if (moment() && !moment().result) parts.at = shown.at; // each run has its own result
    return "#" + new URLSearchParams(parts);
  }

  // A run is a step that one can go back from; a side or a moment is not.
  const goTo = (run) => {
    if (run === shown.run) bringIntoView(element("view"));
    else location.hash = address(run);
  };
  const keepAddress = () => location.replace(address());

  // ------------------------------------------------------------ choosing a run

  const agree = (a, b, levels) => a.facets.slice(0, levels).every((v, n) => v === b.facets[n]);

  // The run with this value that is most like the present one.
  function choose(level, value) {
    const near = runs.filter((run) => agree(run, shown.run, level));
    const fitting = near.filter((run) => run.facets[level] === value);
    const likeness = (run) => run.facets.filter((v, n) => v === shown.run.facets[n]).length;
    goTo(fitting.reduce((best, run) => (likeness(run) > likeness(best) ? run : best)));
  }

  function showFacets() {
    facets.forEach((title, level) => {
      const select = element(`facet-${level}`);
      const near = runs.filter((run) => agree(run, shown.run, level));
      const values = [...new Set(near.map((run) => run.facets[level]))].sort(natural);
      select.replaceChildren(...values.map((value) => new Option(value || "–", value)));
      select.value = shown.run.facets[level];
      select.disabled = values.length === 1;
      select.parentNode.hidden = values.length === 1 && !values[0]; // there is nothing to say
    });
  }

  function makeFacets() {
    facets.forEach((title, level) => {
      const label = make("label", title);
      const select = make("select", undefined, { id: `facet-${level}` });
      label.append(select);
      select.addEventListener("change", () => choose(level, select.value));
      element("facets").append(label);
    });
  }

  // ------------------------------------------------------------ the two pictures

  const moment = () => shown.run.moments.find((m) => m.at === shown.at);

  // What can be on a side: key -> { label, src, psnr }
  function sides() {
    const { run } = shown;
    const found = new Map();
    const put = (key, label, src, psnr) => { if (src) found.set(key, { label, src, psnr }); };
    put("measurement", "Measurement", run.measurement, run.psnr.measurement);
    put("restored", "Restored", run.restored, run.psnr.restored);
    put("clean", "Clean picture", run.clean, null);
    if (moment()) put("moment", `Iteration ${shown.at}`, moment().src, moment().psnr);
    for (const other of runs) {
      const alike = other.facets[0] === run.facets[0] && String(other.size) === String(run.size);
      if (other === run || !alike) continue;
      const name = other.facets.slice(1).filter(Boolean).join(", ");
      put(`run:${other.id}`, name, other.restored, other.psnr.restored);
    }
    return found;
  }

  function showSides() {
    const found = sides();
    const keys = [...found.keys()];
    if (!found.has(shown.left)) shown.left = keys[0];
    if (!found.has(shown.right)) shown.right = found.has("restored") ? "restored" : keys.at(-1);
    for (const side of ["left", "right"]) {
      const select = element(side);
      const others = make("optgroup", undefined, { label: "Other runs of this picture" });
      select.replaceChildren();
      for (const [key, { label }] of found) {
        (key.startsWith("run:") ? others : select).append(new Option(label, key));
      }
      if (others.children.length) select.append(others);
      select.value = shown[side];
      const { label, src, psnr } = found.get(shown[side]) ?? { label: "", src: "", psnr: null };
      const picture = element(`${side}-picture`);
      if (picture.getAttribute("src") !== src) picture.src = src;
      picture.alt = `${label}: ${shown.run.facets[0]}`;
      const enlarged = shown[side] === "measurement" && shown.run.enlarged && psnr !== null;
      element(`${side}-level`).textContent = decibels(psnr) + (enlarged ? ", bicubic" : "");
    }
    element("stage").hidden = !keys.length;
  }

  // Small pictures are enlarged, so that their pixels can be seen.
  function frame() {
    const [width, height] = shown.run.size ?? [1, 1];
    const box = element("stage");
    box.style.setProperty("--width", `${width}px`);
    box.style.setProperty("--ratio", width / height);
    box.classList.toggle("pixels", width <= 256);
  }

  // ------------------------------------------------------------ the iterations

  function nameMoment({ at, psnr, result }) {
    const after = shown.run.stop !== null && at > shown.run.stop ? ", after the stop" : "";
    const level = psnr === null ? "" : `, ${decibels(psnr)}`;
    return `iteration ${at}${level}${result ? ": the result" : after}`;
  }

  function showMoment() {
    const { moments } = shown.run;
    element("moments").hidden = !moments.length;
    if (!moments.length) { shown.at = null; return; }
    if (!moment()) shown.at = (moments.find((m) => m.result) ?? moments.at(-1)).at;
    const range = element("moment");
    range.max = moments.length - 1;
    range.value = moments.indexOf(moment());
    range.setAttribute("aria-valuetext", nameMoment(moment()));
    element("moment-text").textContent = nameMoment(moment());
    element("moment-marks").replaceChildren(...moments.map((_, n) => new Option("", n)));
  }

  function setMoment(at) {
    shown.at = at;
    // the result is "restored"; any other moment takes the right side, unless one has it already
    if (![shown.left, shown.right].includes("moment")) shown.right = "moment";
    showMoment();
    showSides();
    plot?.redraw(false);
    showLegend();
  }

  // The snapshots of the run at hand are fetched before they are asked for.
  function fetchMoments() {
    const { run } = shown;
    const fetchThem = () => run.moments.forEach(({ src }) => { new Image().src = src; });
    (window.requestIdleCallback ?? setTimeout)(() => run === shown.run && fetchThem());
  }

  // ------------------------------------------------------------ figures and settings

  function showFacts() {
    const { run } = shown;
    const facts = [
      [run.enlarged ? "Bicubic" : "Measured", decibels(run.psnr.measurement), "", "measured"],
      ["Restored", decibels(run.psnr.restored) || "no PSNR", run.ending, "restored"],
      ["SSIM", run.ssim === null ? "" : run.ssim.toFixed(3), "", ""],
      ["Oracle", decibels(run.oracle[1]), `at iteration ${run.oracle[0]}; not a result`, "oracle"],
    ].filter(([, value]) => value);
    element("facts").replaceChildren(...facts.map(([name, value, note, kind]) => {
      const item = make("div", undefined, { class: kind });
      item.append(make("dt", name), make("dd", value));
      if (note) item.append(make("dd", note));
      return item;
    }));
    const cost = [];
    if (run.psnr.restored === null) cost.push("no clean picture to compare with");
    if (run.parameters !== null) cost.push(`${count(run.parameters)} parameters`);
    if (run.seconds !== null) cost.push(`${count(Math.round(run.seconds))} s`);
    element("cost").textContent = cost.join(" · ");
    element("settings").replaceChildren(...run.settings.map(([name, value]) => {
      const item = make("div");
      item.append(make("dt", name), make("dd", value));
      return item;
    }));
  }

  function showTiles() {
    const { tiles, size } = shown.run;
    element("tiles").hidden = !tiles || !size;
    if (!tiles || !size) return;
    const svg = (tag, attributes) => {
      const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
      return node;
    };
    const [width, height] = size;
    const stops = tiles.map((tile) => tile[4]);
    const least = stops.reduce((a, b) => Math.min(a, b)); // spread arguments have a limit
    const most = stops.reduce((a, b) => Math.max(a, b));
    const boxes = tiles.map(([top, bottom, left, right, stop]) => {
      const group = svg("g", {});
      const shade = most > least ? 0.12 + 0.5 * (stop - least) / (most - least) : 0.3;
      const place = { x: left, y: top, width: right - left, height: bottom - top };
      group.append(svg("rect", { ...place, "fill-opacity": shade }));
      if (tiles.length <= 48) {
        const text = svg("text", {
          x: (left + right) / 2, y: (top + bottom) / 2,
          "font-size": Math.min(bottom - top, (right - left) / 2) / 3,
        });
        text.textContent = stop;
        group.append(text);
      }
      const title = svg("title", {});
      title.textContent = `stopped at iteration ${stop}`;
      group.append(title);
      return group;
    });
    element("tile-map").setAttribute("viewBox", `0 0 ${width} ${height}`);
    element("tile-map").replaceChildren(...boxes);
  }

  // ------------------------------------------------------------ the plot

  const FONT = "11px system-ui, sans-serif";
  const CURVES = [ // column, name, colour, scale, width, dashes
    ["psnr_gt_sm", "vs clean", "--blue", "dB", 2.2, []],
    ["psnr_gt", "raw output vs clean", "--orange", "dB", 1, []],
    ["psnr_noisy", "vs measured", "--muted", "dB", 1.2, [5, 4]],
    ["loss", "loss", "--green", "loss", 1.2, [2, 3]],
  ];
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Lines at the stop and at the picture shown; a ring at the oracle.
  function drawMarks(u) {
    const { run, at } = shown;
    const { ctx, bbox } = u;
    const ratio = devicePixelRatio;
    const inside = (x) => x >= bbox.left && x <= bbox.left + bbox.width;
    const line = (iteration, name, dashes, label, row) => {
      if (iteration === null) return;
      const x = u.valToPos(iteration, "x", true);
      if (!inside(x)) return;
      ctx.strokeStyle = colour(name);
      ctx.lineWidth = 1.5 * ratio;
      ctx.setLineDash(dashes.map((d) => d * ratio));
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      ctx.font = `${11 * ratio}px system-ui, sans-serif`;
      const over = x + ctx.measureText(label).width + 8 * ratio > bbox.left + bbox.width;
      ctx.textAlign = "left";
      ctx.textBaseline = "bottom";
      const wide = ctx.measureText(label).width;
      const left = over ? x - wide - 6 * ratio : x + 6 * ratio;
      const y = bbox.top + bbox.height - (4 + 16 * row) * ratio;
      ctx.globalAlpha = 0.8;
      ctx.fillStyle = colour("--ground");
      ctx.fillRect(left - 2 * ratio, y - 13 * ratio, wide + 4 * ratio, 14 * ratio);
      ctx.globalAlpha = 1;
      ctx.fillStyle = colour(name);
      ctx.fillText(label, left, y);
    };
    ctx.save();
    line(run.stop, "--text", [3, 3], "stopped", 0);
    if (at !== null && at !== run.stop) line(at, "--accent", [], `iteration ${at}`, 1);
    const [best, level] = run.oracle;
    if (best !== null && level !== null) {
      const [x, y] = [u.valToPos(best, "x", true), u.valToPos(level, "dB", true)];
      if (inside(x)) {
        ctx.setLineDash([]);
        ctx.strokeStyle = ctx.fillStyle = colour("--text");
        ctx.lineWidth = 1.5 * ratio;
        ctx.beginPath();
        ctx.arc(x, y, 4.5 * ratio, 0, 2 * Math.PI);
        ctx.stroke();
        ctx.font = `${11 * ratio}px system-ui, sans-serif`;
        ctx.textAlign = x > bbox.left + bbox.width - 60 * ratio ? "right" : "center";
        ctx.textBaseline = "bottom";
        ctx.fillText("oracle", x, y - 8 * ratio);
      }
    }
    ctx.restore();
  }

  // The legend has the values under the pointer, else those of the picture shown.
  function showLegend() {
    if (!plot) return;
    const at = shown.at ?? shown.run.stop ?? Infinity;
    const { iteration } = shown.run.history;
    const after = iteration.findIndex((i) => i >= at);
    plot.setLegend({ idx: after < 0 ? iteration.length - 1 : after });
  }

  function restLegend(u) {
    if (u.cursor.left < 0) showLegend();
  }

  function nearestMoment(iteration) {
    const far = (m) => Math.abs(m.at - iteration);
    return shown.run.moments.reduce((best, m) => (far(m) < far(best) ? m : best));
  }

  function showPlot() {
    plot?.destroy();
    plot = null;
    const { run } = shown;
    element("curves").hidden = !run.history;
    if (!run.history) return;
    const curves = CURVES.filter(([column]) => run.history[column]);
    const axis = (more) => ({
      stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 },
      ticks: { stroke: colour("--line"), width: 1 }, font: FONT, labelFont: FONT, ...more,
    });
    // the least PSNRs are those of the first iterations, which would flatten the rest
    const fromFive = (u, low, high) => (
      uPlot.rangeNum(Math.max(low, Math.min(5, high - 1)), high, 0.05, true));
    const told = (scale) => (u, v) => (
      v === null ? "–" : scale === "loss" ? v.toPrecision(3) : v.toFixed(2));
    const positive = (values) => values.map((v) => (v > 0 ? v : null)); // the scale is a logarithm
    const box = element("plot");
    plot = new uPlot({
      width: box.clientWidth,
      height: 300,
      scales: { x: { time: false }, dB: { range: fromFive }, loss: { distr: 3 } },
      series: [
        { label: "iteration", value: (u, v) => (v === null ? "–" : count(v)) },
        ...curves.map(([column, label, name, scale, width, dash]) => ({
          label, scale, width, dash, stroke: colour(name), value: told(scale), spanGaps: true,
          points: { show: false },
        })),
      ],
      axes: [
        axis({ values: (u, ticks) => ticks.map(count), size: 34 }),
        axis({ scale: "dB", size: 44, label: "PSNR, dB", labelSize: 18 }),
        axis({
          scale: "loss", side: 1, size: 54, label: "loss", labelSize: 18, grid: { show: false },
          values: (u, ticks) => ticks.map((v) => (v === null ? "" : v.toExponential(0))),
        }),
      ],
      hooks: { draw: [drawMarks], ready: [showLegend], setCursor: [restLegend] },
      cursor: { y: false, points: { size: 7 } },
    }, [
      run.history.iteration,
      ...curves.map(([column]) => (column === "loss" ? positive : (v) => v)(run.history[column])),
    ], box);
    const { over } = plot;
    const { iteration } = run.history;
    const last = iteration.length - 1;
    const say = (n) => { // to those who cannot see the legend
      const levels = curves.map(([column, label, , scale]) => (
        `${label} ${told(scale)(plot, run.history[column][n])}`));
      over.setAttribute("aria-valuenow", iteration[n]);
      over.setAttribute("aria-valuetext", [`iteration ${iteration[n]}`, ...levels].join(", "));
    };
    over.tabIndex = 0;
    over.setAttribute("role", "slider");
    over.setAttribute("aria-label", "PSNR in dB and loss along the iterations");
    over.setAttribute("aria-valuemin", iteration[0]);
    over.setAttribute("aria-valuemax", iteration[last]);
    say(plot.legend.idx ?? last);
    over.addEventListener("blur", () => plot.setCursor({ left: -10, top: -10 }));
    let before = null; // a double-click goes back, and begins with a click
    over.addEventListener("click", (event) => {
      if (!run.moments.length || event.detail > 1) return;
      before = { left: shown.left, right: shown.right, at: shown.at };
      setMoment(nearestMoment(plot.posToVal(plot.cursor.left, "x")).at);
      keepAddress();
    });
    over.addEventListener("dblclick", () => {
      if (!before) return;
      show({ run, ...before });
      keepAddress();
    });
    over.addEventListener("keydown", (event) => {
      const now = plot.legend.idx ?? 0;
      const to = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const n = Math.min(Math.max(to, 0), last);
      plot.setCursor({ left: plot.valToPos(iteration[n], "x"), top: 0 });
      say(n);
    });
  }

  // ------------------------------------------------------------ the table

  const table = document.querySelector("table");

  function sortBy(column) {
    const header = table.tHead.rows[0].cells[column];
    const numbers = header.classList.contains("number");
    const was = header.getAttribute("aria-sort");
    // numbers begin with the largest, names with the first letter
    const down = was ? was === "ascending" : numbers;
    for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.value;
    const compare = numbers ? (a, b) => a - b : natural;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === ""); // what is not known comes last
      return (down ? -1 : 1) * compare(x, y);
    });
    table.tBodies[0].append(...rows);
  }

  function makeTable() {
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      cell.querySelector("button").addEventListener("click", () => sortBy(column));
    });
    table.tBodies[0].addEventListener("click", (event) => {
      const row = event.target.closest("tr");
      if (!row || String(getSelection())) return; // a text being marked is no choice
      if (event.ctrlKey || event.metaKey || event.shiftKey) return; // the link in a tab of its own
      event.preventDefault();
      goTo(byId.get(row.dataset.run));
    });
  }

  function showRow() {
    for (const row of table.tBodies[0].rows) {
      if (row.dataset.run === shown.run.id) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
  }

  // ------------------------------------------------------------ all together

  function show({ run, left, right, at }) {
    const another = run !== shown.run;
    Object.assign(shown, { run, left: left ?? shown.left, right: right ?? shown.right, at });
    if (another) {
      showFacets();
      frame();
      showFacts();
      showTiles();
      showRow();
      document.title = `${run.facets[0]}, ${run.facets[2]} · DIP-Recon`;
      element("announcement").textContent = run.facets.filter(Boolean).join(", ");
    }
    showMoment();
    showSides();
    if (another) {
      showPlot();
      fetchMoments();
    } else {
      plot?.redraw(false);
      showLegend();
    }
  }

  function listen() {
    for (const side of ["left", "right"]) {
      element(side).addEventListener("change", (event) => {
        shown[side] = event.target.value;
        showSides();
        keepAddress();
      });
    }
    const range = element("moment");
    range.addEventListener("input", () => setMoment(shown.run.moments[range.value].at));
    range.addEventListener("change", keepAddress);
    slider.addEventListener("slide", () => {
      slider.setAttribute("aria-valuenow", Math.round(slider.value));
    });
    addEventListener("hashchange", () => {
      const wanted = readAddress();
      if (!wanted) return;
      const another = wanted.run !== shown.run;
      show(wanted);
      const { top } = element("stage").getBoundingClientRect();
      if (another && (top < -100 || top > innerHeight - 200)) bringIntoView(element("view"));
    });
    for (const link of document.querySelectorAll("nav a")) {
      link.addEventListener("click", (event) => { // the address goes on naming the run
        event.preventDefault();
        const target = document.querySelector(link.hash);
        const title = target.querySelector("h2");
        title.tabIndex = -1; // from there on with the Tab key
        title.focus({ preventScroll: true });
        bringIntoView(target);
      });
    }
    document.addEventListener("click", (event) => { // a link to the run at hand
      const link = event.target.closest('a[href^="#run="]');
      if (!link || event.defaultPrevented || event.ctrlKey || event.metaKey || event.shiftKey) return;
      if (byId.get(new URLSearchParams(link.hash.slice(1)).get("run")) !== shown.run) return;
      event.preventDefault();
      bringIntoView(element("view"));
    });
    new ResizeObserver(() => {
      const { clientWidth } = element("plot");
      if (!plot || !clientWidth || clientWidth === plot.width) return;
      plot.setSize({ width: clientWidth, height: plot.height });
    }).observe(element("plot"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showPlot);
  }

  makeFacets();
  makeTable();
  listen();
  element("view").hidden = false; // before the plot, which takes its width from the page
  show(readAddress() ?? { run: runs.find((run) => run.moments.length) ?? runs[0], at: null });
  keepAddress(); // so that one can come back to it
})();
